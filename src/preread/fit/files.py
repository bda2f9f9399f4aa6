"""The files that fits leave and find: read whole or refused, written whole or not at all."""

from pathlib import Path

from preread import files
from preread.errors import UsageError


def read(path: Path) -> bytes:
    """What a file holds.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def write(path: Path, data: bytes) -> None:
    """Put a file in place, whose folder is there; whoever reads it meanwhile finds the old one or the new one.

    Raises:
        UsageError: it cannot be written.
    """
    path = path.expanduser()
    try:
        files.put(path, data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
