"""What this edge believes about itself and its link, from what it has seen. Recent observations weigh more."""

import time

from preread.plan.cost import Link, Prefill

_WEIGHT = 0.4
_RTT_S = 0.05
_SMALLEST_TRANSFER_BYTES = 64 * 1024  # below it a transfer measures the round trip, not the rate
_SMALLEST_PREFILL_TOKENS = 32
_POSITION = 5e-5  # by so much of itself a token becomes dearer with every token before it
_DECODE_BYTES_S = 30e6
_TRUST_S = 30.0  # links change; after so long without a transfer nothing is known


class Estimates:
    """Prefill rate in tokens a second, link rate in bytes a second, round trip in seconds."""

    def __init__(self, prefill_tokens_s: float) -> None:
        self.prefill_tokens_s = prefill_tokens_s
        self._bytes_s: float | None = None
        self._rtt_s: float | None = None
        self._seen_s = 0.0
        self._decode_bytes_s: dict[str, float] = {}

    @property
    def link(self) -> Link | None:
        """The link, or None when nothing has been transferred lately."""
        if self._bytes_s is None or time.monotonic() - self._seen_s > _TRUST_S:
            return None
        return Link(self._bytes_s, self._rtt_s or 0.0)

    @property
    def rtt_s(self) -> float:
        """The link's round trip; a guess while nothing is known."""
        return _RTT_S if self._rtt_s is None else self._rtt_s

    @property
    def prefill(self) -> Prefill:
        """What computing takes."""
        return Prefill(1 / self.prefill_tokens_s, _POSITION / self.prefill_tokens_s)

    def decode_bytes_s(self, rung: str) -> float:
        """How fast segments of a rung are decoded and injected."""
        return self._decode_bytes_s.get(rung, _DECODE_BYTES_S)

    def prefilled(self, tokens: int, seconds: float, start: int = 0) -> None:
        """A prefill of so many tokens from position `start` on took so long."""
        if tokens >= _SMALLEST_PREFILL_TOKENS and seconds > 0:
            rate = tokens * (1 + _POSITION * (start + tokens / 2)) / seconds
            self.prefill_tokens_s += _WEIGHT * (rate - self.prefill_tokens_s)

    def decoded(self, rung: str, size_bytes: int, seconds: float) -> None:
        """Segments of so many bytes were decoded and injected in so long."""
        if size_bytes and seconds > 0:
            before = self._decode_bytes_s.get(rung, size_bytes / seconds)
            self._decode_bytes_s[rung] = before + _WEIGHT * (size_bytes / seconds - before)

    def flowed(self, size_bytes: int, bytes_s: float) -> None:
        """So many bytes came, lately at this rate."""
        if size_bytes >= _SMALLEST_TRANSFER_BYTES:
            self._seen_s = time.monotonic()
            self._bytes_s = bytes_s if self._bytes_s is None else self._bytes_s + _WEIGHT * (bytes_s - self._bytes_s)

    def transferred(self, size_bytes: int, seconds: float) -> None:
        """So many bytes arrived in so long, the first round trip included."""
        if size_bytes < _SMALLEST_TRANSFER_BYTES or seconds <= 0:
            return
        self._seen_s = time.monotonic()
        rate = size_bytes / max(seconds - (self._rtt_s or 0.0), seconds / 10)
        self._bytes_s = rate if self._bytes_s is None else self._bytes_s + _WEIGHT * (rate - self._bytes_s)

    def gave_up(self, size_bytes: int, seconds: float) -> None:
        """A transfer was given up as too slow; whatever was believed before was too good."""
        self._seen_s, self._bytes_s = time.monotonic(), size_bytes / max(seconds, 1e-3)

    def round_trip(self, seconds: float) -> None:
        """A small request was answered after so long."""
        self._rtt_s = seconds if self._rtt_s is None else min(seconds, self._rtt_s + _WEIGHT * (seconds - self._rtt_s))
