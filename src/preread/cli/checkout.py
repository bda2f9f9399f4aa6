"""The checkout that preread was installed from, for commands that need more than the package has."""

from pathlib import Path
from typing import Final

from preread.errors import UsageError

_ROOT: Final = Path(__file__).parents[3]


def root(what: str) -> Path:
    """Its folder; `what` needs it.

    Raises:
        UsageError: preread was not installed from one.
    """
    if not (_ROOT / "scripts" / "install").exists():
        raise UsageError(f"{what} in a checkout of preread, and it was not installed from one")
    return _ROOT
