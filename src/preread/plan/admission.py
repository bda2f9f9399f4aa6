"""Who is let in, and who comes next, when more is asked of a server than it can do at once.

`Admission` bounds how much is inside, requests or bytes of them: of all callers, and of each. `Wasted` knows whose
requests came to nothing lately. `Rounds` orders what waits for one thing: callers in turn, and each caller's requests
in the order in which they came, so that who asks much waits for itself. (Fair queueing: J. Nagle, RFC 970, 1985.) A
caller is whoever has a key of its own, or an address where there are no keys. Pure: the time is an argument, and
nothing waits here.
"""

from collections import Counter, OrderedDict, deque
from typing import Final

from preread.errors import Overloaded

_HALF_S: Final = 5.0
_MOST_CALLERS: Final = 1024


class Admission:
    """How much of something callers have inside a server.

    One caller has at most half of `most`. When all have `most` together, who has nothing inside is let in all the same,
    until there is twice as much: those who ask much cannot keep others out.
    """

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most = what, most
        self._inside: Counter[str] = Counter()

    def enter(self, caller: str, amount: int, retry_after_s: float) -> None:
        """Let so much in. `retry_after_s`: when there may be room again.

        Raises:
            Overloaded: there is no room, for this caller or at all.
        """
        own, all = self._inside[caller], self._inside.total()
        if own and own + amount > max(1, self._most // 2):
            message = f"you have {own} {self._what} waiting or being answered: wait for one to end"
            raise Overloaded(message, retry_after_s=retry_after_s, by_caller=True)
        if all and all + amount > (self._most if own else 2 * self._most):
            message = f"{all} {self._what} are waiting or being answered, and there is no room for more"
            raise Overloaded(message, retry_after_s=retry_after_s)
        self._inside[caller] += amount

    def of(self, caller: str) -> int:
        """How much a caller has inside."""
        return self._inside[caller]

    def leave(self, caller: str, amount: int) -> None:
        """So much of what was let in has ended."""
        self._inside[caller] -= amount
        if not self._inside[caller]:
            del self._inside[caller]


class Wasted:
    """Requests of each caller that were refused or given up, the older ones counting less: half after 5 seconds.

    Of a thousand callers, those with the fewest are forgotten.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # of each caller how many, and when that was

    def note(self, caller: str, now_s: float) -> None:
        """One more."""
        self._seen[caller] = (self.of(caller, now_s) + 1.0, now_s)
        if len(self._seen) > _MOST_CALLERS:
            most = sorted(self._seen, key=lambda one: self.of(one, now_s), reverse=True)[: _MOST_CALLERS // 2]
            self._seen = {one: self._seen[one] for one in most}

    def of(self, caller: str, now_s: float) -> float:
        """How many there were lately."""
        count, at_s = self._seen.get(caller, (0.0, now_s))
        return float(count * 0.5 ** ((now_s - at_s) / _HALF_S))


class Rounds:
    """What waits for one thing, and the order in which it gets it. A ticket is a number that the user chooses."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[int]] = OrderedDict()  # whose turn it is next stands first

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def join(self, caller: str, ticket: int) -> None:
        """A request waits from now on."""
        self._waiting.setdefault(caller, deque()).append(ticket)

    def leave(self, caller: str, ticket: int) -> None:
        """A request that waits does so no more."""
        tickets = self._waiting[caller]
        tickets.remove(ticket)
        if not tickets:
            del self._waiting[caller]

    def take(self, last: str | None) -> tuple[str, int] | None:
        """Who gets it next, after `last` had it, who comes after all others; None where nobody waits."""
        if not self._waiting:
            return None
        if last is not None and last in self._waiting:
            self._waiting.move_to_end(last)
        caller = next(iter(self._waiting))
        ticket = self._waiting[caller].popleft()
        if not self._waiting[caller]:
            del self._waiting[caller]
        return caller, ticket
