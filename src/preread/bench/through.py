"""One context length on one window of text: exact KV, and what becomes of it on the way through a rung's real bytes."""

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from preread.bench.rates import Sample
from preread.cloud.chunks import chunked
from preread.codec.base import Codec
from preread.codec.fitted import Fitted
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.quality import Single, compare, reference
from preread.fit.text import Text
from preread.plan.legality import first_seen, is_seen
from preread.values import Geometry, KVBlock, KVShape, Span
from preread.wire import segment
from preread.wire.digest import context_id

_DECODING_THREADS, _DECODINGS = 2, 3


@dataclass(frozen=True, slots=True)
class Exact:
    """A context and what follows it, as the exact KV has it."""

    tokens: Tokens
    tail: Tokens
    block: KVBlock
    log_probabilities: Single


def cut(engine: LlamaCpp, text: Text, windows: int, context_tokens: int, tail: int) -> list[Tokens]:
    """Windows of `context_tokens + tail` tokens that do not overlap, evenly spread over the text.

    Raises:
        UsageError: the text is too short.
    """
    start = engine.tokenize("", start=True)
    tokens = engine.tokenize("\n\n".join(text.parts), special=False)
    need = context_tokens + tail - len(start)
    if missing := max(0, windows * need - len(tokens)):
        raise UsageError(
            f"{text.label} has {len(tokens):,} tokens, {missing:,} too few for {windows} windows of "
            f"{context_tokens} + {tail} tokens: give more text, or ask for fewer --windows"
        )
    starts = np.linspace(0, len(tokens) - need, windows).astype(int)
    return [np.concatenate([start, tokens[at : at + need]]) for at in starts]


def contexts(engine: LlamaCpp, window: Tokens, lengths: tuple[int, ...], tail_tokens: int) -> Iterator[Exact]:
    """Every context length on one window; all of them share one prefill, since KV does not depend on what follows."""
    longest = max(lengths)
    engine.session.prefill(window[:longest])
    whole = export(engine)
    for count in sorted(set(lengths), reverse=True):
        block = KVBlock(Span(0, count), whole.layers, whole.k[:, :, :count], whole.v[:, :, :count])
        tail = window[count : count + tail_tokens]
        if count < longest:
            engine.session.reserve(count)
            engine.session.inject(block)
            engine.session.open_layers(engine.spec.geometry.layers)
        yield Exact(window[:count], tail, block, reference(engine, tail))


def export(engine: LlamaCpp) -> KVBlock:
    """KV of all the context that the engine holds."""
    return engine.session.export(Span(0, engine.session.context_tokens), Span(0, engine.spec.geometry.layers))


def sample(
    engine: LlamaCpp, codec: Codec, window: int, exact: Exact, groups: Sequence[Span], prepare_s: float
) -> Sample:
    """One rung through real bytes. Encoding takes all cores, as in the cloud; decoding two threads, as at the edge.

    Of a context that is longer than some layers' windows only what is looked at is sent; bits are those of a value that
    is, so what segments hold besides counts as bytes, and not as values.
    """
    geometry, context = engine.spec.geometry, context_id(engine.spec.fingerprint, exact.tokens)
    headers = [
        segment.SegmentHeader(context, codec.rung, chunk, group, _shape(group, geometry))
        for chunk, group in _seen(engine, len(exact.tokens), groups)
    ]

    def encode(header: segment.SegmentHeader) -> bytes:
        return segment.pack(header, codec.encode(_part(exact.block, header.tokens, header.layers)))

    def decode(header: segment.SegmentHeader, frame: bytes) -> None:
        payload = segment.unpack(frame, header)
        engine.session.inject(codec.decode(payload, header.tokens, header.layers, geometry))

    with ThreadPoolExecutor(engine.threads) as pool:
        started = time.perf_counter()
        frames = list(pool.map(encode, headers))
        encode_s = prepare_s + time.perf_counter() - started
    engine.session.reserve(len(exact.tokens))
    decode_s = []
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        for _ in range(_DECODINGS):
            started = time.perf_counter()
            for _ in pool.map(decode, headers, frames):
                pass
            decode_s.append(prepare_s + time.perf_counter() - started)
    engine.session.open_layers(geometry.layers)
    score = compare(engine.session.score(exact.tail), exact.tail, exact.log_probabilities)
    # What refines another rung is a segment of its own, with a header, where a frame here only has a length.
    more_bytes = segment.HEADER.size - 4 if isinstance(codec, Fitted) and codec.base else 0
    size_bytes, tokens = sum(len(frame) + more_bytes for frame in frames), len(exact.tokens)
    rows = sum(tokens - first_seen(tokens, layer_window) for layer_window in engine.spec.windows)
    bits = 8 * size_bytes * geometry.layers / (rows * geometry.values_per_token)
    return Sample(window, tokens, bits, size_bytes / tokens, score, encode_s, statistics.median(decode_s))


def _shape(group: Span, geometry: Geometry) -> KVShape:
    return KVShape(len(group), geometry.kv_heads, geometry.head_dim, geometry.head_dim)


def sent(engine: LlamaCpp, codec: Codec, tokens: Tokens, block: KVBlock, groups: Sequence[Span]) -> int:
    """Have the engine hold a context as it comes out of a rung; how many bytes that took on the wire."""
    geometry, context = engine.spec.geometry, context_id(engine.spec.fingerprint, tokens)
    size_bytes = 0
    engine.session.reserve(len(tokens))
    for chunk, group in _seen(engine, len(tokens), groups):
        payload = codec.encode(_part(block, chunk, group))
        header = segment.SegmentHeader(context, codec.rung, chunk, group, _shape(group, geometry))
        size_bytes += len(segment.pack(header, payload))
        engine.session.inject(codec.decode(payload, chunk, group, geometry))
    engine.session.open_layers(geometry.layers)
    return size_bytes


def cached(engine: LlamaCpp, bits: float, window: int, exact: Exact) -> Sample:
    """llama.cpp's own quantised cache: the context is prefilled with it, as llama.cpp's users do."""
    engine.session.prefill(exact.tokens)
    score = compare(engine.session.score(exact.tail), exact.tail, exact.log_probabilities)
    return Sample(window, len(exact.tokens), bits, bits / 8 * engine.spec.geometry.values_per_token, score)


def _part(block: KVBlock, tokens: Span, layers: Span) -> KVBlock:
    at = (slice(layers.start, layers.stop), slice(None), slice(tokens.start, tokens.stop))
    return KVBlock(tokens, layers, np.ascontiguousarray(block.k[at]), np.ascontiguousarray(block.v[at]))


def _seen(engine: LlamaCpp, tokens: int, groups: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Chunks and groups of a context that something behind it looks at."""
    windows = engine.spec.windows
    every = ((chunk, group) for chunk in chunked(tokens) for group in groups)
    return [(chunk, group) for chunk, group in every if is_seen(tokens, chunk, windows[group.start : group.stop])]
