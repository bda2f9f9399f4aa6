"""The mapping's story: what the small model keeps of a text is learnt from what the large one makes of it.

align the two → both read the same windows → ridge regression from what a few aligned large layers read, and what the
small model's layer at the split reads, to the small layers' KV; its rank by windows that it was not fitted on → the
small model's loss on these windows when it reads mapped KV.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from preread.align import mapping_bytes
from preread.align.mapping import Mapping, Read, chosen, features, of_large
from preread.align.mapping_bytes import Kept
from preread.align.ridge import Linear, Moments, Single, fit
from preread.codec import fitted
from preread.codec.profile import normalised
from preread.codec.rope import Ropes, rotate, unrotate
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.probes import inputs
from preread.fit import files
from preread.fit.align import SAMPLE_WINDOWS, align, matching
from preread.fit.kept import kept, name
from preread.fit.quality import Score, Summary, compare, reference, summary
from preread.fit.sample import hold, windows
from preread.fit.text import Text
from preread.values import KVBlock, Span

Report = Callable[[str, int, int], None]
"""Told a stage ("align", "read", "map" or "measure"), how much of it is done, and how much there is."""

WINDOWS = 64
_HELD_OUT = 8
"""One window in so many is not fitted on."""

SINK_TOKENS = 4
"""Tokens at the start that stay exact: sinks are far larger than all else, and cost nothing to compute."""

LARGE_LAYERS = 4
RIDGE, OWN_RIDGE = 3e-3, 3e-4
"""As a share of each feature's variance, of large layers' and of the small model's own. More explains more of other
text and serves it worse: keys that shrink towards their mean are told apart less. From 78,000 tokens (Qwen 1.5B to
0.5B, deep half, 22 windows) 0.1 and 0.03 leave 12.4 % of K unexplained at KL 0.074, 0.03 for all 12.6 % at 0.072, these
two 12.7 % at 0.066, a tenth of them 12.8 % at 0.066."""

_RANK_PARTS = (8, 4, 2, 1)
"""Ranks to try, as parts of the targets."""

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


def fit_mappings(
    small: LlamaCpp,
    large: LlamaCpp,
    text: Text,
    splits: Sequence[int],
    progress: Report,
    count: int = WINDOWS,
    keep: Path | None = None,
) -> tuple[Fit, ...]:
    """Fit a mapping for each split: layers below it stay exact. What the engines held is gone.

    Args:
        small: opened to score `sample.TAIL_TOKENS` tokens.
        large: may have another tokenizer.
        text: at least 4 windows of 640 tokens.
        splits: each 0 to the small model's layers - 1.
        count: windows to read, if there are so many.
        keep: a folder for what the two read, where a fit that was ended finds it again: 14 MB a window for models of
            1.5 and 0.5 billion weights.

    Raises:
        UsageError: the text is too short, or the folder cannot be written.
        EngineError: what a model computes cannot be read, or an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    alike = align(small, large, text, lambda _, *at: progress("align", *at), min(count, SAMPLE_WINDOWS))
    path = alike.path
    reads = {split: chosen(path, split, LARGE_LAYERS) for split in splits}
    layers = sorted({layer for some in reads.values() for layer in some})
    sample = windows(small, text, count)
    sums: dict[int, Moments] = {}
    held_out: list[tuple[Read, Tokens]] = []
    models = small.spec.fingerprint, large.spec.fingerprint
    for number, (tokens, tail) in enumerate(sample):
        make = partial(read, small, large, tokens, splits, layers)
        one = make() if keep is None else kept(keep / name(models, tokens, splits, layers), make)
        if number % _HELD_OUT == 1:
            held_out.append((one, tail))
        else:
            for split, some in reads.items():
                x, y = features(one, split, some)[SINK_TOKENS:], targets(one.block, small.ropes, split)[SINK_TOKENS:]
                sums.setdefault(split, Moments(x.shape[1], y.shape[1])).add(x, y)
        progress("read", number + 1, len(sample))
    unseen = [one for one, _ in held_out]
    found = []
    for number, (split, some) in enumerate(reads.items()):
        linear, shares = _best(small, sums.pop(split), unseen, split, some)
        widths = unseen[0].embeddings.shape[1], unseen[0].large[layers[0]].shape[1]
        found.append((Mapping(split, some, widths, linear), shares))
        progress("map", number + 1, len(reads))
    scores = _scores(small, held_out, [mapping for mapping, _ in found], progress)
    return tuple(Fit(mapping, path, shares, summary(its)) for (mapping, shares), its in zip(found, scores, strict=True))


def load(path: Path) -> Kept:
    """A mapping's file.

    Raises:
        UsageError: it cannot be read.
        CorruptData: it is no mapping.
    """
    return mapping_bytes.loads(files.read(path))


