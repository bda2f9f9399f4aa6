"""A circuit breaker: a source that fails again and again is left alone for a while. Pure: times are arguments.

closed (it may be asked) → open (it may not) after `FAILURES`, or once it is silent → half-open after a backoff: one
request may try. Its success closes the breaker, its failure or silence opens it for twice as long.
"""

from dataclasses import dataclass
from typing import Final

FAILURES: Final = 3
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """The health of one source; every change makes a new value.

    Attributes:
        failures: in a row. Requests that were under way together fail together: they count once.
        failed_s: when the last of them that counts was.
        trying: a request that tries the half-open breaker is under way.
    """

    failures: int = 0
    failed_s: float = float("-inf")
    trying: bool = False

    @property
    def tripped(self) -> bool:
        """Whether it is open or half-open: nothing has worked since it opened."""
        return self.failures >= FAILURES

    @property
    def retry_s(self) -> float:
        """From when on it may be asked again; in the past while it is closed."""
        if not self.tripped:
            return float("-inf")
        return self.failed_s + min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(self.failures - FAILURES, 16))

    def allows(self, at_s: float) -> bool:
        """Whether a request may be sent now."""
        return not self.trying and (not self.tripped or at_s >= self.retry_s)

    def asked(self) -> "Breaker":
        """A request was sent."""
        return Breaker(self.failures, self.failed_s, True) if self.tripped else self

    def succeeded(self) -> "Breaker":
        """A request was answered."""
        return Breaker() if self.failures else self

    def failed(self, asked_s: float, at_s: float) -> "Breaker":
        """A request that had been sent at `asked_s` failed."""
        if asked_s < self.failed_s:
            return self  # it was under way when the last one that counts failed
        return Breaker(self.failures + 1, at_s, False)

    def silent(self, at_s: float) -> "Breaker":
        """Nothing came for long, whatever was asked for: that is as bad as failing again and again."""
        return Breaker(max(self.failures + 1, FAILURES), at_s, False)
