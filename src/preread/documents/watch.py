"""What changed in a folder between two looks. Pure: time and disk are the caller's."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

Place = TypeVar("Place", bound=Hashable)

Stamp = tuple[int, int, int]
"""When a file was written, in ns, its size in bytes, and its inode: what changes when a file does."""


def due(now: Mapping[Place, Stamp], before: Mapping[Place, Stamp] | None, done: Mapping[Place, Stamp]) -> list[Place]:
    """Files to read, in the order of `now`.

    Args:
        now: what is there.
        before: what was there at the last look: what has changed since is still being written, perhaps. None: there
            was none, and all is taken as it is.
        done: what was read, as it was then.
    """
    return [
        place
        for place, stamp in now.items()
        if done.get(place) != stamp and (before is None or before.get(place) == stamp)
    ]


def pause_s(looked_s: float, failures: int) -> float:
    """How long to wait before the next look: ten times as long as one takes, longer after failures in a row."""
    return max(1.0, 10 * looked_s, min(60.0, 2.0 ** min(failures, 6)) if failures else 0.0)
