"""What an edge answers to tokens, with how likely each was, held against the same prompt computed from its start."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from preread.edge.edge import AsyncEdge
from preread.edge.request import Ask, Piece, Timings
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.fit.quality import log_softmax
from preread.testing.families import VOCABULARY

ROUNDING_NATS: Final = 0.02
"""Where cells lie otherwise, sums have another order. What a window or a state lacks makes a difference of tenths."""


@dataclass(frozen=True)
class Said:
    tokens: list[int]
    logprobs: list[float]
    timings: Timings


def words(count: int, seed: int) -> list[int]:
    """Random tokens of a model of `preread.testing.families`."""
    return np.random.default_rng(seed).integers(1, VOCABULARY, count).tolist()


async def said(
    edge: AsyncEdge, prompt: list[int], context: str | None = None, *, answer_tokens: int, local: bool = False
) -> Said:
    """Ask for so many tokens."""
    sampling = Sampling(max_tokens=answer_tokens, min_tokens=answer_tokens, top_logprobs=0)
    tokens, logprobs = list[int](), list[float]()
    async for piece in edge.answer(Ask(prompt=tuple(prompt), context=context, sampling=sampling, local=local)):
        if not isinstance(piece, Piece):
            assert len(tokens) == answer_tokens
            return Said(tokens, logprobs, piece.timings)
        tokens += [odds.id for odds in piece.odds]
        for odds in piece.odds:
            assert odds.logprob is not None
            logprobs.append(odds.logprob)
    raise AssertionError("the answer does not end")


def check(engine: LlamaCpp, found: Said, prompt: list[int]) -> None:
    """Assert that an answer is what comes of the whole prompt when it is computed from its start."""
    tokens, answer = np.array(prompt, np.int32), np.array(found.tokens, np.int32)
    engine.session.prefill(tokens[:-1])
    logs = log_softmax(engine.session.score(np.concatenate([tokens[-1:], answer[:-1]])))
    right = logs[np.arange(len(answer)), answer]
    np.testing.assert_allclose(found.logprobs, right, atol=ROUNDING_NATS)
    assert (logs.max(axis=1) - right).max() <= 2 * ROUNDING_NATS
