"""What contexts are called that are made of files, folders and pages. Pure: it knows paths as text, and no disk.

    manual.pdf                 → manual
    docs/guide/first steps.md  → guide.first steps      where the folder docs is published
    src/app/main.py            → app.main.py            where the folder src is
    https://x.example/a/b.html → b

What a document is written in says nothing about it, so such a suffix is left away; another one is part of the name, or
`list.c` and `list.h` would be one.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

WRITTEN_IN: Final = frozenset(
    {".adoc", ".docx", ".htm", ".html", ".markdown", ".md", ".pdf", ".rst", ".text", ".txt", ".xhtml"}
)
_BETWEEN: Final = "."
_NOBODYS: Final = frozenset({"default", "index"})


def of_path(parts: Sequence[str], prefix: str = "") -> str:
    """Of a file with these folders above it, its own name last."""
    last = PurePosixPath(parts[-1])
    own = last.stem if last.suffix.lower() in WRITTEN_IN else last.name
    return prefix + unicodedata.normalize("NFC", _BETWEEN.join([*parts[:-1], own]))  # file names of macOS are not


def of_url(url: str, prefix: str = "") -> str:
    """Of a page: its last part that says something, or its host."""
    address = urlsplit(url)
    parts = [part for part in unquote(address.path).split("/") if part]
    while parts and of_path(parts[-1:]).lower() in _NOBODYS:
        parts.pop()
    return of_path(parts[-1:] or [f"{address.hostname or url}.html"], prefix)


def of_part(name: str, number: int) -> str:
    """Of a part of a document that is published in several, counted from 1."""
    return f"{name}{_BETWEEN}{number}"


def parts_of(name: str, among: Iterable[str]) -> list[str]:
    """Names that parts of this document may have."""
    begun = name + _BETWEEN
    return [one for one in among if one.startswith(begun) and _is_number(one.removeprefix(begun))]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and not text.startswith("0")
