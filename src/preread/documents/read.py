"""A document as text, whatever it is written in. Formats that have to be parsed are parsed in another process."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import msgspec

from preread.documents import kinds
from preread.documents.converter import MOST_BYTES, MOST_TEXT_BYTES, Converted
from preread.documents.fetch import fetch
from preread.documents.find import Skipped, Source
from preread.errors import UsageError
from preread.via import Proxy

_MEMORY_BYTES: Final = 2**30
_CPU_S: Final = 60
_WALL_S: Final = 300.0
"""The processors may be busy with something else."""
_ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TZ")
"""Variables that the child gets: among the others are keys."""

_answers: Final = msgspec.json.Decoder(Converted)


def read(source: Source, proxy: Proxy | None = None) -> str | Skipped:
    """A document's text; Skipped where one that was found in a folder holds none. `proxy`: for pages.

    Raises:
        UsageError: it cannot be read, is too large, damaged, or of a kind that is not converted.
        RemoteError, TransportError: a page cannot be had.
    """
    if isinstance(source.place, str):
        with tempfile.TemporaryFile() as file:
            media_type, charset = fetch(source.place, file, MOST_BYTES, proxy)
            text = _text(file, source, Path(urlsplit(source.place).path).suffix, media_type, charset)
    else:
        try:
            with source.place.open("rb") as file:
                text = _text(file, source, source.place.suffix)
        except OSError as error:
            raise UsageError(f"cannot read {source.shown}: {error.strerror or error}") from error
    if isinstance(text, str) and not text.strip():
        return _nothing(source, "empty", "is empty: there is nothing to publish")
    return text


def _text(file: BinaryIO, source: Source, suffix: str, media_type: str = "", charset: str = "") -> str | Skipped:
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes > MOST_BYTES:
        raise UsageError(
            f"{source.shown} has {size_bytes >> 20} MiB, more than {MOST_BYTES >> 20}: publish it in parts"
        )
    file.seek(0)
    head = file.read(kinds.HEAD_BYTES)
    kind = kinds.kind(head, suffix, media_type)
    file.seek(0)
    if kind is None and not _may_be_text(head):
        return _nothing(
            source, "binary", "holds neither text nor Markdown, HTML, PDF or DOCX: export it as one of these"
        )
    if kind is None or kind == "text":
        return _decoded(file.read(MOST_TEXT_BYTES + 1), source, charset)
    return _converted(file, source, kind, charset)


def _may_be_text(head: bytes) -> bool:
    """Whether it says more to tell which byte is wrong than that it is binary."""
    return b"\0" not in head and not head.startswith(b"PK\x03\x04")


def _decoded(data: bytes, source: Source, charset: str = "") -> str | Skipped:
    if len(data) > MOST_TEXT_BYTES:
        raise UsageError(f"{source.shown} has more than {MOST_TEXT_BYTES >> 20} MiB of text: publish it in parts")
    if charset:
        try:
            return data.decode(charset)
        except (LookupError, UnicodeDecodeError):
            pass  # servers are often wrong about this
    try:
        return kinds.decoded(data)
    except UnicodeDecodeError as error:
        return _nothing(source, "not UTF-8", kinds.why_undecodable(data, error))


def _nothing(source: Source, word: str, why: str) -> Skipped:
    """What has no text is passed over in a folder; where it was named itself, that is an error."""
    if source.given:
        raise UsageError(f"{source.shown} {why}")
    return Skipped(source.shown, word)


def _converted(file: BinaryIO, source: Source, kind: str, charset: str) -> str:
    """The text that a child process makes of a document."""
    command = [sys.executable, "-m", "preread.documents.converter", kind, charset, str(_MEMORY_BYTES), str(_CPU_S)]
    with tempfile.TemporaryFile() as answer:
        try:
            subprocess.run(
                command,
                stdin=file,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                timeout=_WALL_S,
                start_new_session=True,  # Ctrl-C is for this process
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                check=True,
            )
            answer.seek(0)
            made = _answers.decode(answer.read())
        except OSError as error:
            raise UsageError(f"{source.shown} cannot be converted: {error.strerror or error}") from error
        except (subprocess.SubprocessError, msgspec.DecodeError) as error:
            limits = f"{_CPU_S} s of processor time or {_MEMORY_BYTES >> 20} MiB of memory"
            raise UsageError(f"{source.shown} takes more than {limits} to convert, or is damaged") from error
    if made.failure:
        raise UsageError(f"{source.shown}: {made.failure}")
    return made.text
