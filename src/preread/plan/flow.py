"""How fast bytes come from one source, as believed while they come. Pure: times are arguments."""

import math
from dataclasses import dataclass

_SHORTEST_MEMORY_S, _LONGEST_MEMORY_S = 0.1, 0.5
"""What came longer ago than the memory lasts weighs less than half."""

_MEMORY = 1 / 12
"""The memory, as a share of what computing everything would take: who waits for a link that is slower than it was loses
little of that before it shows. A longer one judges a link that stutters better."""

_PRIOR = 1 / 5
"""What was believed beforehand counts as much as having seen it for this share of the memory."""

_LEAST_S = 0.02
"""Bytes come in bursts; no rate is told from less."""

_UNKNOWN_WINDOW, _UNKNOWN_BYTES = 8, 192 * 1024
"""Cells, and bytes, that are under way while the rate is unknown. Two cells at least; but what stands in a slow link's
queue delays everything behind it, and an answer that begins after seconds looks like one that never comes."""

_TURN_S = 0.03
"""Between a byte's arrival and the next request at the other end lie an event loop and a server, on processors that are
busy computing; a round trip measured on an idle machine does not show it."""

_FIRST_TURN_S = 0.1
"""The first answer of a load takes longer to be turned round: the server looks for what nobody asked for lately. Until
then its absence says nothing of the link's rate."""

_EAGER, _AHEAD_S = 1.25, 0.005
"""A link may be somewhat faster than it seems, and the next look at it is some milliseconds away."""

_GROWTH = 2.0
"""A window that is just as large as what was seen to fit would never see more fit, and a link that is not full looks
slow (BBR, Cardwell et al. 2016, keeps twice what fits for the same reason). One that is much larger brings what is
wanted last as early as what is wanted first, since requests share a link evenly."""


@dataclass(slots=True)
class Flow:
    """Recent bytes and the seconds in which they came, both fading.

    Attributes:
        rtt_s: one round trip.
        seen_bytes: all that came in this load.
        heard_s: when some of it came last.
        memory_s: what came longer ago weighs less than half.
    """

    rtt_s: float
    seen_bytes: int
    heard_s: float
    memory_s: float
    _bytes: float
    _seconds: float
    _counted_s: float
    _believed_s: float = 0.0
    _believed_bytes_s: float = 0.0
    _turned_s: float = float("-inf")
    _asked_s: float = float("-inf")

    @classmethod
    def begin(cls, bytes_s: float | None, rtt_s: float, at_s: float, local_s: float) -> "Flow":
        """Nothing has come yet.

        Args:
            bytes_s, rtt_s: the rate and the round trip that are believed; None: no rate is known.
            at_s: now.
            local_s: what computing everything would take.
        """
        memory_s = min(max(_MEMORY * local_s, _SHORTEST_MEMORY_S), _LONGEST_MEMORY_S)
        known_s = 0.0 if bytes_s is None else _PRIOR * memory_s
        return cls(rtt_s, 0, at_s, memory_s, (bytes_s or 0.0) * known_s, known_s, at_s, known_s, bytes_s or 0.0)

    @property
    def bytes_s(self) -> float:
        """Believed rate; 0 where nothing is known: an unknown link carries nothing until it shows otherwise."""
        return self._bytes / max(self._seconds, _LEAST_S) if self._bytes else 0.0

    @property
    def shown_bytes_s(self) -> float:
        """The rate that this load has shown by itself; what is believed where too little came to tell one."""
        seen_s = self._seconds - self._believed_s
        if seen_s < _LEAST_S:
            return self.bytes_s
        return max(0.0, self._bytes - self._believed_s * self._believed_bytes_s) / seen_s

    @property
    def is_limited(self) -> bool:
        """Whether this load began so carefully, as no rate was known, that the link may carry more than was shown.

        What is under way at once comes within a round trip, however fast a link is (BBR calls such samples limited by
        the application, and has them lower nothing).
        """
        return not self._believed_bytes_s and 2 * self.shown_bytes_s * self.rtt_s > _UNKNOWN_BYTES

    def asked(self, at_s: float) -> None:
        """A first request is under way; nothing can come within a round trip, and until it was turned round."""
        self._counted_s = max(self._counted_s, at_s + self.rtt_s)
        self._turned_s = at_s + self.rtt_s + _FIRST_TURN_S
        self._asked_s = at_s

    def advance(self, seen_bytes: int, at_s: float, busy: bool) -> None:
        """So many bytes had come in all; `busy`: something was under way since the last call."""
        new, self.seen_bytes = max(0, seen_bytes - self.seen_bytes), max(seen_bytes, self.seen_bytes)
        self.heard_s = at_s if new else self.heard_s
        passed_s = max(0.0, at_s - self._counted_s)
        if not new and (not busy or at_s < self._turned_s):
            self._counted_s = max(self._counted_s, at_s)
            return
        if not passed_s and not new:
            return
        fading = math.exp(-passed_s / self.memory_s)
        self._bytes = self._bytes * fading + new
        self._seconds = self._seconds * fading + passed_s
        self._believed_s *= fading
        self._counted_s = max(self._counted_s, at_s)

    def window_bytes(self, cell_bytes: float, at_s: float, first_bytes: float | None = None) -> float:
        """How much may be under way: what the link holds, one cell that is being received and one that is due.

        first_bytes: of what was asked for before and is needed sooner, so that no more is asked for than keeps the link
            busy. Until the first answers come, that is what the link will have carried of these and of what follows:
            answers to what is asked for at once come in any order.
        """
        if not self._bytes:
            return min(_UNKNOWN_WINDOW * cell_bytes, max(2 * cell_bytes, _UNKNOWN_BYTES))
        fits_bytes = self.bytes_s * (self.rtt_s + _TURN_S)
        if first_bytes is None:
            return _GROWTH * fits_bytes + 2 * cell_bytes
        carried_bytes = _EAGER * self.bytes_s * (at_s - self._asked_s + _AHEAD_S)
        return min(fits_bytes + cell_bytes, first_bytes + carried_bytes - cell_bytes)
