"""What of a fake engine's scores becomes an answer: the likeliest tokens, or drawn ones. It knows no cells."""

from typing import Final

import numpy as np
import numpy.typing as npt

from preread.engine.base import Tokens
from preread.engine.sampling import Sampled, Sampling, log_probabilities, reported_probabilities
from preread.errors import EngineError

END: Final = 0
"""The token that ends an answer."""


class FakeChooser:
    """The likeliest token, or a drawn one: the noise of a draw depends on the seed and on how many came before it."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling, self._count, self._given, self._closed = sampling, 0, 0, False

    @property
    def ended(self) -> bool:
        """See `Chooser`."""
        return self._count >= self._sampling.max_tokens

    def choose(self, scores: object, index: int) -> Sampled:
        """See `Chooser`."""
        if self._closed:
            raise EngineError("this answer's chooser was closed")
        row = _row(scores, index).copy()
        if self._count < self._sampling.min_tokens:
            row[END] = -np.inf
        noise = np.zeros(len(row))
        if self._sampling.temperature > 0:  # Gumbel's: the greatest of the sums is a sample
            drawn = np.random.default_rng((self._sampling.seed, self._count)).gumbel(size=len(row))
            noise = drawn * self._sampling.temperature
        token = int((row + noise).argmax())
        self._count += 1
        top = self._sampling.top_logprobs
        odds: tuple[float | None, tuple[tuple[int, float], ...]] = (None, ())
        if self._sampling.reported:
            odds = reported_probabilities(row, token, self._sampling.reported)
        elif top is not None:
            odds = log_probabilities(row, token, top)
        return Sampled(token, b"" if token == END else _piece(token), token == END, *odds)

    def given(self, scores: object, first: int, tokens: Tokens, after: int | None, number: int) -> list[Sampled]:
        """See `Chooser`."""
        steps = [Sampled(int(tokens[0]), _piece(int(tokens[0])), False, given=True)] if number == 0 else []
        following = tokens[1:].tolist() + ([] if after is None else [after])
        for i, token in enumerate(following):
            odds = log_probabilities(_row(scores, first + i), token, self._sampling.top_logprobs or 0)
            steps.append(Sampled(token, _piece(token), False, *odds, given=True))
        begins = number if number == 0 else number + 1
        untold = steps[max(0, self._given - begins) :]
        self._given += len(untold)
        return untold

    def close(self) -> None:
        """See `Chooser`."""
        self._closed = True


def _row(scores: object, index: int) -> npt.NDArray[np.float32]:
    assert isinstance(scores, np.ndarray)
    row: npt.NDArray[np.float32] = scores[index]
    return row


def _piece(token: int) -> bytes:
    return b"<%d>" % token
