"""What a plan is told of a load before it begins."""

from dataclasses import dataclass, field
from itertools import accumulate

from preread.plan.cost import Prefill
from preread.plan.health import Breaker


@dataclass(frozen=True, slots=True)
class Source:
    """Where cells can come from.

    Attributes:
        bytes_s: rate that is believed; None: nothing is known.
        rtt_s: one round trip.
        breaker: its health.
        most_requests: how many requests it takes at once.
        silence_s: for how long, besides some round trips, not a byte may come before it counts as failed.
    """

    bytes_s: float | None = None
    rtt_s: float = 0.05
    breaker: Breaker = field(default_factory=Breaker)
    most_requests: int = 48
    silence_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done, and what is believed beforehand.

    Attributes:
        chunks: tokens of each chunk.
        cells: bytes of each cell, [chunk][group]; 0: nobody looks at it, so it need not come.
        prefill: how long computing takes.
        prompt_s: P, how long the prompt takes once everything is in place.
        decode_bytes_s: how fast cells are decoded and injected where nothing else is done, all at once that may be.
        sources: where cells can come from, the one to prefer first.
        first: for each cell [chunk][group] the source that is to be asked; any other but the last then lacks it, and
            the last is asked only where that one fails or is overdue. Empty: every source has everything.
        in_order: a chunk can be computed only behind chunks that were computed, one by one; see `legality.py`.
        shares: of what computing a chunk takes, what its first group of layers takes, the first two, and so on. Empty:
            it cannot be computed but through all of them. Infinite: not through just so many.
        breaks: of each chunk, whether its first layers can be computed behind chunks that were computed through all of
            them; see `legality.begins_anew`. Empty: of every chunk.
        alone: nothing can be computed beside what comes: whoever computes anything computes all.
    """

    chunks: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]
    prefill: Prefill
    prompt_s: float
    decode_bytes_s: float
    sources: tuple[Source, ...]
    first: tuple[tuple[int, ...], ...] = ()
    in_order: bool = False
    shares: tuple[float, ...] = ()
    breaks: tuple[bool, ...] = ()
    alone: bool = False

    @property
    def chunk_s(self) -> list[float]:
        """What computing each chunk is believed to take, behind those before it."""
        starts = accumulate(self.chunks, initial=0)
        each_s = [self.prefill.seconds(start, size) for start, size in zip(starts, self.chunks, strict=False)]
        return [sum(each_s), *(0.0 for _ in each_s[1:])] if self.alone else each_s
