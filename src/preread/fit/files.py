"""The files that fits leave and find: read whole or refused, written whole or not at all."""

import os
import tempfile
from pathlib import Path

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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
