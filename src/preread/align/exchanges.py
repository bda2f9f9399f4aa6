"""Questions about a context with a teacher's answers: what a context's KV is taught with, and measured by.

Arithmetic on token ids; no model is known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.errors import UsageError

CANDIDATES: Final = 48
"""Of a teacher's likeliest tokens, how many are kept."""

Tokens = npt.NDArray[np.int32]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question about a context, and how a teacher that had read it answered.

    Attributes:
        prompt: (P,) token ids that follow the context, up to where the answer begins.
        answer: (A,) its token ids, with the one that ends it.
        candidates: (A, C) the teacher's likeliest tokens at each of the answer's positions.
        logprobs: (A, C) theirs, nats; what they leave of 1 is spread over all other tokens.
        losses: (A,) nats that the answer's own tokens cost the teacher.
        behind: so many of the context's tokens precede it, and it sees no more; None: all.
    """

    prompt: Tokens
    answer: Tokens
    candidates: Tokens
    logprobs: Single
    losses: Single
    behind: int | None = None

    def __post_init__(self) -> None:
        count = len(self.answer)
        fits = self.candidates.shape == self.logprobs.shape and self.candidates.ndim == 2
        if not (len(self.prompt) and count and fits and len(self.candidates) == len(self.losses) == count):
            raise UsageError("an exchange has no prompt, no answer, or other rows than its answer")

    def __len__(self) -> int:
        """Tokens that a model reads to predict the answer: all but the last."""
        return len(self.prompt) + len(self.answer) - 1


def told(prompt: Tokens, answer: Tokens, logprobs: Single, behind: int | None = None) -> Exchange:
    """An exchange, by what a teacher said at each of the answer's positions: `logprobs` (A, vocab)."""
    best = np.argpartition(-logprobs, CANDIDATES, axis=1)[:, :CANDIDATES].astype(np.int32)
    losses = -logprobs[np.arange(len(answer)), answer]
    return Exchange(prompt, answer, best, np.take_along_axis(logprobs, best, axis=1), losses, behind)


@dataclass(frozen=True, slots=True)
class Packed:
    """Exchanges side by side, as one batch behind a context of N tokens: each sees the context before it, and itself.

    Attributes:
        tokens, positions: (R,).
        sees: (R, N + R) whether a row attends to a context's token or to another row.
        predicts: rows after which the answers' tokens follow, of all exchanges in turn.
    """

    tokens: Tokens
    positions: npt.NDArray[np.int64]
    sees: npt.NDArray[np.bool_]
    predicts: npt.NDArray[np.int64]


def packed(exchanges: Sequence[Exchange], context_tokens: int) -> Packed:
    """One batch of at least one exchange behind a context of so many tokens."""
    rows = sum(map(len, exchanges))
    sees = np.zeros((rows, context_tokens + rows), np.bool_)
    at, positions, predicts = 0, [], []
    for one in exchanges:
        own, before = np.arange(len(one)), context_tokens if one.behind is None else one.behind
        sees[at : at + len(one), :before] = True
        sees[at : at + len(one), context_tokens + at : context_tokens + at + len(one)] = own[:, None] >= own
        positions.append(before + own)
        predicts.append(at + own[len(one.prompt) - 1 :])
        at += len(one)
    tokens = np.concatenate([np.concatenate([one.prompt, one.answer[:-1]]) for one in exchanges])
    return Packed(tokens, np.concatenate(positions), sees, np.concatenate(predicts))


def targets(exchanges: Sequence[Exchange]) -> tuple[Tokens, Single]:
    """What is to be predicted at all answers' positions: token ids and the teacher's shares of them, which sum to 1.

    Both are (sum of A, C) for the most candidates that any exchange has; others are filled up with shares of nothing.
    """
    width = max(one.candidates.shape[1] for one in exchanges)
    ids, shares = [], []
    for one in exchanges:
        missing = ((0, 0), (0, width - one.candidates.shape[1]))
        likely = np.exp(one.logprobs - one.logprobs.max(axis=1, keepdims=True))
        ids.append(np.pad(one.candidates, missing))
        shares.append(np.pad(likely / likely.sum(axis=1, keepdims=True), missing))
    return np.concatenate(ids), np.concatenate(shares)


def batches(exchanges: Sequence[Exchange], rows: int) -> list[list[Exchange]]:
    """The exchanges in their order, in batches that end with the one that reaches so many rows."""
    found: list[list[Exchange]] = []
    room = 0
    for one in exchanges:
        if room <= 0:
            found.append([])
            room = rows
        found[-1].append(one)
        room -= len(one)
    return found
