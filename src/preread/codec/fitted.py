"""The fitted rungs: K un-rotated, predicted from the token, brought into the profile's basis, quantised, coded.

Payload of a rung that stands alone: if the block holds any of the context's sink tokens, u32 length and then these
tokens losslessly; where the profile knows late sinks, which ones the block has, and these losslessly (their symbols are
zeros); then the coded symbols of all others, token after token, each token's components by descending
variance. The context's last tokens are quantised more finely: where a block holds both these and older ones, they are
coded apart, and what comes first is preceded by its u32 length. A rung that refines another one codes what that one
leaves, in the same way; its sinks are that one's. What is encoded and decoded here then is both: `joined` and `apart`
say how.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preread.codec.base import Payload, block_shape, check_block
from preread.codec.lossless_rows import find_late, pack_late, packed, unpack_late, unpacked
from preread.codec.product import analysed, compiled, padded_depth, padded_rows, synthesised
from preread.codec.profile import FittedRung, Prepared, Steps
from preread.codec.rope import Single, alike, unrotate
from preread.codec.symbols import Coder, Symbols, read, write
from preread.compiled import vector_bits
from preread.errors import CorruptData, UsageError
from preread.values import Geometry, Half, KVBlock, KVShape, Span

VERSION = "fitted/2"

_LARGE_MEAN = 2
"""Of components whose symbols have larger means, sizes of a dozen and more are not rare."""

_FEWEST_WEAK = 64
"""For fewer weak components it is not worth the while to take them apart from the others."""

_NOTHING = b"\0"
"""What refines sinks: they are exact, and a payload has at least one byte."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fitted rung, bound to one context's tokens."""

    prepared: Prepared
    index: int

    @property
    def rung(self) -> str:
        return self._rung.name

    @property
    def version(self) -> str:
        return VERSION

    @property
    def base(self) -> str | None:
        """The rung that this one refines, if it does: then what is encoded and decoded is both."""
        return self._rung.base

    @property
    def _rung(self) -> FittedRung:
        return self.prepared.profile.rungs[self.index]

    @property
    def _base(self) -> FittedRung | None:
        name = self._rung.base
        return self.prepared.profile.rung(name) if name else None

    def encode(self, block: KVBlock) -> bytes:
        own = encoded(self.prepared, block, [self.rung])
        return own[self.rung] if self.base is None else joined(own[self.base], own[self.rung])

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry | KVShape) -> KVBlock:
        *shape, k_dim, v_dim = block_shape(tokens, layers, geometry)
        profile = self.prepared.profile
        group = _group(self.prepared, tokens, layers)
        own = profile.geometry
        fits = shape[:2] == [len(layers), own.kv_heads] and k_dim == v_dim == own.head_dim
        if group is None or not (geometry == own or (isinstance(geometry, KVShape) and fits)):
            raise CorruptData("shape", f"{layers} of {geometry} is not a layer group of the profile")
        k, v = np.empty((*shape, k_dim), np.float16), np.empty((*shape, v_dim), np.float16)
        sinks, base = _sinks(self.prepared, tokens), self._base
        view, finer = apart(payload) if base else (memoryview(payload), memoryview(b""))
        if sinks:
            view = unpacked(view, k[:, :, :sinks], v[:, :, :sinks])
        if sinks < len(tokens):
            late = None
            if profile.late_sinks:
                late, view = unpack_late(view, k, v, sinks, profile.late_sinks)
            rest = Span(tokens.start + sinks, tokens.stop)
            parts = [(base, view), (self._rung, finer)] if base else [(self._rung, view)]
            x = self._synthesise(parts, rest, group)
            _rows(x, k, v, sinks, self.prepared, rest, layers)
            if late:
                late.write(k, v)
        elif len(view) or (base and finer != _NOTHING):
            raise CorruptData("length", "payload has bytes too many")
        return KVBlock(tokens, layers, k, v)

    def _synthesise(self, parts: list[tuple[FittedRung, memoryview]], tokens: Span, group: int) -> Single:
        """Vectors (tokens, padded N) from the coded symbols of one rung, or of a base and what refines it."""
        profile = self.prepared.profile
        features = self.prepared.features[tokens.start : tokens.stop]
        first = features.shape[1]
        older = _older(self.prepared, tokens)
        blocks = [
            block for rung, coded in parts for block in _uncoded(coded, rung, group, profile.coder, older, len(tokens))
        ]
        most = max(symbols.shape[1] for _, _, symbols, _ in blocks)
        depth = padded_depth(first + most)
        a = np.zeros((padded_rows(len(tokens)), depth), np.float32)
        a[: len(tokens), :first] = features
        for rows, steps, symbols, bias in blocks:
            restore(symbols, steps, bias, a[rows, first:], 1)
        strong = depth  # what a rung refines is large, counted in its steps
        if self._base is None:
            large = max(_large(steps, group, profile.coder) for _, steps, *_ in blocks)
            strong = padded_depth(first + large) if most - large >= _FEWEST_WEAK else depth
        return synthesised(a, profile.synthesis(group), strong)[: len(tokens)]


