"""A codec after CacheGen (Liu et al., arXiv 2310.07240, section 5), to be compared with; not the authors' code.

Every tenth token is an anchor, kept at 8 bits; the tokens between are differences from it, quantised with steps that
grow over the layers' thirds; an arithmetic coder has symbol statistics for each layer and channel, counted once for a
model on other text and, as the paper has it, no part of what is sent. A step is stated in standard deviations of a
layer's differences, since the paper says steps without a unit; the deviation of each channel gives worse results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preread.codec.base import Payload, block_shape, check_block
from preread.errors import CorruptData, UsageError
from preread.values import Geometry, Half, KVBlock, KVShape, Span

Single = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

STEPS = {"fine": 0.3, "middle": 0.6, "coarse": 1.0}
"""What the paper calls encoding levels: the factor of all steps."""

_THIRDS = (0.5, 1.0, 1.5)
_ANCHOR_EVERY = 10
_ANCHOR_MOST, _DELTA_MOST = 127, 63
_PRIOR_SYMBOLS = 32.0


@dataclass(frozen=True, slots=True)
class Tables:
    """Of K or V: the step (layers, 1, 1, 1), and the symbols' probabilities (layers, channels, symbols)."""

    step: Single
    anchors: Single
    deltas: Single


@dataclass(frozen=True, slots=True)
class CacheGen:
    """A `Codec` of one level."""

    level: str
    k: Tables
    v: Tables

    @property
    def rung(self) -> str:
        return f"cachegen-{self.level}"

    @property
    def version(self) -> str:
        return f"{self.rung}/1"

    def encode(self, block: KVBlock) -> bytes:
        check_block(block)
        encoder = _coding().stream.queue.RangeEncoder()
        scales = []
        for half, tables in ((block.k, self.k), (block.v, self.v)):
            step = tables.step[block.layers.start : block.layers.stop]
            scale, anchors, deltas = _symbols(half, step)
            scales.append(scale.tobytes())
            for codes, most, model in _models(anchors, deltas, tables, block.layers):
                encoder.encode(codes + most, model)
        words: npt.NDArray[np.uint32] = encoder.get_compressed()
        return b"".join(scales) + words.tobytes()

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry | KVShape) -> KVBlock:
        shape = block_shape(tokens, layers, geometry)
        at, scales = 0, []
        anchors = -(-len(tokens) // _ANCHOR_EVERY)
        for _ in range(2):
            count = shape[0] * shape[1] * anchors
            scales.append(np.frombuffer(payload, np.float16, count, at).reshape(shape[0], shape[1], anchors, 1))
            at += 2 * count
        if (len(payload) - at) % 4:
            raise CorruptData("length", "payload ends within a word")
        decoder = _coding().stream.queue.RangeDecoder(np.frombuffer(payload[at:], np.uint32))
        halves = []
        for scale, tables in zip(scales, (self.k, self.v), strict=True):
            shapes = [(shape[0], shape[1] * shape[3], count) for count in (anchors, len(tokens) - anchors)]
            first, rest = (np.empty(of, np.int32) for of in shapes)
            for codes, most, model in _models(first, rest, tables, layers):
                codes[...] = decoder.decode(model, codes.size) - most
            halves.append(_values(scale, first, rest, tables.step[layers.start : layers.stop], shape[1]))
        return KVBlock(tokens, layers, *halves)


def fit(blocks: Sequence[KVBlock]) -> tuple[CacheGen, ...]:
    """All levels' codecs, from whole contexts' KV of all layers.

    Raises:
        UsageError: the coder is not installed.
    """
    _coding()
    ks, vs = [block.k for block in blocks], [block.v for block in blocks]
    layers = ks[0].shape[0]
    thirds = np.array([_THIRDS[3 * layer // layers] for layer in range(layers)], np.float32).reshape(-1, 1, 1, 1)
    k_unit, v_unit = thirds * _spread(ks), thirds * _spread(vs)
    return tuple(
        CacheGen(level, _count(ks, np.float32(factor) * k_unit), _count(vs, np.float32(factor) * v_unit))
        for level, factor in STEPS.items()
    )


def _spread(halves: Sequence[Half]) -> Single:
    """(layers, 1, 1, 1) standard deviation of the differences."""
    squares = [np.square(_differences(half, _anchors(half)[2])).mean(axis=(1, 2, 3), keepdims=True) for half in halves]
    spread: Single = np.maximum(np.sqrt(np.mean(squares, axis=0)), 1e-6).astype(np.float32)
    return spread


def _count(halves: Sequence[Half], step: Single) -> Tables:
    symbols = [_symbols(half, step)[1:] for half in halves]
    anchors = np.concatenate([of[0] for of in symbols], axis=2)
    deltas = np.concatenate([of[1] for of in symbols], axis=2)
    return Tables(step, _probabilities(anchors, _ANCHOR_MOST), _probabilities(deltas, _DELTA_MOST))


def _probabilities(codes: Codes, most: int) -> Single:
    """(layers, channels, symbols) from `codes` (layers, channels, tokens): counts, and a normal curve as prior."""
    layers, channels, _ = codes.shape
    size = 2 * most + 1
    rows = codes.reshape(layers * channels, -1)
    counts = np.stack([np.bincount(row + most, minlength=size) for row in rows]).astype(np.float32)
    mean, variance = rows.mean(axis=1, keepdims=True), rows.var(axis=1, keepdims=True) + 0.25
    prior = np.exp(-np.square(np.arange(-most, most + 1) - mean) / (2 * variance)) + 1e-5
    total = counts + _PRIOR_SYMBOLS * prior / prior.sum(axis=1, keepdims=True)
    shares = total / total.sum(axis=1, keepdims=True)
    probabilities: Single = shares.reshape(layers, channels, size).astype(np.float32)
    return probabilities


def _symbols(half: Half, step: Single) -> tuple[Half, Codes, Codes]:
    """Scales of anchors (layers, heads, anchors, 1); codes of anchors and differences (layers, channels, tokens)."""
    scale, codes, anchors = _anchors(half)
    deltas = np.rint(_differences(half, anchors) / step)
    return scale, _channels(codes), _channels(np.clip(deltas, -_DELTA_MOST, _DELTA_MOST))


def _anchors(half: Half) -> tuple[Half, Single, Single]:
    """Scales, codes and decoded values of the anchors."""
    values = half[:, :, ::_ANCHOR_EVERY].astype(np.float32)
    scale = (np.abs(values).max(axis=3, keepdims=True) / _ANCHOR_MOST).astype(np.float16)
    single = np.maximum(scale, np.float16(6e-8)).astype(np.float32)
    codes = np.clip(np.rint(values / single), -_ANCHOR_MOST, _ANCHOR_MOST)
    return scale, codes, codes * scale.astype(np.float32)


def _differences(half: Half, anchors: Single) -> Single:
    tokens = half.shape[2]
    between = np.arange(tokens) % _ANCHOR_EVERY != 0
    return (half.astype(np.float32) - np.repeat(anchors, _ANCHOR_EVERY, axis=2)[:, :, :tokens])[:, :, between]


def _values(scale: Half, first: Codes, rest: Codes, step: Single, heads: int) -> Half:
    layers, channels, anchors = first.shape
    tokens, dim = anchors + rest.shape[2], channels // heads
    decoded = _tokens(first, heads) * scale.astype(np.float32)
    values = np.repeat(decoded, _ANCHOR_EVERY, axis=2)[:, :, :tokens]
    between = np.arange(tokens) % _ANCHOR_EVERY != 0
    values[:, :, between] += _tokens(rest, heads) * step
    assert values.shape == (layers, heads, tokens, dim)
    return values.astype(np.float16)


def _channels(codes: Single) -> Codes:
    """(layers, heads, tokens, head_dim) as (layers, channels, tokens)."""
    layers, heads, tokens, dim = codes.shape
    return codes.transpose(0, 1, 3, 2).reshape(layers, heads * dim, tokens).astype(np.int32)


def _tokens(codes: Codes, heads: int) -> Single:
    layers, channels, tokens = codes.shape
    return codes.reshape(layers, heads, channels // heads, tokens).transpose(0, 1, 3, 2).astype(np.float32)


def _models(anchors: Codes, deltas: Codes, tables: Tables, layers: Span) -> Any:
    """(codes, offset, model) of each layer and channel, in the order of the stream; codes are views."""
    categorical = _coding().stream.model.Categorical
    for codes, most, shares in (
        (anchors, _ANCHOR_MOST, tables.anchors[layers.start : layers.stop]),
        (deltas, _DELTA_MOST, tables.deltas[layers.start : layers.stop]),
    ):
        for i, j in np.ndindex(codes.shape[:2]):
            yield codes[i, j], most, categorical(shares[i, j], perfect=False)


def _coding() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise UsageError("comparing with CacheGen needs an arithmetic coder: pip install 'preread[bench]'") from error
    return constriction
