"""A model's header, from a file that is here or from the first bytes of one that is on the hub.

What a header says is `gguf.py`'s matter, and where models are kept is `download.py`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from preread.engine import gguf
from preread.engine.download import locate, on_hub
from preread.engine.gguf import Header, Unfinished
from preread.engine.registry import HubFile, HubTag, Model, parse
from preread.engine.sources import hub_beginning
from preread.via import Proxy

_FIRST_BYTES: Final = 2**23
"""Of most models this is the whole header; where it is not, twice as much is asked for, and so on."""


@dataclass(frozen=True, slots=True)
class Peeked:
    """A header, and where it was read.

    Attributes:
        header: of the file, or of a model's first part.
        where: the file, or the address on the hub.
        here: whether the model is on this machine.
    """

    header: Header
    where: str
    here: bool


def peek(reference: str, proxy: Proxy | None = None) -> Peeked:
    """Read the header of the model that a reference means. Nothing is kept of what comes from the hub.

    Raises:
        UsageError: the reference means nothing, or nothing that is in reach.
        TransportError, RemoteError: the hub could not be asked.
        CorruptData: the header is none that a sound file has.
    """
    path = locate(reference)
    if path is not None:
        return Peeked(header_of(path), str(path), here=True)
    target = parse(reference)
    if isinstance(target, Model):
        target = next(source for source in target.sources if isinstance(source, HubFile))
    if isinstance(target, HubTag):
        target = on_hub(target, proxy=proxy)
    assert isinstance(target, HubFile), "a file of the user's own is always here"
    return Peeked(_grown(partial(hub_beginning, target, proxy=proxy)), str(target), here=False)


def header_of(path: Path) -> Header:
    """The header of a file that is here.

    Raises:
        CorruptData: it is none that a sound file has.
    """
    with path.open("rb") as file:
        return _grown(partial(_first, file))


def _first(file: BinaryIO, size_bytes: int) -> bytes:
    file.seek(0)
    return file.read(size_bytes)


def _grown(beginning: Callable[[int], bytes]) -> Header:
    """The header in as much of a file's beginning as it takes."""
    size_bytes = _FIRST_BYTES
    while True:
        data = beginning(size_bytes)
        try:
            return gguf.parse(data)
        except Unfinished:
            if len(data) < size_bytes or size_bytes >= gguf.MAX_HEADER_BYTES:
                raise
            size_bytes *= 2
