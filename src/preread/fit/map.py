"""The mapping's story: what the small model keeps of a text is learnt from what the large one keeps of it.

both read the same windows → similarity of layers → monotone path → for each mapped layer: ridge regression, its rank by
windows that it was not fitted on → the small model's loss on these windows when it reads mapped KV.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preread.align import mapping_bytes
from preread.align.mapping import Mapping, features
from preread.align.mapping_bytes import Kept
from preread.align.path import monotone, window
from preread.align.ridge import Linear, Moments, Single, explained, fit
from preread.align.similarity import similarities
from preread.codec import fitted
from preread.codec.profile import normalised
from preread.codec.rope import Rope, rotate, unrotate
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.align import check, represented
from preread.fit.quality import Score, Summary, measure, reference, summary
from preread.fit.sample import WINDOW_TOKENS, Window, hold, rope, take, windows
from preread.fit.text import Text
from preread.values import KVBlock, Span

Report = Callable[[str, int, int], None]
"""Told a stage ("read", "map" or "measure"), how much of it is done, and how much there is."""

FIT_WINDOWS, HELD_OUT_WINDOWS = 32, 6
COMPARED_WINDOWS = 8
"""Windows that layers are compared on."""

SINK_TOKENS = 4
"""Tokens at the start that stay exact: sinks are far larger than all else, and cost nothing to compute."""

LARGE_LAYERS = 3
"""How many large layers a mapped one is read from. Seven explained no more (Qwen 1.5B to 0.5B, 28,000 tokens)."""

KNOWN_LAYERS = 4
"""How many exact small layers are read. They take a third of the error away (the same)."""

RIDGE = 1e-3
RANKS = (32, 64, 128, 256, 1 << 16)
_AS_GOOD = 0.002
"""A rank that explains so little less than the best one is as good."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A mapping, and what it is known to do.

    Attributes:
        mapping: from a split on.
        path: for each small layer the large one that it is aligned with.
        explained: of each mapped layer, the share of held-out variance.
        held_out: what reading mapped KV changes, on windows that were not fitted on.
    """

    mapping: Mapping
    path: tuple[int, ...]
    explained: tuple[float, ...]
    held_out: Summary


@dataclass(frozen=True, slots=True)
class Read:
    """What both models keep of one window.

    Attributes:
        small: the window as the small model read it.
        rows, large: of each layer of the small and the large model, (tokens, …): K before rotation, and V.
        embeddings: of the small model, (tokens, width).
    """

    small: Window
    rows: tuple[Single, ...]
    large: tuple[Single, ...]
    embeddings: Single


def fit_mappings(
    small: LlamaCpp, large: LlamaCpp, text: Text, splits: Sequence[int], progress: Report
) -> tuple[Fit, ...]:
    """Fit a mapping for each split: layers below it stay exact. What the engines held is gone.

    Args:
        small: opened to score `sample.TAIL_TOKENS` tokens.
        large: of the same tokenizer.
        text: at least 4 windows of 640 tokens; 38 are used.
        splits: each 0 to the small model's layers - 1.

    Raises:
        UsageError: the models' tokenizers differ, or the text is too short.
        EngineError: a model's KV cannot be read, or an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    check(small, large)
    chosen = windows(small, text, FIT_WINDOWS + HELD_OUT_WINDOWS)
    held_out = max(1, len(chosen) * HELD_OUT_WINDOWS // (FIT_WINDOWS + HELD_OUT_WINDOWS))
    apart = {int(at) for at in np.linspace(1, len(chosen) - 1, held_out)}
    reads: list[Read] = []
    known: list[Read] = []
    compared: list[tuple[list[Single], list[Single]]] = []
    for number, tokens in enumerate(chosen):
        mine, theirs = (_taken(engine, tokens) for engine in (small, large))
        (known if number in apart else reads).append(read(small, large, mine, theirs.block))
        if len(compared) < COMPARED_WINDOWS:
            compared.append((represented(small, [mine]), represented(large, [theirs])))
        progress("read", number + 1, len(chosen))
    path = _path(compared)
    done, total = 0, sum(small.spec.geometry.layers - split for split in splits)
    found = []
    for split in splits:
        below = Span(max(0, split - KNOWN_LAYERS), split)
        maps, shares = [], []
        around = [window(path, layer, LARGE_LAYERS, large.spec.geometry.layers) for layer in range(len(path))][split:]
        for layer, near in enumerate(around, split):
            mapped, share = _layer(reads, known, layer, near, below)
            maps.append(mapped)
            shares.append(share)
            done += 1
            progress("map", done, total)
        found.append((Mapping(split, below, tuple(around), tuple(maps)), tuple(shares)))
    scores = _scores(small, known, [mapping for mapping, _ in found], progress)
    return tuple(Fit(mapping, path, shares, summary(its)) for (mapping, shares), its in zip(found, scores, strict=True))


def load(path: Path) -> Kept:
    """A mapping's file.

    Raises:
        UsageError: it cannot be read.
        CorruptData: it is no mapping.
    """
    try:
        return mapping_bytes.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the mapping {path}: {error.strerror or error}") from error


def read(small: LlamaCpp, large: LlamaCpp, mine: Window, theirs: KVBlock) -> Read:
    """What both models keep of a window, as mappings want it."""
    return Read(
        mine,
        tuple(layer_rows(mine.block, rope(small))),
        tuple(layer_rows(theirs, rope(large))),
        normalised(small.embeddings(mine.tokens)),
    )


def layer_rows(block: KVBlock, rotation: Rope) -> list[Single]:
    """Each layer's rows (tokens, 2 · kv_heads · head_dim): K before rotation, and V."""
    k, v = unrotate(block.k, block.tokens, rotation), block.v.astype(np.float32)
    return [fitted.vectors(k[i : i + 1], v[i : i + 1]) for i in range(len(block.layers))]


def mapped(mapping: Mapping, read: Read, rotation: Rope) -> KVBlock:
    """The mapped layers of a window as the small model would cache them; the first `SINK_TOKENS` are exact."""
    exact, tokens = read.small.block, read.small.block.tokens
    k, v = (half[mapping.split :].copy() for half in (exact.k, exact.v))
    _, heads, count, dim = k.shape
    for i, layer in enumerate(range(mapping.layers.start, mapping.layers.stop)):
        rows = mapping.rows(layer, read.large, read.rows, read.embeddings)
        halves = rows.reshape(count, 2, heads, dim).transpose(1, 2, 0, 3)
        k[i][:, SINK_TOKENS:] = _finite(rotate(halves[0], tokens, rotation))[:, SINK_TOKENS:]
        v[i][:, SINK_TOKENS:] = _finite(halves[1])[:, SINK_TOKENS:]
    return KVBlock(tokens, mapping.layers, k, v)


def _finite(rows: Single) -> Single:
    return np.clip(rows, -65504, 65504)  # what float16 holds: a linear map knows no bounds


def _taken(engine: LlamaCpp, tokens: tuple[Tokens, Tokens]) -> Window:
    (window,) = take(engine, [tokens], lambda _: None)
    return window


def _path(compared: Sequence[tuple[list[Single], list[Single]]]) -> tuple[int, ...]:
    sides = zip(*compared, strict=True)
    mine, theirs = ([np.concatenate(layer) for layer in zip(*side, strict=True)] for side in sides)
    return monotone(similarities(mine, theirs))


def _layer(
    reads: Sequence[Read], held_out: Sequence[Read], layer: int, near: Span, below: Span
) -> tuple[Linear, float]:
    """A layer's linear map, of the smallest rank that is as good as any, and what it explains on held-out windows."""
    sums = []
    for group in (reads, held_out):
        moments: Moments | None = None
        for one in group:
            x = features(one.large, near, one.rows, below, one.embeddings)[SINK_TOKENS:]
            moments = moments or Moments(x.shape[1], one.rows[layer].shape[1])
            moments.add(x, one.rows[layer][SINK_TOKENS:])
        assert moments is not None, "there are windows of both kinds"
        sums.append(moments)
    # Each target counts as much as it varies: an error in a channel costs what it adds to that.
    weights = 1 / np.maximum(sums[0].covariances[2], 1e-9)
    linears = fit(sums[0], weights, RIDGE, RANKS)
    shares = [explained(linear, sums[1], weights) for linear in linears]
    best = next(n for n, share in enumerate(shares) if share >= max(shares) - _AS_GOOD)
    return linears[best], shares[best]


def _scores(
    small: LlamaCpp, held_out: Sequence[Read], mappings: Sequence[Mapping], progress: Report
) -> list[list[Score]]:
    scores: list[list[Score]] = [[] for _ in mappings]
    for number, one in enumerate(held_out):
        hold(small, one.small.block)
        exact = reference(small, one.small.tail)
        for mapping, its in zip(mappings, scores, strict=True):
            below = Span(0, mapping.split)
            blocks = [mapped(mapping, one, rope(small))]
            if mapping.split:
                block = one.small.block
                blocks.append(KVBlock(block.tokens, below, block.k[: mapping.split], block.v[: mapping.split]))
            its.append(measure(small, WINDOW_TOKENS, one.small.tail, exact, blocks))
        progress("measure", number + 1, len(held_out))
    return scores
