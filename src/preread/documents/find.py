"""Which documents are meant: files, folders, patterns and addresses. It looks at folders; it reads no document."""

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pathspec

from preread.documents import names
from preread.errors import UsageError

MOST: Final = 10_000
"""Documents that one command publishes."""

_NOT_ENTERED: Final = frozenset({"__pycache__", "node_modules"})
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_MOST_IGNORE_BYTES: Final = 2**20
_NUMBERS: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a document is.

    Attributes:
        place: a file, or the address of a page.
        name: of its context.
        given: whether it was named itself, not found in a folder.
    """

    place: Path | str
    name: str
    given: bool = True

    @property
    def shown(self) -> str:
        return str(self.place)


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was found and is no document."""

    shown: str
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to publish, and what was passed over."""

    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...] = ()


def find(given: Sequence[str], prefix: str = "") -> Found:
    """The documents that are meant, in the order in which they were given, and of a folder in that of its names.

    Args:
        given: files, folders (with all below), patterns such as `docs/**/*.md`, and addresses.
        prefix: of the names of their contexts.

    Raises:
        UsageError: there is nothing of such a name, it cannot be read, or there are too many.
    """
    found: dict[Path | str, Source] = {}
    skipped: list[Skipped] = []
    for one in given:
        for item in _meant(one, prefix):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                found.setdefault(item.place, item)
            if len(found) > MOST:
                raise UsageError(f"{one} brings more than {MOST:,} documents: publish it folder by folder")
    return Found(tuple(found.values()), tuple(skipped))


def _meant(given: str, prefix: str) -> Iterator[Source | Skipped]:
    if is_url(given):
        try:
            name, scheme = names.of_url(given, prefix), urlsplit(given).scheme.lower()
        except ValueError as error:
            raise UsageError(f"{given} is no address: {error}") from error
        if scheme not in ("http", "https"):
            raise UsageError(f"{given}: only pages of http and https are fetched")
        yield Source(given, name)
        return
    path = Path(given).expanduser()
    if _is_pattern(given):
        yield from _matches(str(path), prefix)
    elif path.is_dir():
        yield from _below(path, prefix)
    elif path.exists():
        yield Source(path, names.of_path([path.name], prefix))
    else:
        raise UsageError(f"cannot read {given}: there is no such file or folder")


def _matches(pattern: str, prefix: str) -> Iterator[Source]:
    folder = Path(*_before_pattern(Path(pattern).parts))
    matches = sorted(map(Path, glob.iglob(pattern, recursive=True)), key=_order)
    files = [path for path in matches if path.is_file()]
    if not files:
        raise UsageError(f"{pattern} matches no file")
    yield from (Source(path, names.of_path(path.relative_to(folder).parts, prefix), False) for path in files)


def _before_pattern(parts: Sequence[str]) -> list[str]:
    first = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    return list(parts[:first])


def _below(root: Path, prefix: str) -> Iterator[Source | Skipped]:
    """All documents of a folder and of those in it, but for what is hidden, ignored, or leads elsewhere."""
    real = root.resolve()
    rules = {folder: _rules(folder) for folder in _repository_above(real)}
    for where, folders, files in os.walk(root, onerror=_cannot_read):
        folder = Path(where)
        absolute = real / folder.relative_to(root)
        rules[absolute] = _rules(absolute)
        entered = []
        for name in sorted(folders, key=_natural):
            if why := _why_not_entered(folder / name, absolute / name, rules):
                yield Skipped(f"{folder / name}/", why)
            else:
                entered.append(name)
        folders[:] = entered
        for name in sorted(files, key=_natural):
            path = folder / name
            if why := _why_not_taken(path, absolute / name, real, rules):
                yield Skipped(str(path), why)
            else:
                yield Source(path, names.of_path(path.relative_to(root).parts, prefix), False)


Rules = dict[Path, pathspec.GitIgnoreSpec | None]


def _why_not_entered(path: Path, absolute: Path, rules: Rules) -> str | None:
    if path.name in _NOT_ENTERED:
        return "never published"
    if path.is_symlink():
        return "a link to a folder"
    return _why_hidden(path.name) or _why_ignored(absolute, rules, "/")


def _why_not_taken(path: Path, absolute: Path, root: Path, rules: Rules) -> str | None:
    if why := _why_hidden(path.name) or _why_ignored(absolute, rules, ""):
        return why
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return "a link out of the folder"
        return None if stat.S_ISREG(path.stat().st_mode) else "no ordinary file"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _why_hidden(name: str) -> str | None:
    return "hidden" if name.startswith(".") else None


def _why_ignored(path: Path, rules: Rules, ending: str) -> str | None:
    """As git decides (gitignore(5)): the last rule that matches, of the deepest folder that has one."""
    for folder in path.parents:
        spec = rules.get(folder)
        if spec is not None:
            says = spec.check_file(path.relative_to(folder).as_posix() + ending).include
            if says is not None:
                return "ignored by .gitignore" if says else None
    return None


def _rules(folder: Path) -> pathspec.GitIgnoreSpec | None:
    try:
        with (folder / ".gitignore").open("rb") as file:
            lines = file.read(_MOST_IGNORE_BYTES).decode(errors="replace").splitlines()
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except (OSError, ValueError):
        return None


def _repository_above(folder: Path) -> list[Path]:
    """Folders above this one, up to where git keeps its own; none if it is in no repository."""
    above = [folder, *folder.parents]
    top = next((at for at, one in enumerate(above) if (one / ".git").exists()), 0)
    return above[1 : top + 1]


def _cannot_read(error: OSError) -> None:
    raise UsageError(f"cannot read {error.filename}: {error.strerror or error}") from error


def is_url(given: str) -> bool:
    """Whether this is an address, not a file."""
    return _URL.match(given) is not None


def _is_pattern(given: str) -> bool:
    return glob.has_magic(given) and not Path(given).expanduser().exists()


def _natural(name: str) -> list[tuple[int, str]]:
    """Chapter 10 comes after chapter 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(name)]


def _order(path: Path) -> list[list[tuple[int, str]]]:
    return [_natural(part) for part in path.parts]
