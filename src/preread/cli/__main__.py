"""`python -m preread.cli`."""

from preread.cli import main

main()
