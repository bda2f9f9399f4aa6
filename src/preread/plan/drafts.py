"""Guessing an answer's next tokens from what was read: those that came after the same few tokens before.

Once found, the place is followed as long as it is right, also where the same few tokens came elsewhere later.

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
MOST_DRAFTS: Final = 7
"""So that a step brings at most eight tokens of an answer: who leaves meanwhile costs no more than these."""

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

    def after(self, run: Run) -> int | None:
        """Where the token is that came after a run when it came last; None: it never came."""
        return self._next.get(run)


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
        self._place: _Place | None = None

    def chosen(self, token: int) -> None:
        """A token of the answer has come."""
        place, right = self._place, self._place is not None and self._place.token == token
        if place is not None:
            self._right += _RATE * (right - self._right)
        self._own.append(token)
        self._place = place.next if place is not None and right and place.next.is_there else self._found()

    def guesses(self, most: int) -> Sequence[int]:
        """The next tokens as they are guessed, up to so many."""
        return [] if self._place is None else self._place.tokens(most)

    def proposed(self, beside: int, cost: StepCost) -> Sequence[int]:
        """Those that pay in a step which has so many tokens besides the answer's own."""
        return [] if self._place is None else self._place.tokens(worth(self._right, beside, cost))

    def _found(self) -> "_Place | None":
        """Where the last tokens came last: in what was said, or else in the context."""
        run = tuple(self._own.tokens[-RUN:])
        for runs in (self._own, self._context):
            if (at := runs.after(run)) is not None:
                return _Place(runs, at)
        return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Token number `at` of what was read: the one that is guessed."""

    runs: Runs
    at: int

    @property
    def token(self) -> int:
        return self.runs.tokens[self.at]

    @property
    def next(self) -> "_Place":
        return _Place(self.runs, self.at + 1)

    @property
    def is_there(self) -> bool:
        return self.at < len(self.runs.tokens)

    def tokens(self, most: int) -> Sequence[int]:
        return self.runs.tokens[self.at : self.at + most]


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
