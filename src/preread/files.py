"""Files that are written whole or not at all. They do not survive a power cut for sure: see `store.durable`."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

DRAFT: Final = ".new-"
"""How the names begin of what is not whole yet; a killed process leaves such a file."""


def put(path: Path, data: bytes) -> None:
    """Put a file in place, whose folder is there; whoever reads it meanwhile finds the old one or the new one.

    Only its owner can read it (mkstemp(3)).

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=DRAFT, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def put_below(path: Path, data: bytes) -> None:
    """The same where folders may be missing: they are made, for their owner only.

    Raises:
        OSError: as for `put`, or a folder cannot be made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    put(path, data)
