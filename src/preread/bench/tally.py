"""What the runs of `site.py` add up to: a row for each count of edges, and a table. Pure."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from preread.bench.group import Answer

_HEADINGS = (
    "edges", "neighbours", "uplink MB", "÷ one edge", "÷ context", "TTFT s", "slowest s", "÷ without", "computed",
    "ways",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen once: bytes down the uplink until all had answered, and all answers."""

    edges: int
    neighbours: bool
    uplink_bytes: int
    answers: tuple[Answer, ...]

    @property
    def slowest_s(self) -> float:
        """Time to first token of the edge that was last."""
        return max(answer.ttft_s for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Row:
    """So many edges, with or without neighbours: medians over the runs.

    Attributes:
        ratio_to_one: uplink bytes ÷ those of one edge alone, which loads less than all where it computes a part.
        ratio_to_context: uplink bytes ÷ those of the whole context's segments.
        ttft_s: over all edges of all runs; slowest_s: of each run's slowest edge.
        ratio_to_without: `slowest_s` ÷ that of as many edges without neighbours; None where this is such a row.
        computed_share: of the context's tokens, how many were computed by the edge that asked; the mean over all edges.
        ways: how often a context came how.
    """

    edges: int
    neighbours: bool
    uplink_bytes: int
    ratio_to_one: float
    ratio_to_context: float
    ttft_s: float
    slowest_s: float
    ratio_to_without: float | None
    computed_share: float
    ways: dict[str, int]


def summed(runs: Sequence[Run], context_tokens: int, context_bytes: int) -> list[Row]:
    """A row for each count of edges, without and with neighbours; one edge alone must be among the runs.

    Args:
        runs: all of them.
        context_tokens, context_bytes: what the context has, and its segments.
    """
    kinds = dict.fromkeys((run.edges, run.neighbours) for run in runs)
    of = {kind: [run for run in runs if (run.edges, run.neighbours) == kind] for kind in kinds}
    uplink = {kind: statistics.median(run.uplink_bytes for run in some) for kind, some in of.items()}
    slowest = {kind: statistics.median(run.slowest_s for run in some) for kind, some in of.items()}
    return [
        Row(
            edges=count,
            neighbours=neighbours,
            uplink_bytes=round(uplink[count, neighbours]),
            ratio_to_one=round(uplink[count, neighbours] / max(1, uplink[1, False]), 3),
            ratio_to_context=round(uplink[count, neighbours] / context_bytes, 3),
            ttft_s=round(statistics.median(answer.ttft_s for run in some for answer in run.answers), 4),
            slowest_s=round(slowest[count, neighbours], 4),
            ratio_to_without=round(slowest[count, True] / slowest[count, False], 3) if neighbours else None,
            computed_share=round(
                statistics.fmean(answer.computed_n for run in some for answer in run.answers) / context_tokens, 3
            ),
            ways=dict(Counter(answer.way for run in some for answer in run.answers).most_common()),
        )
        for (count, neighbours), some in of.items()
    ]


def told(run: Run) -> str:
    """One run in a line."""
    each = ", ".join(f"{one.ttft_s:.3f} s {one.way} ({one.computed_n} computed)" for one in run.answers)
    kind = "with neighbours" if run.neighbours else "alone" if run.edges == 1 else "without neighbours"
    return f"{run.edges} {kind}: {run.uplink_bytes / 1e6:.3f} MB; {each}"


def table(rows: Sequence[Row], title: str, caption: str) -> Table:
    """The rows as people read them."""
    found = Table(*_HEADINGS, title=title, caption=caption)
    for row in rows:
        found.add_row(
            str(row.edges), "yes" if row.neighbours else "no", f"{row.uplink_bytes / 1e6:.2f}",
            f"{row.ratio_to_one:.2f}", f"{row.ratio_to_context:.2f}", f"{row.ttft_s:.3f}", f"{row.slowest_s:.3f}",
            "–" if row.ratio_to_without is None else f"{row.ratio_to_without:.2f}",
            f"{row.computed_share:.0%}",
            ", ".join(f"{way} {count}" for way, count in row.ways.items()),
        )  # fmt: skip
    return found
