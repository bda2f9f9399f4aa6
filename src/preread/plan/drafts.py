"""Guessing an answer's next tokens from what was read: those that came after the same few tokens before.

An answer about a document quotes it. Guesses are computed in the step of the token before them, and checked there, so a
right one costs much less than a step of its own, and a wrong one is computed for nothing (prompt lookup decoding;
Saxena, 2023). How often guesses are right is seen without making any; whether one pays follows from that, and from what
wider steps take on this machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from preread.plan.step_cost import StepCost

RUN: Final = 3
"""A guess is what came after so many tokens like the last ones."""
MOST_DRAFTS: Final = 12

_RATE: Final = 0.25
_LEAST_GAIN: Final = 1.03
"""Tokens a second with guesses ÷ without: less is not worth it, as the numbers are not exact."""

Run = tuple[int, ...]


class Runs:
    """Where each run of `RUN` tokens came last. `tokens` are those that were given and appended."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._next: dict[Run, int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """One more token."""
        if len(self.tokens) >= RUN:
            self._next[tuple(self.tokens[-RUN:])] = len(self.tokens)
        self.tokens.append(token)

    def after(self, run: Run, most: int) -> Sequence[int]:
        """What came after a run when it came last, up to so many tokens; nothing if it never came."""
        at = self._next.get(run)
        return [] if at is None else self.tokens[at : at + most]


class Drafts:
    """Guesses for one answer.

    Args:
        context: runs of the context that it is about.
        last: the context's last tokens.
        prompt: the tokens behind it.
    """

    def __init__(self, context: Runs, last: Sequence[int], prompt: Iterable[int]) -> None:
        self._context, self._own = context, Runs([*last[-RUN:], *prompt])
        self._right = 0.5  # how often guesses are
        self._guess: int | None = None

    def chosen(self, token: int) -> None:
        """A token of the answer has come."""
        if self._guess is not None:
            self._right += _RATE * ((token == self._guess) - self._right)
        self._own.append(token)
        self._guess = next(iter(self.guesses(1)), None)

    def guesses(self, most: int) -> Sequence[int]:
        """The next tokens as they are guessed: from what was said, or else from the context; none without a guess."""
        run = tuple(self._own.tokens[-RUN:])
        return self._own.after(run, most) or self._context.after(run, most)

    def proposed(self, beside: int, cost: StepCost) -> Sequence[int]:
        """Those that pay in a step which has so many tokens besides the answer's own."""
        return self.guesses(worth(self._right, beside, cost)) if self._guess is not None else []


@dataclass(frozen=True, slots=True)
class _Rate:
    tokens_s: float
    count: int


def worth(right: float, beside: int, cost: StepCost) -> int:
    """How many guesses pay that are right this often, each if those before it are."""
    best = _Rate((beside + 1) / cost.seconds(beside + 1) * _LEAST_GAIN, 0)
    expected, all_right = float(beside + 1), 1.0
    for count in range(1, MOST_DRAFTS + 1):
        all_right *= right
        expected += all_right
        tokens_s = expected / cost.seconds(beside + 1 + count)
        if tokens_s > best.tokens_s:
            best = _Rate(tokens_s, count)
    return best.count