def encoded(prepared: Prepared, block: KVBlock, rungs: Sequence[str]) -> dict[str, bytes]:
    """A block's payload at each of these rungs of the profile, and at those that they refine.

    Of one that refines another it is what comes on top: `joined` makes of both what `Fitted` takes. That a block is
    analysed once, and quantised once for a base, is what makes many rungs cheap.

    Raises:
        UsageError: as `Codec.encode` does.
    """
    check_block(block)
    profile = prepared.profile
    group, sinks = _group(prepared, block.tokens, block.layers), _sinks(prepared, block.tokens)
    if group is None or block.k.shape[1::2] != (profile.geometry.kv_heads, profile.geometry.head_dim):
        raise UsageError(f"{block.layers} with K of shape {block.k.shape} is not a layer group of the profile")
    head = packed(block.k[:, :, :sinks], block.v[:, :, :sinks]) if sinks else b""
    wanted = [profile.rung(name) for name in rungs]
    refining = [rung for rung in wanted if rung.base]
    alone = dict.fromkeys(rung.base or rung.name for rung in wanted)
    if sinks == len(block.tokens):
        return dict.fromkeys(alone, head) | {rung.name: _NOTHING for rung in refining}
    y = coefficients(prepared, block, group, sinks)
    if profile.late_sinks:
        late = find_late(block.v, sinks, profile.late_sinks)
        head += pack_late(block.k, block.v, late)
        y[late - sinks] = 0
    older = _older(prepared, block.tokens) - sinks
    found: dict[str, bytes] = {}
    for name in alone:
        finer = [rung for rung in refining if rung.base == name]
        left = y.copy() if finer else None
        found[name] = head + _coded(y, profile.rung(name), group, profile.coder, older, left)
        for rung in finer:
            assert left is not None
            found[rung.name] = _coded(left, rung, group, profile.coder, older)
    return found


def _group(prepared: Prepared, tokens: Span, layers: Span) -> int | None:
    if tokens.stop > len(prepared.features):
        raise UsageError(f"{tokens} lies outside the {len(prepared.features)} tokens that were prepared")
    return prepared.profile.group(layers)


def _sinks(prepared: Prepared, tokens: Span) -> int:
    return max(0, min(prepared.sinks, tokens.stop) - tokens.start)


def _older(prepared: Prepared, tokens: Span) -> int:
    """How many tokens of a span are not recent."""
    return min(max(prepared.recent - tokens.start, 0), len(tokens))


def _parts(rung: FittedRung, older: int, tokens: int) -> list[tuple[slice, Steps]]:
    """Which rows of a block are quantised how."""
    both = ((slice(0, older), rung.older), (slice(older, tokens), rung.recent))
    return [(rows, steps) for rows, steps in both if rows.start < rows.stop]


def _large(steps: Steps, group: int, coder: Coder) -> int:
    """How many components, from the first on, have symbols too large for int8 in fractions of a step."""
    large = np.flatnonzero(coder.means[steps.classes[group]] > _LARGE_MEAN * 256)
    return int(large[-1]) + 1 if len(large) else 0


def _coded(y: Single, rung: FittedRung, group: int, coder: Coder, older: int, left: Single | None = None) -> bytes:
    """Coefficients (tokens, C) as a rung codes them; that is taken from `left`, if it is given."""
    out = []
    for rows, steps in _parts(rung, older, len(y)):
        data, symbols = quantised(y[rows], steps, rung.bias, group, coder)
        if left is not None:
            restore(symbols, steps, rung.bias, left[rows], -1)
        out.append(data)
    return b"".join([*(struct.pack("<I", len(data)) + data for data in out[:-1]), out[-1]])


