"""What two models made of a window, kept in a folder: reading takes minutes, and a fit that was ended goes on from it.

One file a window. It knows files; it must not know how models read.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
from blake3 import blake3

from preread.align import archive
from preread.align.mapping import Read
from preread.align.ridge import Single
from preread.engine.llamacpp import Tokens
from preread.errors import CorruptData, UsageError
from preread.fit import files
from preread.values import Fingerprint, KVBlock, Span

FORMAT: Final = "preread-read"


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread-read"]


def name(models: tuple[Fingerprint, Fingerprint], tokens: Tokens, splits: Sequence[int], layers: Sequence[int]) -> str:
    """Of the file for these tokens, as these two models read them at these layers."""
    digest = blake3(f"preread read 1\n{models} {list(splits)} {list(layers)}\n".encode("ascii"))
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
    return f"{digest.hexdigest()[:32]}.npz"


def kept(path: Path, make: Callable[[], Read]) -> Read:
    """What the file holds; if there is none, or none that can be read, it is made and put there.

    Rows are kept as float16, which is finer by far than what a model computes them to: they are normalised.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        return _read(archive.loads(files.read(path), _Head, "window")[1])
    except (UsageError, CorruptData, KeyError):
        made = make()
    arrays = {"k": made.block.k, "v": made.block.v, "embeddings": made.embeddings.astype(np.float16)}
    arrays |= {f"known-{at}": rows.astype(np.float16) for at, rows in made.known.items()}
    arrays |= {f"large-{at}": rows.astype(np.float16) for at, rows in made.large.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written: {error.strerror or error}") from error
    files.write(path, archive.dumps(_Head(FORMAT), arrays))
    return _read(arrays)  # as the next fit will have it


def _read(arrays: archive.Arrays) -> Read:
    k, v = arrays["k"], arrays["v"]
    rows = {key: found.astype(np.float32) for key, found in arrays.items() if key not in ("k", "v")}
    block = KVBlock(Span(0, k.shape[2]), Span(0, len(k)), k, v)
    return Read(block, _layers(rows, "known-"), _layers(rows, "large-"), rows["embeddings"])


def _layers(rows: dict[str, Single], prefix: str) -> dict[int, Single]:
    return {int(key.removeprefix(prefix)): found for key, found in rows.items() if key.startswith(prefix)}
