"""Where what a page of the repository links to is on the site. Pure.

Pages of docs/ keep their places. The Markdown of the repository's root (README, CHANGELOG …) and of examples/ is under
`project/`; any other file or folder that a page links to has a page of its own under `source/`, that shows it.
"""

import posixpath
import re
from collections.abc import Callable

_LINK = re.compile(r'(?P<before>\]\(|\b(?:href|src|srcset)=")(?P<target>[^)"#\s]+)(?=[)"#\s])')
_CODE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|`[^`\n]+`)", re.M | re.S)


def place(path: str) -> str:
    """The page on the site, or the picture, that shows a file of the repository: both paths are from their roots."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".md") and ("/" not in path or path.startswith("examples/")):
        return f"project/{path.lower()}"
    return f"source/{path}.md"


def outside(text: str, path: str) -> set[str]:
    """Paths in the repository, outside docs/, that a page links to which is at `path` there."""
    led = {_path(target["target"], path) for part in _CODE.split(text)[::2] for target in _LINK.finditer(part)}
    return {target for target in led if target is not None and not target.startswith("docs/")}


def moved(text: str, path: str) -> str:
    """A page of the repository with links that work on the site: between pages of docs/, none needs to be changed."""
    at = posixpath.dirname(place(path))

    def link(found: re.Match[str]) -> str:
        target = _path(found["target"], path)
        if target is None or (target.startswith("docs/") and path.startswith("docs/")):
            return found[0]
        return found["before"] + posixpath.relpath(place(target), at or ".")

    return _outside_code(text, lambda part: _LINK.sub(link, part))


def _path(target: str, page: str) -> str | None:
    """What a link leads to, as a path from the repository's root; None: something elsewhere."""
    if re.match(r"[a-z]+:", target) or target.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    return "".join(part if index % 2 else change(part) for index, part in enumerate(_CODE.split(text)))
