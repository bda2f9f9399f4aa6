"""Links whose rate changes: cellular, Wi-Fi and satellite, drawn from a seed. Pure.

These are assumptions, not recordings: simple Markov models whose numbers were set by hand, so that they show what the
named publications report of such links. Each is piecewise constant: a `Step` says for how long, and how the link is.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from preread.errors import UsageError
from preread.testing.toxics import Link, link_from_json


@dataclass(frozen=True, slots=True)
class Step:
    """The link for so many seconds. Raises UsageError for a duration that is not above 0."""

    seconds: float
    link: Link

    def __post_init__(self) -> None:
        if not (isinstance(self.seconds, (int, float)) and 0 < self.seconds < float("inf")):
            raise UsageError(f"seconds must be a number > 0, not {self.seconds!r}")


Trace = tuple[Step, ...]


def cellular(seed: int, seconds: float) -> Trace:
    """A phone network: a Markov chain of four states, and within each a rate that is drawn anew every half second.

    After Winstein et al., "Stochastic Forecasts Achieve High Throughput and Low Delay over Cellular Networks" (NSDI
    2013), whose LTE recordings change by a factor of ten within seconds and have outages of seconds; round trips and
    rates are of the order of Raca et al., "Beyond Throughput: a 4G LTE Dataset" (MMSys 2018). States are good (40
    Mbit/s), fair (12), poor (2) and none, with mean stays of 5, 4, 2.5 and 0.8 s; rates are log-normal around these
    with a sigma of 0.35; round trips are 45, 60, 120 ms.
    """
    states = {
        "good": (40.0, 45.0, 5.0),
        "fair": (12.0, 60.0, 4.0),
        "poor": (2.0, 120.0, 2.5),
        "none": (0.0, 120.0, 0.8),
    }
    follow = {
        "good": ("fair", "fair", "fair", "poor"), "fair": ("good", "good", "poor"),
        "poor": ("fair", "fair", "fair", "none"), "none": ("poor", "fair"),
    }  # fmt: skip

    def steps(source: random.Random) -> Iterator[Step]:
        state = "fair"
        while True:
            mbps, rtt_ms, stay_s = states[state]
            left_s = source.expovariate(1 / stay_s)
            while left_s > 0:
                part_s = min(left_s, 0.5)
                yield _step(part_s, mbps * source.lognormvariate(0.0, 0.35), rtt_ms)
                left_s -= 0.5
            state = source.choice(follow[state])

    return _cut(steps(random.Random(f"cellular {seed}")), seconds)


def wifi(seed: int, seconds: float) -> Trace:
    """A wireless LAN with outages: the two-state chain of Gilbert (Bell System Technical Journal 39, 1960).

    Good for 6 s on average, with 30 to 90 Mbit/s drawn anew every second, and a round trip of 8 ms; then nothing for
    0.4 s on average, and for 2 to 4 s at one outage in fifteen, as when a station roams.
    """

    def steps(source: random.Random) -> Iterator[Step]:
        while True:
            left_s = source.expovariate(1 / 6)
            while left_s > 0:
                yield _step(min(left_s, 1.0), source.uniform(30, 90), 8)
                left_s -= 1.0
            out_s = source.uniform(2, 4) if source.random() < 1 / 15 else source.expovariate(1 / 0.4)
            yield _step(out_s, 0, 8)

    return _cut(steps(random.Random(f"wifi {seed}")), seconds)


def satellite(seed: int, seconds: float) -> Trace:
    """Satellites in low orbit, to which terminals are assigned anew every 15 s.

    That is what Mohan et al., "A Multifaceted Look at Starlink Performance" (WWW 2024) found, with rate and round trip
    changing at these moments. Here 20 to 150 Mbit/s and 30 to 60 ms are drawn for each; within one, the rate varies by
    a fifth every second; every fourth change comes with an outage of 0.2 to 1 s.
    """

    def steps(source: random.Random) -> Iterator[Step]:
        left_s = source.uniform(1, 15)
        while True:
            mbps, rtt_ms = source.uniform(20, 150), source.uniform(30, 60)
            while left_s > 0:
                yield _step(min(left_s, 1.0), mbps * source.uniform(0.8, 1.2), rtt_ms)
                left_s -= 1.0
            out_s = source.uniform(0.2, 1.0) if source.random() < 0.25 else 0.0
            if out_s:
                yield _step(out_s, 0, rtt_ms)
            left_s = 15 - out_s

    return _cut(steps(random.Random(f"satellite {seed}")), seconds)


TRACES: Final[dict[str, Callable[[int, float], Trace]]] = {"cellular": cellular, "wifi": wifi, "satellite": satellite}


def since(trace: Trace, offset_s: float) -> Trace:
    """What is left of a trace after so many seconds; its last step, if nothing is."""
    for number, step in enumerate(trace):
        if offset_s < step.seconds:
            return (Step(step.seconds - offset_s, step.link), *trace[number + 1 :])
        offset_s -= step.seconds
    return trace[-1:]


def capacity_bytes(trace: Trace, seconds: float) -> float:
    """How many bytes such a link carries in its first seconds."""
    total = 0.0
    for step in trace:
        if seconds <= 0:
            break
        total += min(step.seconds, seconds) * (step.link.mbps or 0.0) * 125_000
        seconds -= step.seconds
    return total


def trace_from_json(value: object) -> Trace:
    """Steps as `[[seconds, {"mbps": 5}], …]`, at least one. Raises UsageError."""
    if not isinstance(value, list) or not value:
        raise UsageError(f"a trace is a list of [seconds, link], not {value!r}")
    steps = []
    for step in value:
        if not isinstance(step, list) or len(step) != 2:
            raise UsageError(f"a step of a trace is [seconds, link], not {step!r}")
        steps.append(Step(step[0], link_from_json(step[1])))
    return tuple(steps)


def _step(seconds: float, mbps: float, rtt_ms: float) -> Step:
    return Step(max(round(seconds, 4), 1e-4), Link(mbps=round(mbps, 3), rtt_ms=round(rtt_ms, 1)))


def _cut(steps: Iterator[Step], seconds: float) -> Trace:
    taken, total = [], 0.0
    while total < seconds:
        step = next(steps)
        taken.append(Step(min(step.seconds, seconds - total), step.link))
        total += step.seconds
    return tuple(taken)
