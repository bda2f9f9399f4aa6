"""How a context is cut into chunks of tokens: one segment of a rung is one of these, of a group of layers."""

from preread.engine.llamacpp import BATCH_TOKENS
from preread.engine.tiles import TOGETHER
from preread.values import Span

CHUNK_TOKENS = 128
SMALLEST_CHUNK_TOKENS = 64
"""Chunks are what an edge may compute instead of loading. In batches of 64 to 512 tokens llama.cpp computes the very
same KV; so a chunk is shorter only where prefill has a batch of its own for it."""

SHORT_TOKENS = 512
"""Contexts of up to so many tokens end in one of the smallest chunks: chunks are what computing and loading share out,
and a slow link that could bring a fifth of such a context meanwhile is no help where the last chunk is half of it."""

MOST_CHUNKS = 16
"""Chunks of longer contexts are longer, up to a batch: every segment costs an edge a request, some milliseconds of a
processor that it also computes the prompt with, and a sixteenth of a context is little to load or compute too much."""

GROUP_LAYERS = 2
"""Few layers, so that little is left to compute after the last. A profile says by itself how many it codes together."""


def chunked(tokens: int) -> list[Span]:
    """Chunks of a context of so many tokens, none of them shorter than `SMALLEST_CHUNK_TOKENS` without need.

    They begin where tokens are multiplied together anew: else what an edge computes before one has other last bits.
    """
    step = CHUNK_TOKENS
    while step < BATCH_TOKENS and tokens > MOST_CHUNKS * step:
        step *= 2
    short = CHUNK_TOKENS < tokens <= SHORT_TOKENS
    end = (tokens - SMALLEST_CHUNK_TOKENS) // TOGETHER * TOGETHER if short else tokens
    spans = _spans(end, step)
    if len(spans) > 1 and len(spans[-1]) < SMALLEST_CHUNK_TOKENS and spans[-1].start % BATCH_TOKENS:
        spans[-2:] = [Span(spans[-2].start, end)]
    return spans if end == tokens else [*spans, Span(end, tokens)]


def _spans(stop: int, step: int) -> list[Span]:
    return [Span(start, min(start + step, stop)) for start in range(0, stop, step)]
