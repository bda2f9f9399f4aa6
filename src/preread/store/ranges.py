"""Conditional and range requests as RFC 9110 has them: header texts in, values out. Pure."""

import re

from preread.values import Span

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def parse_range(header: str | None, size_bytes: int) -> Span | None:
    """The bytes that a Range header asks for, of an object of `size_bytes`.

    Returns:
        None where the whole object is to be sent: no header, another unit, several ranges, or a text that is no range.
        An empty span where the header is a range and no byte of the object is in it: the answer is 416.
    """
    match = _RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return Span(max(0, size_bytes - int(match[2])), size_bytes)
    start, stop = int(match[1]), int(match[2]) + 1 if match[2] else size_bytes
    if match[2] and stop <= start:
        return None
    return Span(start, min(stop, size_bytes)) if start < size_bytes else Span(0, 0)


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match lets a representation of this strong `etag` (quoted) be sent; weak comparison."""
    if header is None:
        return True
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" not in tags and etag not in tags


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether If-Range lets Range be honoured: strong comparison; dates never match, since nothing here has one."""
    return if_range is None or if_range.strip() == etag
