"""The alignment's story: two models read the same text, and it is asked which of their layers read the same of it.

each window → what each layer of the small model reads → the same of the large one, at the matching tokens → similarity
of all pairs of layers → the best monotone path. What a layer reads is the residual stream, and all that it keeps as K
and V is linear in that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preread.align.path import monotone
from preread.align.similarity import Double, Single, similarities
from preread.align.spans import matched
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.probes import inputs
from preread.errors import EngineError, UsageError
from preread.fit.sample import windows
from preread.fit.text import Text

Report = Callable[[str, int, int], None]
"""Told a stage ("read"), how much of it is done, and how much there is."""

SAMPLE_WINDOWS = 8
SINK_TOKENS = 4
"""At a window's start, left out: a model's first tokens are far larger than all others, and say nothing of the text."""

EVERY = 4
"""Of the other tokens, one in so many is compared: 1,016 in all. Neighbours are alike anyway."""

FIRST_LARGE = 1
"""The large model's first layer has read no other token yet: nothing is matched with it."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which layers of two models read the same of a text.

    Attributes:
        small, large: names of the models.
        text: what was read; `tokens`: how many tokens of it were compared.
        similarity: (small layers, large layers), by `align.similarity.cka`; 0 for large layers that nothing is matched
            with.
        path: for each small layer the large one that it is matched with.
    """

    small: str
    large: str
    text: str
    tokens: int
    similarity: Double
    path: tuple[int, ...]


def align(small: LlamaCpp, large: LlamaCpp, text: Text, progress: Report, count: int = SAMPLE_WINDOWS) -> Alignment:
    """Align the layers of two models, whatever their tokenizers. What the engines held is gone.

    Args:
        small: whose KV can be streamed. Of the large one only what it computes is read.
        text: at least 4 windows of 640 tokens.
        count: windows to read, if there are so many.

    Raises:
        UsageError: the text is too short.
        EngineError: what a model computes cannot be read, or an engine failed.
        Cancelled: somebody called `cancel` of an engine.
    """
    check(small)
    chosen, some = windows(small, text, count), slice(SINK_TOKENS, None, EVERY)
    mine: list[list[Single]] = []
    its: list[list[Single]] = []
    for number, (tokens, _) in enumerate(chosen):
        theirs, at = matching(small, large, tokens)
        mine.append([stream[some] for stream in inputs(small, tokens, range(small.spec.geometry.layers))])
        its.append([stream[at[some]] for stream in inputs(large, theirs, large_layers(large))])
        progress("read", number + 1, len(chosen))
    alike = similarities(_standard(mine), _standard(its))
    path = tuple(FIRST_LARGE + at for at in monotone(alike))
    similarity = np.pad(alike, ((0, 0), (FIRST_LARGE, 0)))
    counted = sum(len(layers[0]) for layers in mine)
    return Alignment(small.spec.name, large.spec.name, text.label, counted, similarity, path)


def check(small: LlamaCpp) -> None:
    """Refuse a small model whose KV cannot be read.

    Raises:
        EngineError: it is so.
    """
    if small.no_rows:
        raise EngineError(f"KV of {small.spec.name} cannot be read: {small.no_rows}")


def large_layers(engine: LlamaCpp) -> range:
    """Layers of a large model that something may be matched with."""
    return range(FIRST_LARGE, engine.spec.geometry.layers)


def matching(small: LlamaCpp, large: LlamaCpp, tokens: Tokens) -> tuple[Tokens, npt.NDArray[np.intp]]:
    """A text's tokens as the large model reads it, and for each of the small one's the one that it is matched with.

    Models with one tokenizer read the very same tokens. Otherwise the bytes are tokenised anew: control tokens, as
    those of a chat's frame, stand for none, and the large model does not read them.

    Raises:
        UsageError: the tokens stand for no text, or not for so much that the large model's window has room for it.
    """
    if small.spec.vocabulary == large.spec.vocabulary:
        return tokens, np.arange(len(tokens))
    pieces = [small.piece(int(token)) for token in tokens]
    theirs = large.tokenize(b"".join(pieces).decode(errors="ignore"), special=False, start=True)
    if not len(theirs):
        raise UsageError(f"the text has nothing that {large.spec.name} could read")
    return theirs, matched([len(piece) for piece in pieces], [len(large.piece(int(token))) for token in theirs])


def _standard(sample: list[list[Single]]) -> list[Single]:
    """Each layer's rows of all windows, every channel of unit variance: a few are hundreds of times the others."""
    layers = [np.concatenate(layer) for layer in zip(*sample, strict=True)]
    return [rows / np.maximum(rows.std(axis=0), 1e-12) for rows in layers]
