"""A guide at work: what the small model's KV of a text becomes by what the large one reads of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from preread.align import guide_bytes
from preread.align.guide import Guide
from preread.align.guide_bytes import KeptGuide
from preread.align.mapping import Read
from preread.codec.rope import Ropes, rotate
from preread.fit import files
from preread.fit.map import SINK_TOKENS
from preread.fit.quality import Single
from preread.values import Half, KVBlock, Span


def load(path: Path) -> KeptGuide:
    """A guide's file.

    Raises:
        UsageError: it cannot be read.
        CorruptData: it is none.
    """
    return guide_bytes.loads(files.read(path))


def guided(guide: Guide, read: Read, ropes: Ropes) -> KVBlock:
    """The guided layers as the small model would cache them; the first `SINK_TOKENS` are exact."""
    exact = read.block
    k, v = (rows[guide.first :].astype(np.float32) for rows in (exact.k, exact.v))
    half = [_half(rows) for rows in changed(guide, guide.read(read.large), k, v, ropes)]
    return KVBlock(exact.tokens, Span(guide.first, guide.first + len(k)), *half)


def changed(guide: Guide, read: Single, k: Single, v: Single, ropes: Ropes) -> tuple[Single, Single]:
    """K and V of the guided layers from a context's start, by what is read there; its first `SINK_TOKENS` are exact."""
    changes = guide.changes(read)
    changes[..., :SINK_TOKENS, :] = 0
    turned = rotate(changes[:, 0], Span(0, k.shape[2]), ropes[guide.first :])
    return k + turned, v + changes[:, 1]


def other(now: Read, before: Read) -> Read:
    """A document's exact KV, with what the large model made of another one."""
    count = len(now.embeddings)
    return replace(now, large={layer: np.resize(rows, (count, rows.shape[1])) for layer, rows in before.large.items()})


def _half(rows: Single) -> Half:
    return np.clip(rows, -65504, 65504).astype(np.float16)
