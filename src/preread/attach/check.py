"""What is tried of a llama-server before any context is put into it: that its slot files are understood, that what is
written in their form is what it then computes with, and that its KV is the cloud's.

All of it with a short text, in slot 0, whose earlier tokens are lost by that.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from preread.attach.folder import Folder
from preread.attach.server import Server
from preread.attach.slot_file import Bytes, Form, learn
from preread.errors import CorruptData, EngineError
from preread.plan.match import Tokens
from preread.values import ContextId, Geometry, Half, KVBlock, Span

TOKENS: Final = 64
"""That are computed; fewer where there are no more."""
LEAST_TOKENS: Final = 24

MOST_APART: Final = 0.15
"""By how much the cloud's K, and of the lossless rung V, may differ from the server's own, as a share: machines differ
by some hundredths; of the thinnest rungs K by 0.03 more. Other weights, adapters or rotations differ by more."""
MOST_LOSSY: Final = 0.5
"""By how much V may of other rungs: of b0.7 of Qwen2.5-0.5B it was 0.35."""

_SLOT: Final = 0
_FEWER: Final = 11
_MOST_NATS: Final = 0.02
"""By which a log-probability may differ after the same rows were written and read; none did so far."""
_LIKELIEST: Final = 3
_NEAR_NATS: Final = 4.0
"""Compared are so many of the likeliest tokens, as far as they are not so much less likely than the first."""
_MOST_HEAD_BYTES: Final = 1 << 16
_CHECK: Final = ContextId("0" * 64), "check"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a server was found to do.

    Attributes:
        form: of its slot files.
        tokens, block: a text, and its KV as this server computes it.
        tokens_s: how fast it computed that.
    """

    form: Form
    tokens: Tokens
    block: KVBlock
    tokens_s: float


async def check(server: Server, folder: Folder, geometry: Geometry, tokens: Tokens) -> Checked:
    """Learn the form of a server's slot files, and try it.

    Args:
        server, folder: where it runs, and its --slot-save-path.
        geometry: of the model that it should run.
        tokens: of a text, at least `LEAST_TOKENS`.

    Raises:
        CorruptData: its files are not understood.
        EngineError: what was restored is not what it computes with.
        PrereadError: as for `Server` and `Folder.read`.
    """
    tokens = tokens[:TOKENS]
    fewer = tokens[: len(tokens) - _FEWER]
    short = await _computed(server, folder, geometry, fewer)
    began_s = time.monotonic()
    await server.predict(tokens[:-1].tolist(), _SLOT, reuse=False)
    tokens_s = (len(tokens) - 1) / (time.monotonic() - began_s)
    # The last one alone, as after the restore: among others it would be computed by other kernels.
    own = await server.predict(tokens.tolist(), _SLOT, reuse=True)
    long = await _saved(server, folder, geometry, tokens)
    form = learn([(short, fewer), (long, tokens)], geometry)
    rows = form.rows(long, len(tokens), Span(0, len(tokens)), Span(0, geometry.layers))
    await _restored(server, folder, form, tokens, rows, own.logprobs)
    return Checked(form, tokens, rows, tokens_s)


async def own_rows(server: Server, folder: Folder, form: Form, tokens: Tokens) -> KVBlock:
    """KV of the first tokens of a text as a server computes it. Raises as `check` does."""
    tokens = tokens[:TOKENS]
    file = await _computed(server, folder, form.geometry, tokens)
    if len(file) != form.size_bytes(len(tokens)):
        raise CorruptData("length", "the server writes slot files otherwise than before")
    return form.rows(file, len(tokens), Span(0, len(tokens)), Span(0, form.geometry.layers))


def first(block: KVBlock, count: int) -> KVBlock:
    """The first rows of a block that begins with a text."""
    return KVBlock(Span(0, count), block.layers, block.k[:, :, :count], block.v[:, :, :count])


def apart(mine: KVBlock, theirs: KVBlock) -> tuple[float, float]:
    """How much K and V of two computations of the same tokens differ: the root mean square of the difference, as a
    share of that of the values."""
    return _share(mine.k, theirs.k), _share(mine.v, theirs.v)


def _share(one: Half, other: Half) -> float:
    exact = one.astype(np.float32)
    difference = exact - other.astype(np.float32)
    share = float(np.sqrt(np.mean(difference**2) / max(float(np.mean(exact**2)), 1e-12)))
    return share if np.isfinite(share) else float("inf")


def nats_apart(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """By how much the log-probabilities of the likely next tokens differ; infinite where one lacks a likely one."""
    likely = {token for told in (one, other) for token in _likeliest(told)}
    if not likely or not likely <= one.keys() & other.keys():
        return float("inf")
    return max(abs(one[token] - other[token]) for token in likely)


def _likeliest(told: Mapping[int, float]) -> list[int]:
    ranked = sorted(told, key=lambda token: -told[token])[:_LIKELIEST]
    return [token for token in ranked if told[token] > told[ranked[0]] - _NEAR_NATS]


async def _computed(server: Server, folder: Folder, geometry: Geometry, tokens: Tokens) -> Bytes:
    """A slot file of tokens that the server computed."""
    await server.predict(tokens.tolist(), _SLOT, reuse=False)
    return await _saved(server, folder, geometry, tokens)


async def _saved(server: Server, folder: Folder, geometry: Geometry, tokens: Tokens) -> Bytes:
    name = folder.new_name()
    try:
        await server.save(_SLOT, name)
        # Four bytes a value: of another model, or of rows of floats, it is told what is wrong with them.
        return folder.read(name, _MOST_HEAD_BYTES + len(tokens) * (64 + 16 * geometry.values_per_token))
    finally:
        folder.drop(name)


async def _restored(
    server: Server, folder: Folder, form: Form, tokens: Tokens, rows: KVBlock, own: Mapping[int, float]
) -> None:
    """Write all tokens but the last into a file, have it restored, and compare what the server says of the next one."""
    count = len(tokens) - 1
    with folder.draft(form.size_bytes(count)) as draft:
        form.frame(tokens[:count], draft.file)
        form.put(draft.file, count, first(rows, count))
        kept = folder.keep(_CHECK, draft, count)
    try:
        await server.erase(_SLOT)
        await server.restore(_SLOT, kept.name)
        warm = await server.predict(tokens.tolist(), _SLOT, reuse=True)
        await server.erase(_SLOT)
    finally:
        folder.forget(_CHECK)
    if warm.reused != count:
        raise EngineError(f"the server reused {warm.reused} of {count} tokens that were restored into a slot")
    nats = nats_apart(own, warm.logprobs)
    _log.debug("after a restore the next token's log-probabilities differ by %.3g nats", nats)
    if nats > _MOST_NATS:
        raise EngineError(f"after a restore the server's next token differs by {nats:.2g} nats")