def read(
    small: LlamaCpp,
    large: LlamaCpp,
    tokens: Tokens,
    splits: Iterable[int],
    layers: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> Read:
    """What both models make of a context, which `small` then holds.

    Args:
        tokens: the small model's.
        splits: of the mappings that are to be made of it; `layers`: of the large model, that they read.
        progress: is told how many tokens were read, of twice as many.

    Raises:
        UsageError: the context does not fit either model's window.
        EngineError: what a model computes cannot be read, or an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    theirs, at = matching(small, large, tokens)
    count = len(tokens)
    streams = inputs(large, theirs, layers, lambda done: progress(done * count // len(theirs)) if progress else None)
    its = {layer: normalised(stream[at]) for layer, stream in zip(layers, streams, strict=True)}
    inner = [split for split in splits if split]
    mine = inputs(small, tokens, inner, lambda done: progress(count + done) if progress else None)
    known = {split: normalised(stream) for split, stream in zip(inner, mine, strict=True)}
    block = small.session.export(Span(0, count), Span(0, small.spec.geometry.layers))
    return Read(block, known, its, normalised(small.embeddings(tokens)))


def targets(block: KVBlock, ropes: Ropes, split: int) -> Single:
    """Rows (tokens, layers · 2 · kv_heads · head_dim) of layers from the split on: of each K before rotation, and V."""
    k, v = unrotate(block.k[split:], block.tokens, ropes[split:]), block.v[split:].astype(np.float32)
    return np.concatenate([fitted.vectors(k[i : i + 1], v[i : i + 1]) for i in range(len(k))], axis=1)


def mapped(mapping: Mapping, read: Read, ropes: Ropes) -> KVBlock:
    """The mapped layers as the small model would cache them; the first `SINK_TOKENS` are exact."""
    exact = read.block
    k, v = exact.k[mapping.split :].copy(), exact.v[mapping.split :].copy()
    layers, heads, count, dim = k.shape
    rows = mapping.rows(read).reshape(count, layers, 2, heads, dim).transpose(1, 2, 3, 0, 4)
    turned = rotate(rows[:, 0], exact.tokens, ropes[mapping.split :])
    k[:, :, SINK_TOKENS:] = _finite(turned)[:, :, SINK_TOKENS:]
    v[:, :, SINK_TOKENS:] = _finite(rows[:, 1])[:, :, SINK_TOKENS:]
    return KVBlock(exact.tokens, Span(mapping.split, mapping.split + layers), k, v)


def _finite(rows: Single) -> Single:
    return np.clip(rows, -65504, 65504)  # what float16 holds: a linear map knows no bounds


def _best(
    small: LlamaCpp, sums: Moments, held_out: Sequence[Read], split: int, reads: tuple[int, ...]
) -> tuple[Linear, tuple[float, ...]]:
    """The linear map of the smallest rank that is as good as any, and what it explains of each layer held out."""
    # Each target counts as much as it varies: an error in a channel costs what it adds to that.
    weights = 1 / np.maximum(sums.covariances[2], 1e-9)
    ridges = np.full(len(sums.means[0]), OWN_RIDGE)
    ridges[: of_large(held_out[0], reads)] = RIDGE
    linears = fit(sums, weights, ridges, tuple(max(1, len(weights) // part) for part in _RANK_PARTS))
    errors, variances = [np.zeros(len(weights)) for _ in linears], np.zeros(len(weights))
    for one in held_out:
        x, y = features(one, split, reads)[SINK_TOKENS:], targets(one.block, small.ropes, split)[SINK_TOKENS:]
        variances += np.square(y - y.mean(axis=0)).sum(axis=0)
        for linear, error in zip(linears, errors, strict=True):
            error += np.square(y - linear(x)).sum(axis=0)
    layers = small.spec.geometry.layers - split
    shares = [1 - (error / np.maximum(variances, 1e-9)).reshape(layers, -1).mean(axis=1) for error in errors]
    best = next(n for n, share in enumerate(shares) if share.mean() >= max(map(np.mean, shares)) - _AS_GOOD)
    return linears[best], tuple(map(float, shares[best]))


def _scores(
    small: LlamaCpp, held_out: Sequence[tuple[Read, Tokens]], mappings: Sequence[Mapping], progress: Report
) -> list[list[Score]]:
    scores: list[list[Score]] = [[] for _ in mappings]
    for number, (one, tail) in enumerate(held_out):
        hold(small, one.block)
        exact = reference(small, tail)
        for mapping, its in zip(mappings, scores, strict=True):
            small.session.inject(one.block)
            small.session.inject(mapped(mapping, one, small.ropes))
            its.append(compare(small.session.score(tail), tail, exact))
        progress("measure", number + 1, len(held_out))
    return scores
