"""Whether a context's KV comes sooner than the server would compute it. Pure: times and bytes in, a verdict out."""

from dataclasses import dataclass
from typing import Final

GRACE_S: Final = 0.3
"""A link is not judged sooner."""
TRUST_S: Final = 60.0
"""What a link brought is believed of it for so long; then it is tried again."""
_MOST_SILENCE_S: Final = 3.0
"""Nothing at all is waited for no longer."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A context on its way.

    Attributes:
        elapsed_s: since it was asked for.
        came_bytes, size_bytes: what has come of it, and all of it.
        compute_s: what the server would take to compute what is not whole yet.
    """

    elapsed_s: float
    came_bytes: int
    size_bytes: int
    compute_s: float


def worth_waiting(progress: Progress) -> bool:
    """Whether the rest comes sooner than it is computed, at the rate so far."""
    if progress.elapsed_s < min(GRACE_S, progress.compute_s):
        return True
    if not progress.came_bytes:
        return progress.elapsed_s < min(_MOST_SILENCE_S, progress.compute_s)
    left_bytes = max(0, progress.size_bytes - progress.came_bytes)
    return left_bytes * progress.elapsed_s <= progress.compute_s * progress.came_bytes


def worth_asking(size_bytes: int, compute_s: float, bytes_s: float | None, seen_s_ago: float) -> bool:
    """Whether to ask for it at all: not of a link that was too slow for that a moment ago."""
    return bytes_s is None or seen_s_ago > TRUST_S or size_bytes <= compute_s * bytes_s
