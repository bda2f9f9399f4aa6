"""What this edge believes about itself and its link, from what it has seen. Recent observations weigh more."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from preread.plan.cost import Link, Prefill

_WEIGHT = 0.4
_RTT_S = 0.05
_SMALLEST_TRANSFER_BYTES = 64 * 1024  # below it a transfer measures the round trip, not the rate
_SHORTEST_FLOW_S, _FEWEST_BYTES = 0.3, 16 * 1024  # a slow link brings no more beside a short context's prefill
_SMALLEST_PREFILL_TOKENS, _SMALLEST_PROMPT_TOKENS = 32, 8
_SHORT_TOKENS = 64
"""Of batches of fewer tokens each takes longer: weights are read and unpacked for all of them together."""
_POSITION, _POSITION_SPREAD = 1e-4, 3e-4
"""By so much of itself a token becomes dearer with every token before it, as long as nothing was measured: of short
prompts with llama.cpp's own attention it was 7e-4."""
_SCATTER, _DRIFT = 0.15, 0.1
"""How much one measurement is off, and how much a machine changes from one to the next, as shares."""
_DECODE_BYTES_S = 10e6
_PLAIN_DECODE_BYTES_S = {"lossless": 300e6, "q8": 200e6, "q4": 100e6}
"""How fast one processor decodes and injects, as long as nothing was measured: a quarter to two fifths of what was seen
of Qwen2.5-0.5B. Rungs that are not of a profile have less to be undone for each byte."""
_TRUST_S = 30.0  # links change; after so long without a transfer nothing is known


@dataclass(slots=True)
class _Pace:
    """Seconds a token takes: `token_s`, and `position_s` more with every token before it; how sure either is.

    A Kalman filter over the two numbers (Kalman, 1960): what a measurement tells is shared out by how little is known
    of each, so that contexts of one length teach the pace, and those of several also what positions cost.
    """

    token_s: float
    position_s: float
    _token_var: float
    _position_var: float
    _both_var: float = 0.0

    @classmethod
    def guessed(cls, token_s: float) -> "_Pace":
        """Nothing was measured but `token_s`, and that on another day."""
        return cls(token_s, _POSITION * token_s, (0.3 * token_s) ** 2, (_POSITION_SPREAD * token_s) ** 2)

    def took(self, tokens: int, position: float, seconds: float) -> None:
        """So many tokens, whose mean position is given, took so long."""
        seen_s = seconds / tokens
        self._token_var += (_DRIFT * self.token_s) ** 2
        known = self._token_var + position * self._both_var, self._both_var + position * self._position_var
        spread = known[0] + position * known[1] + (_SCATTER * seen_s) ** 2
        off_s = seen_s - self.token_s - position * self.position_s
        self.token_s = max(self.token_s + known[0] / spread * off_s, 0.1 * self.token_s)
        self.position_s = max(self.position_s + known[1] / spread * off_s, 0.0)
        self._token_var -= known[0] * known[0] / spread
        self._both_var -= known[0] * known[1] / spread
        self._position_var -= known[1] * known[1] / spread

    @property
    def prefill(self) -> Prefill:
        """As the plan takes it."""
        return Prefill(self.token_s, self.position_s)


class Estimates:
    """What computing takes, link rate in bytes a second, round trip in seconds.

    Args:
        prefill_tokens_s: rate at a context's start.
        clock: seconds that only grow.
    """

    def __init__(self, prefill_tokens_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._long = _Pace.guessed(1 / prefill_tokens_s)
        self._short = _Pace.guessed(1 / prefill_tokens_s)
        self._bytes_s: float | None = None
        self._rtt_s: float | None = None
        self._seen_s = 0.0
        self._decode_bytes_s: dict[str, float] = {}

    @property
    def link(self) -> Link | None:
        """The link, or None when nothing has been transferred lately."""
        return self.last_link if self._clock() - self._seen_s <= _TRUST_S else None

    @property
    def last_link(self) -> Link | None:
        """The link as it was when it was seen last, however long ago; None: never."""
        return None if self._bytes_s is None else Link(self._bytes_s, self._rtt_s or 0.0)

    @property
    def rtt_s(self) -> float:
        """The link's round trip; a guess while nothing is known."""
        return _RTT_S if self._rtt_s is None else self._rtt_s

    @property
    def prefill(self) -> Prefill:
        """What computing a context takes."""
        return self._long.prefill

    def prompt_s(self, position: int, tokens: int) -> float:
        """What computing a prompt of so many tokens takes that begins at this position."""
        pace = self._short if tokens < _SHORT_TOKENS else self._long
        return pace.prefill.seconds(position, tokens)

    def decode_bytes_s(self, rung: str) -> float:
        """How fast one processor decodes and injects segments of a rung."""
        return self._decode_bytes_s.get(rung, _PLAIN_DECODE_BYTES_S.get(rung, _DECODE_BYTES_S))

    def forget_link(self) -> None:
        """Nothing is known any more of the link's rate."""
        self._bytes_s = None

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A prefill of a context's first so many tokens took so long."""
        if tokens >= _SMALLEST_PREFILL_TOKENS and seconds > 0:
            self._long.took(tokens, tokens / 2, seconds)

    def prompted(self, position: int, tokens: int, seconds: float) -> None:
        """A prompt of so many tokens, which began at this position, took so long.

        Of very short ones, nothing is told: what they take is mostly not their own.
        """
        if tokens >= _SMALLEST_PROMPT_TOKENS and seconds > 0:
            pace = self._short if tokens < _SHORT_TOKENS else self._long
            pace.took(tokens, position + tokens / 2, seconds)

    def decoded(self, rung: str, size_bytes: int, seconds: float) -> None:
        """Segments of so many bytes were decoded and injected in so much processor time."""
        if size_bytes and seconds > 0:
            before = self._decode_bytes_s.get(rung, size_bytes / seconds)
            self._decode_bytes_s[rung] = before + _WEIGHT * (size_bytes / seconds - before)

    def flowed(self, size_bytes: int, bytes_s: float) -> None:
        """So many bytes came, lately at this rate."""
        if size_bytes >= min(_SMALLEST_TRANSFER_BYTES, max(_SHORTEST_FLOW_S * bytes_s, _FEWEST_BYTES)):
            self._seen_s = self._clock()
            self._bytes_s = bytes_s if self._bytes_s is None else self._bytes_s + _WEIGHT * (bytes_s - self._bytes_s)

    def transferred(self, size_bytes: int, seconds: float) -> None:
        """So many bytes arrived in so long, the first round trip included."""
        if size_bytes < _SMALLEST_TRANSFER_BYTES or seconds <= 0:
            return
        self._seen_s = self._clock()
        rate = size_bytes / max(seconds - (self._rtt_s or 0.0), seconds / 10)
        self._bytes_s = rate if self._bytes_s is None else self._bytes_s + _WEIGHT * (rate - self._bytes_s)

    def gave_up(self, size_bytes: int, seconds: float) -> None:
        """A transfer was given up as too slow; whatever was believed before was too good."""
        self._seen_s, self._bytes_s = self._clock(), size_bytes / max(seconds, 1e-3)

    def round_trip(self, seconds: float) -> None:
        """A small request was answered after so long."""
        self._rtt_s = seconds if self._rtt_s is None else min(seconds, self._rtt_s + _WEIGHT * (seconds - self._rtt_s))
