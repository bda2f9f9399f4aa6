"""Texts to fit on and to measure with, which every installation has: Python's own library, its language reference, and
a few pages of our own in other languages and of other kinds.

Calibration and evaluation never share a file: the first is source code with its comments and docstrings, and the pages
in `texts`, the second the chapters of the language reference, which is prose about code.
"""

import sysconfig
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from preread.errors import UsageError

CALIBRATION = (
    *("argparse", "ast", "calendar", "collections/__init__", "configparser", "csv", "datetime", "difflib", "doctest"),
    *("email/message", "fractions", "ftplib", "heapq", "http/client", "imaplib", "inspect", "ipaddress", "locale"),
    *("logging/__init__", "mailbox", "optparse", "pathlib", "pickle", "plistlib", "random", "sched", "shutil"),
    *("smtplib", "statistics", "string", "subprocess", "tarfile", "textwrap", "threading", "typing", "unittest/case"),
    *("urllib/request", "uuid", "webbrowser", "zipfile"),
)

_CODE = None
"""Stands for the next module."""

_ORDER = (
    *(_CODE, "es", _CODE, "de", "log", _CODE, "fr", "chat", "uk"),
    *(_CODE, "ja", "table", _CODE, "ar", "prose", _CODE, _CODE, "zh"),
)
"""What a fit that reads few windows begins with: a third is code, and no two pages are of one language and kind."""


@dataclass(frozen=True, slots=True)
class Text:
    """Some documents, and one line that says what they are."""

    label: str
    parts: tuple[str, ...]


def calibration() -> Text:
    """Modules of Python's standard library, and pages in eight languages, of prose, chat, tables and logs."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [folder.joinpath(f"{name}.py") for name in CALIBRATION]
    modules = [path.read_text("utf-8", errors="replace") for path in paths if path.is_file()]
    if not modules:
        raise UsageError("Python's standard library has no sources here to fit on: give a text with --text")
    pages = {name: files("preread.fit").joinpath("texts", f"{name}.txt").read_text("utf-8") for name in _ORDER if name}
    rest = iter(modules)
    first = [pages[name] if name else next(rest, "") for name in _ORDER]
    version = sysconfig.get_python_version()
    label = f"{len(modules)} modules of Python {version}'s standard library, {len(pages)} pages in 8 languages"
    return Text(label, tuple(part for part in (*first, *rest) if part))


def evaluation() -> Text:
    """Python's language reference as `help()` has it: prose that no default calibration has seen."""
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name] for name in sorted(topics))
    return Text(f"the language reference of Python {sysconfig.get_python_version()} (pydoc topics)", (whole,))


def read(paths: list[Path]) -> Text:
    """Text files as they are.

    Raises:
        UsageError: one cannot be read, or is not UTF-8.
    """
    parts = []
    for path in paths:
        try:
            parts.append(path.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return Text(", ".join(path.name for path in paths), tuple(parts))


def below(paths: list[Path]) -> Text:
    """Text files, and all of a folder's that can be read as UTF-8, in the order of their names.

    Raises:
        UsageError: a file cannot be read, or a folder has none.
    """
    parts: list[str] = []
    for path in paths:
        if not path.is_dir():
            parts += read([path]).parts
            continue
        before = len(parts)
        for file in sorted(path.rglob("*")):
            try:
                parts.append(file.read_text("utf-8"))
            except (OSError, UnicodeDecodeError):  # a folder, a picture
                continue
        if len(parts) == before:
            raise UsageError(f"{path} has no text")
    return Text(", ".join(path.name for path in paths), tuple(parts))
