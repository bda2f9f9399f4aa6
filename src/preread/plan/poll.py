"""How an edge learns that something has changed: when it listens, how often it asks else, and what that takes.

Its cloud tells of changes as they come, over a connection that stays open. What an idle edge takes in a month has a
bound, `MONTH_BYTES`, headers of TCP and IP counted: its link may be paid for by the byte. Pure.
"""

from dataclasses import dataclass
from typing import Final

SYNC_S: Final = 60.0
"""How often the catalogue is asked for where the cloud does not tell of changes, unless somebody says otherwise."""

SILENCE_S: Final = 30.0
"""A cloud says something at least so often: what is between closes connections that are silent for a minute or so."""

DEAF_S: Final = 45.0
"""After so much silence the connection is taken to be dead."""

WARM_S: Final = 30.0
"""Connections in use are touched so often, so that no server in between closes them: a new one costs a round trip."""

IN_USE_S: Final = 300.0
"""Connections are in use for so long after something came over them."""

SPREAD_S: Final = 5.0
"""What a change makes an edge fetch ahead of need, it fetches within so long: a thousand edges hear of it at once."""

MONTH_S: Final = 30 * 86_400.0
MONTH_BYTES: Final = 20_000_000
"""What an idle edge takes at most in a month, at defaults, where its cloud tells of changes."""

SILENT_BYTES: Final = 174
"""What a word of nothing takes: 3 bytes, in a chunk of 8, in a TLS record of 30, in a packet of 102, and its receipt of
72: IPv6, and TCP with timestamps."""

CONNECTION_BYTES: Final = 10_000
"""What a new connection takes: TLS with a chain of certificates, request, answer, and all of their headers."""

ASKING_BYTES: Final = 1_000
"""What asking takes over a connection that is open, where nothing has changed."""

_FIRST_RETRY_S: Final = 1.0
_GROWTH: Final = 1.25
"""A cloud that answered with errors for some time is asked again within about a quarter of that."""
_MOST_PAUSE_S: Final = 60.0
_RATE_BYTES_S: Final = ASKING_BYTES / SYNC_S
_MOST_AT_ONCE: Final = 60


def idle_bytes(connections: int) -> float:
    """What an idle edge takes in a month in which it has to make so many connections anew, if its cloud tells."""
    return MONTH_S / SILENCE_S * SILENT_BYTES + connections * CONNECTION_BYTES


def listens(every_s: float) -> bool:
    """Whether to listen at all: not where an operator wants the cloud to be asked more rarely than by default."""
    return every_s <= SYNC_S


def listen_pause_s(failures: int, chance: float) -> float:
    """Seconds until to listen again after the connection has ended: at most 1 after the first failure, then ever more.

    Args:
        failures: how many connections in a row ended before anything was heard, and the one that ended just now; 0: the
            cloud was away, and is there again.
        chance: from 0 to 1, drawn anew each time, so that those who lost a cloud together do not come back together.
    """
    return min(_MOST_PAUSE_S, 2.0 ** min(failures - 1, 10)) * (0.25 + 0.75 * chance)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes for connections that have to be made anew: in the long run no more than asking by the clock would take.

    Something on the way may end each connection after a minute. Asking now and then is cheaper then than listening.

    Attributes:
        left_bytes: at `at_s`, seconds of any clock.
    """

    left_bytes: float
    at_s: float

    @classmethod
    def full(cls, at_s: float) -> "Allowance":
        """Enough for so many connections at once as a day of bad luck takes."""
        return cls(float(_MOST_AT_ONCE * CONNECTION_BYTES), at_s)

    def wait_s(self, now_s: float, size_bytes: int = CONNECTION_BYTES) -> float:
        """Seconds until there is enough for a connection, or for so many bytes."""
        return max(0.0, size_bytes - self._at(now_s)) / _RATE_BYTES_S

    def spent(self, now_s: float, size_bytes: int = CONNECTION_BYTES) -> "Allowance":
        """After a connection was made, or so many bytes have gone."""
        return Allowance(self._at(now_s) - size_bytes, now_s)

    def _at(self, now_s: float) -> float:
        return min(float(_MOST_AT_ONCE * CONNECTION_BYTES), self.left_bytes + _RATE_BYTES_S * (now_s - self.at_s))


@dataclass(frozen=True, slots=True)
class Tries:
    """How asking the cloud went lately: when to ask again follows from it.

    A cloud that answers with errors is asked ever more rarely. One that gives no answer is burdened by nothing: it is
    looked for each second for the first ten minutes, and then as often as it would be asked by the clock; but not where
    an operator wants it to be asked more rarely than by default.

    Attributes:
        looks: what is left for looking for it.
        failures: how often asking has failed since it last did not.
        answered: whether there was an answer the last time, if only an error.
    """

    looks: Allowance
    failures: int = 0
    answered: bool = True

    @classmethod
    def none(cls, now_s: float) -> "Tries":
        """Before the first."""
        return cls(Allowance.full(now_s))

    def succeeded(self) -> "Tries":
        """The cloud answered as it should."""
        return Tries(self.looks)

    def failed(self, now_s: float, *, answered: bool) -> "Tries":
        """One more has failed, at `now_s`, seconds of any clock; `answered`: the cloud said so."""
        looks = self.looks if answered else self.looks.spent(now_s, ASKING_BYTES)
        return Tries(looks, self.failures + 1, answered)

    def pause_s(self, every_s: float, away: bool = False, chance: float = 0.5) -> float:
        """Seconds from the end of the last to the next.

        Args:
            every_s: how often to ask a cloud that is there; no pause is longer, but for the chance.
            away: whether somebody else has found since then that it is not.
            chance: from 0 to 1, drawn anew each time, so that edges that began together do not ask together.
        """
        failures = max(self.failures, away)
        if not failures:
            pause_s = every_s
        elif self.answered or not listens(every_s):
            pause_s = _FIRST_RETRY_S * _GROWTH ** min(failures - 1, 100)
        else:
            pause_s = max(_FIRST_RETRY_S, self.looks.wait_s(self.looks.at_s, ASKING_BYTES))
        return min(every_s, pause_s) * (0.8 + 0.4 * chance)


def warm_due(now_s: float, warmed_s: float | None, streamed_s: float | None) -> bool:
    """Whether to touch the connections now: once at the start, and while they are in use.

    Args:
        now_s, warmed_s, streamed_s: now, when they were touched last and when something came over them last, seconds of
            one clock; None: never.
    """
    if warmed_s is None:
        return True
    return streamed_s is not None and now_s - streamed_s < IN_USE_S and now_s - warmed_s >= WARM_S
