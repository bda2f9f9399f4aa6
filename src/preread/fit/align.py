"""The alignment's story: two models read the same text, and it is asked which of their layers keep the same of it.

read with the small model -> read with the large one -> similarity of all pairs of layers -> the best monotone path.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from preread.align.path import monotone
from preread.align.similarity import Double, Single, similarities
from preread.codec.rope import Rope, unrotate
from preread.engine.llamacpp import LlamaCpp
from preread.errors import EngineError, UsageError
from preread.fit.sample import Window, rope, take, windows
from preread.fit.text import Text

Report = Callable[[str, int, int], None]
"""Told a stage ("read"), how much of it is done, and how much there is."""

SAMPLE_WINDOWS = 8
SINK_TOKENS = 4
"""At a window's start, left out: a model's first tokens are far larger than all others, and say nothing of the text."""

EVERY = 4
"""Of the other tokens, one in so many is compared: 1,016 in all. Neighbours are alike anyway."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which layers of two models keep the same of a text.

    Attributes:
        small, large: names of the models.
        text: what was read; `tokens`: how many tokens of it were compared.
        similarity: (small layers, large layers), by `align.similarity.cka`.
        path: for each small layer the large one that it is matched with.
    """

    small: str
    large: str
    text: str
    tokens: int
    similarity: Double
    path: tuple[int, ...]


def align(small: LlamaCpp, large: LlamaCpp, text: Text, progress: Report) -> Alignment:
    """Align the layers of two models that have one tokenizer. What the engines held is gone.

    Args:
        text: at least 4 windows of 640 tokens; 8 are read.

    Raises:
        UsageError: the models' tokenizers differ, or the text is too short.
        EngineError: a model's KV cannot be read, or an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    check(small, large)
    chosen = windows(small, text, SAMPLE_WINDOWS)
    total = 2 * sum(len(tokens) for tokens, _ in chosen)

    def layers(engine: LlamaCpp, before: int) -> list[Single]:
        return represented(engine, take(engine, chosen, lambda done: progress("read", before + done, total)))

    mine = layers(small, 0)
    similarity = similarities(mine, layers(large, total // 2))
    return Alignment(small.spec.name, large.spec.name, text.label, len(mine[0]), similarity, monotone(similarity))


def check(small: LlamaCpp, large: LlamaCpp) -> None:
    """Refuse two models whose tokens cannot be compared one to one, or whose KV cannot be read.

    Raises:
        UsageError, EngineError: it is so.
    """
    for engine in (small, large):
        if engine.no_injection:
            raise EngineError(f"KV of {engine.spec.name} cannot be read: {engine.no_injection}")
    if small.spec.vocabulary != large.spec.vocabulary:
        raise UsageError(
            f"{small.spec.name} and {large.spec.name} have different tokenizers: their tokens cannot be compared "
            "one to one; choose two models of one family"
        )


def represented(engine: LlamaCpp, sample: list[Window]) -> list[Single]:
    """What each layer keeps of a sample's tokens: K before rotation and V, either of unit variance, (tokens, channels).

    Positions are taken out of K, so that layers are not called alike because both know where a token stands.
    """
    rotation = rope(engine)
    return [
        np.concatenate([_rows(window, layer, rotation) for window in sample])
        for layer in range(engine.spec.geometry.layers)
    ]


def _rows(window: Window, layer: int, rotation: Rope) -> Single:
    block, some = window.block, slice(SINK_TOKENS, None, EVERY)
    k = unrotate(block.k[layer], block.tokens, rotation)[:, some]
    v = block.v[layer].astype(np.float32)[:, some]
    halves = [half.transpose(1, 0, 2).reshape(half.shape[1], -1) for half in (k, v)]
    return np.concatenate([half / max(float(half.std(axis=0).mean()), 1e-12) for half in halves], axis=1)
