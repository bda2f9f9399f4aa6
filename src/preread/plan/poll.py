"""How often an edge asks its cloud whether anything has changed, and keeps connections open. Pure.

Each asking costs some 400 bytes and a request, by whatever link there is: an idle edge is to cost next to nothing.
"""

from typing import Final

SYNC_S: Final = 60.0
"""How often the catalogue is asked for, unless somebody says otherwise: with this, an idle edge takes 0.6 MB a day."""

WARM_S: Final = 30.0
"""Connections in use are touched so often, so that no server in between closes them: a new one costs a round trip."""

IN_USE_S: Final = 300.0
"""Connections are in use for so long after something came over them."""

_FIRST_RETRY_S: Final = 5.0


def sync_pause_s(every_s: float, failures: int) -> float:
    """Seconds from one asking to the next: `every_s`, or less after failures, ever longer."""
    return min(every_s, _FIRST_RETRY_S * 2 ** min(failures - 1, 10)) if failures else every_s


def warm_due(now_s: float, warmed_s: float | None, streamed_s: float | None) -> bool:
    """Whether to touch the connections now: once at the start, and while they are in use.

    Args:
        now_s, warmed_s, streamed_s: now, when they were touched last and when something came over them last, seconds of
            one clock; None: never.
    """
    if warmed_s is None:
        return True
    return streamed_s is not None and now_s - streamed_s < IN_USE_S and now_s - warmed_s >= WARM_S
