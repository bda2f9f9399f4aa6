"""Load, and what came of it: which contexts are asked about, when, and what all answers add up to. Pure."""

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal

from rich.table import Table

State = Literal["cold", "warm", "cut"]
"""Nothing was asked since the start; all contexts were asked about before; the same as cold, and the cloud is away."""

STATES: Final[tuple[State, ...]] = ("cold", "warm", "cut")
OURS: Final = "preread"
_HEADINGS: Final = (
    "system", "state", "load", "requests/s", "tokens/s", "TTFT p50 s", "p99 s", "a token ms", "longest gap s",
    "KV MB", "failed", "ways",
)  # fmt: skip


def zipf(chance: random.Random, count: int, contexts: int, exponent: float = 1.0) -> tuple[int, ...]:
    """Draw `count` of so many contexts, from 0: the k-th is as likely as k to the power of -`exponent`."""
    weights = [rank**-exponent for rank in range(1, contexts + 1)]
    return tuple(chance.choices(range(contexts), weights, k=count))


def arrivals_s(chance: random.Random, count: int, rate: float) -> tuple[float, ...]:
    """When so many requests come, in seconds from the beginning, at `rate` a second: a Poisson process."""
    return tuple(accumulate(chance.expovariate(rate) for _ in range(count)))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 … 1) of them lie, linear between two; there must be a value."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def split(count: int, parts: int) -> tuple[range, ...]:
    """The numbers from 0 to `count`, in so many runs of nearly the same length; none of them is empty."""
    edges = [count * part // parts for part in range(parts + 1)]
    return tuple(range(start, end) for start, end in pairwise(edges) if end > start)


def rotated(count: int, turn: int) -> tuple[int, ...]:
    """In which order so many take turns: whoever was first in the last turn is last in this one."""
    return tuple((turn + place) % count for place in range(count))


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as its client saw it.

    Attributes:
        ttft_s: from sending the request to the first text.
        longest_gap_s: between two texts that follow each other; 0 where there is only one.
        decode_s: from the first text to the last.
        tokens, prompt_tokens: as the server counts them.
        way: where the context's KV came from, as an edge says; "": nothing was said.
        received_bytes: of it, from the cloud, as an edge says.
    """

    ttft_s: float
    longest_gap_s: float
    decode_s: float
    tokens: int
    prompt_tokens: int
    way: str = ""
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Requests to one system without a pause.

    Attributes:
        users: that ask again as soon as they are answered; None: requests came at `rate` a second, whatever happened.
        seconds: from the beginning to the end of the last answer.
        failures: why requests were not answered.
    """

    system: str
    state: State
    users: int | None
    rate: float | None
    seconds: float
    answers: tuple[Answer, ...]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """All blocks of one system, in one state, under one load. Times are None where nothing was answered.

    Attributes:
        users, rate: as in `Block`.
        requests, failed: how many were sent, and were not answered.
        rps, tokens_s: answers, and their tokens, by the time that the blocks took.
        tpot_p50_s: from one token to the next: the median over the answers of each one's mean.
        longest_gap_s: the longest of all answers.
        kv_memory_mb: that the system had for KV cache, if known.
        prompt_tokens: of the mean request, context included; systems that are asked the same should agree.
        answer_tokens: of the mean answer.
        ways: how often a context came how; received_mb: what came from the cloud for that.
    """

    system: str
    state: State
    users: int | None
    rate: float | None
    requests: int
    failed: int
    rps: float
    tokens_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    longest_gap_s: float | None
    kv_memory_mb: float | None
    prompt_tokens: float | None
    answer_tokens: float | None
    ways: dict[str, int]
    received_mb: float


def summed(blocks: Iterable[Block], kv_memory_mb: dict[str, float | None]) -> list[Row]:
    """A row for each system, state and load, in the order in which they came first."""
    found: dict[tuple[str, State, int | None, float | None], list[Block]] = {}
    for block in blocks:
        found.setdefault((block.system, block.state, block.users, block.rate), []).append(block)
    return [_row(some, kv_memory_mb.get(some[0].system)) for some in found.values()]


def _row(blocks: Sequence[Block], kv_memory_mb: float | None) -> Row:
    first = blocks[0]
    answers = [answer for block in blocks for answer in block.answers]
    failed = sum(len(block.failures) for block in blocks)
    seconds = sum(block.seconds for block in blocks)
    ttft_s = [answer.ttft_s for answer in answers]
    tpot_s = [answer.decode_s / (answer.tokens - 1) for answer in answers if answer.tokens > 1]
    tokens = sum(answer.tokens for answer in answers)
    return Row(
        system=first.system,
        state=first.state,
        users=first.users,
        rate=first.rate,
        requests=len(answers) + failed,
        failed=failed,
        rps=round(len(answers) / seconds, 4) if seconds > 0 else 0.0,
        tokens_s=round(tokens / seconds, 3) if seconds > 0 else 0.0,
        ttft_p50_s=round(percentile(ttft_s, 0.5), 4) if answers else None,
        ttft_p99_s=round(percentile(ttft_s, 0.99), 4) if answers else None,
        tpot_p50_s=round(percentile(tpot_s, 0.5), 5) if tpot_s else None,
        longest_gap_s=round(max(answer.longest_gap_s for answer in answers), 4) if answers else None,
        kv_memory_mb=kv_memory_mb,
        prompt_tokens=round(statistics.fmean(answer.prompt_tokens for answer in answers), 2) if answers else None,
        answer_tokens=round(tokens / len(answers), 2) if answers else None,
        ways=dict(Counter(answer.way for answer in answers if answer.way).most_common()),
        received_mb=round(sum(answer.received_bytes for answer in answers) / 1e6, 3),
    )


def ratios(rows: Sequence[Row], users: int | None, rate: float | None) -> dict[str, float]:
    """For each state, tokens a second of preread ÷ those of the best peer, under this load.

    A peer that could not be made cold again has no row for the cut state, where it does the same as when cold: that row
    stands for it. Rows with failures count for nothing: who refuses has less to do.
    """
    rates = {
        (row.system, row.state): row.tokens_s
        for row in rows
        if (row.users, row.rate) == (users, rate) and not row.failed and row.tokens_s > 0
    }
    systems = dict.fromkeys(row.system for row in rows if row.system != OURS)
    found = dict[str, float]()
    for state in STATES:
        again: tuple[State, ...] = ("cut", "cold") if state == "cut" else (state,)
        peers = [next((rates[name, one] for one in again if (name, one) in rates), 0.0) for name in systems]
        if (OURS, state) in rates and max(peers, default=0.0) > 0:
            found[state] = round(rates[OURS, state] / max(peers), 3)
    return found


def doubts(rows: Sequence[Row], answer_tokens: int) -> list[str]:
    """What makes the rows hard to compare, a sentence each."""
    told = []
    for row in rows:
        if row.answer_tokens is not None and row.answer_tokens != answer_tokens:
            told.append(
                f"{row.system} ({row.state}) gave {row.answer_tokens:g} tokens an answer, not {answer_tokens}: "
                "compare tokens a second, not requests"
            )
    for state, users, rate in dict.fromkeys((row.state, row.users, row.rate) for row in rows):
        alike = [row for row in rows if (row.state, row.users, row.rate, row.failed) == (state, users, rate, 0)]
        if len({row.prompt_tokens for row in alike}) > 1:
            counts = ", ".join(f"{row.system} {row.prompt_tokens:g}" for row in alike if row.prompt_tokens)
            told.append(f"prompts ({state}) have different numbers of tokens, {counts}: is it the same model?")
    return told


def table(rows: Sequence[Row], title: str, caption: str) -> Table:
    """The rows as people read them."""
    found = Table(*_HEADINGS, title=title, caption=caption)
    for row in rows:
        load = f"{row.rate:g}/s" if row.users is None else f"{row.users} users"
        found.add_row(
            row.system, row.state, load, f"{row.rps:.2f}", f"{row.tokens_s:.1f}", _shown(row.ttft_p50_s),
            _shown(row.ttft_p99_s), "–" if row.tpot_p50_s is None else f"{row.tpot_p50_s * 1e3:.1f}",
            _shown(row.longest_gap_s), "–" if row.kv_memory_mb is None else f"{row.kv_memory_mb:.0f}",
            f"{row.failed} of {row.requests}" if row.failed else "0",
            ", ".join(f"{way} {count}" for way, count in row.ways.items()) or "–",
        )  # fmt: skip
    return found


def _shown(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.3f}"
