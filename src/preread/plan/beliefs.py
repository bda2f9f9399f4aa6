"""What an edge believes of its machine and of the sources of its segments, from what it has seen.

Pure: times are arguments, and each observation makes a new value. Recent observations weigh more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from preread.plan.cost import Link, Prefill
from preread.plan.flow import Flow
from preread.plan.health import Breaker
from preread.plan.task import Source

CLOUD: Final = "cloud"
DISK: Final = "disk"

_WEIGHT: Final = 0.4
_RTT_S: Final = 0.05
_SMALLEST_TRANSFER_BYTES: Final = 64 * 1024
"""Below it a transfer measures the round trip, not the rate."""
_SHORTEST_FLOW_S: Final = 0.3
_FEWEST_BYTES: Final = 16 * 1024
"""A slow link brings no more beside a short context's prefill."""
_SILENCE_S: Final = 0.3
"""No link is called silent sooner."""
_SMALLEST_PREFILL_TOKENS: Final = 32
_SMALLEST_PROMPT_TOKENS: Final = 8
_SHORT_TOKENS: Final = 64
"""Of batches of fewer tokens each takes longer: weights are read and unpacked for all of them together."""
_POSITION: Final = 1e-4
_POSITION_SPREAD: Final = 3e-4
"""By so much of itself a token becomes dearer with every token before it, as long as nothing was measured: of short
prompts with llama.cpp's own attention it was 7e-4."""
_SCATTER: Final = 0.15
"""How much one measurement is off, as a share."""
_DRIFT: Final = 0.1
"""How much a machine changes from one measurement to the next, as a share."""
_DECODE_BYTES_S: Final = 10e6
_PLAIN_DECODE_BYTES_S: Final[Mapping[str, float]] = {"lossless": 300e6, "q8": 200e6, "q4": 100e6}
"""How fast one processor decodes and injects, as long as nothing was measured: a quarter to two fifths of what was seen
of Qwen2.5-0.5B. Rungs that are not of a profile have less to be undone for each byte."""
_TRUST_S: Final = 30.0
"""Links change; after so long without a transfer nothing is known."""
_ON_DISK: Final = Source(200e6, 0.001, silence_s=3.0)
_NEIGHBOUR: Final = Source(10e6, 0.01, silence_s=3.0)
"""What is believed before anything was seen. A disk may have to spin up, a neighbour to ask the cloud itself."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds a token takes: `token_s`, and `position_s` more with every token before it; how sure either is.

    A Kalman filter over the two numbers (Kalman, 1960): what a measurement tells is shared out by how little is known
    of each, so that contexts of one length teach the pace, and those of several also what positions cost.
    """

    token_s: float
    position_s: float
    token_var: float
    position_var: float
    both_var: float = 0.0

    @classmethod
    def guessed(cls, token_s: float) -> Self:
        """Nothing was measured but `token_s`, and that on another day."""
        return cls(token_s, _POSITION * token_s, (0.3 * token_s) ** 2, (_POSITION_SPREAD * token_s) ** 2)

    def took(self, tokens: int, position: float, seconds: float) -> "Pace":
        """So many tokens, whose mean position is given, took so long."""
        seen_s = seconds / tokens
        token_var = self.token_var + (_DRIFT * self.token_s) ** 2
        of_token, of_position = token_var + position * self.both_var, self.both_var + position * self.position_var
        spread = of_token + position * of_position + (_SCATTER * seen_s) ** 2
        off_s = seen_s - self.token_s - position * self.position_s
        return Pace(
            max(self.token_s + of_token / spread * off_s, 0.1 * self.token_s),
            max(self.position_s + of_position / spread * off_s, 0.0),
            token_var - of_token * of_token / spread,
            self.position_var - of_position * of_position / spread,
            self.both_var - of_token * of_position / spread,
        )

    @property
    def prefill(self) -> Prefill:
        """As the plan takes it."""
        return Prefill(self.token_s, self.position_s)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a load has heard of one source.

    Attributes:
        name: of the source.
        flow: what came of it, and how fast.
        breaker: its health now.
        asked: whether it was asked for anything.
    """

    name: str
    flow: Flow
    breaker: Breaker
    asked: bool


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is believed now.

    Attributes:
        contexts, prompts: what computing takes: in long batches, and in short ones.
        bytes_s: the cloud's link, when it was seen last; None: never. `at_least`: it is only known to be no slower.
        measured_rtt_s: its round trip; None: not measured.
        seen_s: when `bytes_s` was seen.
        breaker: the cloud's health, as loads found it.
        others: what is believed of the sources that are not the cloud, by name.
        decoded_bytes_s: how fast one processor decodes and injects segments, by rung, where that was measured.
    """

    contexts: Pace
    prompts: Pace
    bytes_s: float | None = None
    at_least: bool = False
    measured_rtt_s: float | None = None
    seen_s: float = float("-inf")
    breaker: Breaker = field(default_factory=Breaker)
    others: Mapping[str, Source] = field(default_factory=dict)
    decoded_bytes_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_machine(cls, prefill_tokens_s: float) -> Self:
        """Nothing is known but the rate of prefill at a context's start."""
        pace = Pace.guessed(1 / prefill_tokens_s)
        return cls(pace, pace)

    # What follows

    def link(self, at_s: float) -> Link | None:
        """The link, or None when nothing has been transferred lately."""
        return self.last_link if at_s - self.seen_s <= _TRUST_S else None

    @property
    def last_link(self) -> Link | None:
        """The link as it was when it was seen last, however long ago; None: never."""
        return None if self.bytes_s is None else Link(self.bytes_s, self.measured_rtt_s or 0.0)

    @property
    def rtt_s(self) -> float:
        """The link's round trip; a guess while nothing is known."""
        return _RTT_S if self.measured_rtt_s is None else self.measured_rtt_s

    def source(self, name: str, at_s: float) -> Source:
        """What is believed of a source of this name."""
        if name == CLOUD:
            link = self.link(at_s)
            return Source(None if link is None else link.bytes_s, self.rtt_s, self.breaker)
        return self.others.get(name, _ON_DISK if name == DISK else _NEIGHBOUR)

    @property
    def prefill(self) -> Prefill:
        """What computing a context takes."""
        return self.contexts.prefill

    def prompt_s(self, position: int, tokens: int) -> float:
        """What computing a prompt of so many tokens takes that begins at this position."""
        pace = self.prompts if tokens < _SHORT_TOKENS else self.contexts
        return pace.prefill.seconds(position, tokens)

    def decode_bytes_s(self, rung: str) -> float:
        """How fast one processor decodes and injects segments of a rung."""
        return self.decoded_bytes_s.get(rung, _PLAIN_DECODE_BYTES_S.get(rung, _DECODE_BYTES_S))

    # What is seen

    def prefilled(self, tokens: int, seconds: float) -> "Beliefs":
        """A prefill of a context's first so many tokens took so long."""
        if tokens < _SMALLEST_PREFILL_TOKENS or seconds <= 0:
            return self
        return replace(self, contexts=self.contexts.took(tokens, tokens / 2, seconds))

    def prompted(self, position: int, tokens: int, seconds: float) -> "Beliefs":
        """A prompt of so many tokens, which began at this position, took so long.

        Of very short ones, nothing is told: what they take is mostly not their own.
        """
        if tokens < _SMALLEST_PROMPT_TOKENS or seconds <= 0:
            return self
        middle = position + tokens / 2
        if tokens < _SHORT_TOKENS:
            return replace(self, prompts=self.prompts.took(tokens, middle, seconds))
        return replace(self, contexts=self.contexts.took(tokens, middle, seconds))

    def decoded(self, rung: str, size_bytes: int, seconds: float) -> "Beliefs":
        """Segments of so many bytes were decoded and injected in so much processor time."""
        if not size_bytes or seconds <= 0:
            return self
        seen = size_bytes / seconds
        before = self.decoded_bytes_s.get(rung, seen)
        return replace(self, decoded_bytes_s={**self.decoded_bytes_s, rung: before + _WEIGHT * (seen - before)})

    def flowed(self, size_bytes: int, bytes_s: float, at_s: float, *, limited: bool = False) -> "Beliefs":
        """So many bytes came over the link, lately at this rate; limited: it may carry more."""
        if size_bytes < min(_SMALLEST_TRANSFER_BYTES, max(_SHORTEST_FLOW_S * bytes_s, _FEWEST_BYTES)):
            return self
        before, unsure = self.bytes_s, self.bytes_s is None or self.at_least
        if before is None or (self.at_least and not limited):
            before = bytes_s
        if limited:
            return replace(self, bytes_s=max(before, bytes_s), at_least=unsure or bytes_s > before, seen_s=at_s)
        return replace(self, bytes_s=before + _WEIGHT * (bytes_s - before), at_least=False, seen_s=at_s)

    def answered(self, rtt_s: float) -> "Beliefs":
        """The cloud answered a small request after so long: it is well."""
        before_s = rtt_s if self.measured_rtt_s is None else self.measured_rtt_s
        now_s = min(rtt_s, before_s + _WEIGHT * (rtt_s - before_s))
        return replace(self, measured_rtt_s=now_s, breaker=Breaker())

    def loaded(self, heard: Sequence[Heard], lasted_s: float, at_s: float) -> "Beliefs":
        """A load has ended that lasted so long."""
        now = self
        for one in heard:
            if one.name != CLOUD:
                source = replace(self.source(one.name, at_s), bytes_s=one.flow.bytes_s, breaker=one.breaker)
                now = replace(now, others={**now.others, one.name: source})
                continue
            now = replace(now, breaker=one.breaker)
            if one.flow.seen_bytes:  # what was believed before has its weight already
                flow = one.flow
                now = now.flowed(flow.seen_bytes, flow.shown_bytes_s, at_s, limited=flow.is_limited)
            elif one.asked and lasted_s > _SILENCE_S + 3 * one.flow.rtt_s:
                now = replace(now, bytes_s=0.0, seen_s=at_s)  # whatever was believed before was too good
        return now

    def without_link(self) -> "Beliefs":
        """Nothing is known any more of the link's rate."""
        return replace(self, bytes_s=None)
