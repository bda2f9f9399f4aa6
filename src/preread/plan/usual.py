"""How long a source usually takes, so that what takes longer is asked for elsewhere too (hedged requests: Dean and
Barroso, The Tail at Scale, 2013). Pure: times are arguments."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

_REMEMBERED: Final = 32
_FEW: Final = 8
_SHARE: Final = 0.95
_SLACK: Final = 2.0
"""Processors that are busy delay answers by more than a network does."""
_SHORTEST_S: Final = 0.25


@dataclass(slots=True)
class Usual:
    """Seconds that the last answers took."""

    answers_s: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def note(self, seconds: float) -> None:
        """An answer took so long."""
        self.answers_s.append(seconds)

    def late_s(self, longest_s: float) -> float:
        """After how long an answer is late: twice what 95 of 100 take; `longest_s` at most, and while few are known."""
        if len(self.answers_s) < _FEW:
            return longest_s
        ordered = sorted(self.answers_s)
        usual_s = ordered[math.ceil(_SHARE * len(ordered)) - 1]
        return min(longest_s, max(_SHORTEST_S, _SLACK * usual_s))