def _uncoded(
    coded: memoryview, rung: FittedRung, group: int, coder: Coder, older: int, tokens: int
) -> list[tuple[slice, Steps, Symbols, tuple[float, float]]]:
    """Rows, how they are quantised, their symbols and bias. Raises CorruptData as `symbols.read` does."""
    blocks = []
    parts = _parts(rung, older, tokens)
    for left, (rows, steps) in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
        this, coded = apart(coded) if left else (coded, memoryview(b""))
        blocks.append((rows, steps, read(this, rows.stop - rows.start, steps.classes[group], coder), rung.bias))
    return blocks


def joined(base: Payload, finer: Payload) -> bytes:
    """Payloads of a rung and of the one that it refines, as `Fitted` takes both: u32 length of the base, base, rest."""
    return b"".join([struct.pack("<I", len(base)), base, finer])


def apart(both: Payload) -> tuple[memoryview, memoryview]:
    """Inverse of `joined`.

    Raises:
        CorruptData: "length": it is shorter than it says.
    """
    view = memoryview(both)
    size = struct.unpack_from("<I", view)[0] if len(view) >= 4 else 1 << 32
    if size > len(view) - 4:
        raise CorruptData("length", f"payload of {len(view)} bytes ends before its base does")
    return view[4 : 4 + size], view[4 + size :]


def quantised(y: Single, steps: Steps, bias: tuple[float, float], group: int, coder: Coder) -> tuple[bytes, Symbols]:
    """Coefficients (tokens, C) as coded symbols, and these symbols."""
    classes = steps.classes[group]
    return write(y[:, : len(classes)] / np.float32(steps.step), classes, coder, bias)


def restore(symbols: Symbols, steps: Steps, bias: tuple[float, float], y: Single, sign: int) -> None:
    """Add what symbols stand for, `sign` times, to the first coefficients of y (tokens, …), whose rows lie close."""
    near = np.array(bias, np.float32)
    compiled().preread_values(
        symbols.ctypes.data,
        *symbols.shape,
        y.strides[0] // 4,
        sign * steps.step,
        near.ctypes.data,
        y.ctypes.data,
        vector_bits(),
    )


def coefficients(prepared: Prepared, block: KVBlock, group: int, sinks: int) -> Single:
    """Coefficients (tokens, C) of a block's tokens after the first `sinks`, in the weighted space."""
    profile = prepared.profile
    tokens = Span(block.tokens.start + sinks, block.tokens.stop)
    ropes = profile.ropes[block.layers.start : block.layers.stop]
    k = unrotate(block.k[:, :, sinks:], tokens, ropes)
    x = vectors(k, block.v[:, :, sinks:].astype(np.float32)) - profile.bases[group].mean
    features = prepared.features[tokens.start : tokens.stop]
    a = np.zeros((padded_rows(len(tokens)), x.shape[1] + features.shape[1]), np.float32)
    a[: len(tokens), : x.shape[1]], a[: len(tokens), x.shape[1] :] = x, features
    return analysed(a, profile.analysis(group))[: len(tokens), : len(profile.bases[group].rows)]


def vectors(k: Single, v: Single) -> Single:
    """K and V (layers, kv_heads, tokens, head_dim) as one vector for each token, (tokens, N)."""
    halves = (half.transpose(2, 0, 1, 3).reshape(half.shape[2], -1) for half in (k, v))
    return np.concatenate(list(halves), axis=1)


def _rows(x: Single, k: Half, v: Half, first: int, prepared: Prepared, tokens: Span, layers: Span) -> None:
    """Write vectors of some tokens into rows `first` … of K (rotated) and V."""
    count, heads, _, dim = k.shape
    ropes = prepared.profile.ropes[layers.start : layers.stop]
    for rope, those in alike(ropes):
        cosines, sines = (part[tokens.start : tokens.stop] for part in prepared.turns[layers.start + those.start])
        part = k[those.start : those.stop]
        _heads(x, those.start * heads * dim, part, first, cosines, sines, len(rope.frequencies), rope.near)
    nothing = np.empty(0, np.float32)
    _heads(x, count * heads * dim, v, first, nothing, nothing, 0, False)


def _heads(
    x: Single, offset: int, half: Half, first: int, cosines: Single, sines: Single, pairs: int, near: bool
) -> None:
    """Write the heads of some layers, side by side in x from `offset` on, into rows `first` … of K or V."""
    layers, heads, room, dim = half.shape
    compiled().preread_rows(
        x.ctypes.data + x.itemsize * offset,
        *x.shape,
        layers * heads,
        dim,
        cosines.ctypes.data,
        sines.ctypes.data,
        pairs,
        near,
        room,
        half.ctypes.data + half.itemsize * first * dim,
        vector_bits(),
    )
