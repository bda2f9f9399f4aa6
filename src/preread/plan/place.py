"""Which contexts an edge should hold on its disk before anyone asks, and which make room for them.

Pure: what there is, how it was used and what fits in, an order out. Times are seconds of a clock that goes on over
restarts, and are given as arguments. A context's worth is the number of its uses, each counting half after a week:
what a use saves is about proportional to the bytes that the context takes, so worth is worth for each byte too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from preread.values import ContextId

Policy = Literal["off", "recent", "all"]
"""Which contexts are worth holding besides pinned ones: none, those used lately, or every published one."""

POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)
HALF_LIFE_S: Final = 7 * 86_400.0
FORGOTTEN: Final = 1 / 16
"""Below this worth, four weeks after a single use, a context is no longer a recent one."""

_STAY = 1.5
"""A context that is held is worth so much more than one that is not: two of like use must not take turns."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much a context was used: the sum of its uses, each halved every `HALF_LIFE_S` until `at_s`."""

    uses: float = 0.0
    at_s: float = 0.0

    def worth(self, now_s: float) -> float:
        """What is left of the uses now. A clock that was set back does not make more of them."""
        return self.uses * float(0.5 ** (max(0.0, now_s - self.at_s) / HALF_LIFE_S))

    def again(self, now_s: float) -> "Use":
        """After one more use."""
        return Use(self.worth(now_s) + 1, now_s)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A published context.

    Attributes:
        size_bytes: of the rung that this edge would stream.
        held_bytes: how much of that is held.
        use: how it was used.
        pinned: somebody wants it here whatever its use.
    """

    context: ContextId
    size_bytes: int
    held_bytes: int = 0
    use: Use = Use()
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Contexts to hold, the most wanted first, and contexts to drop so that those have room, the least wanted first."""

    hold: tuple[ContextId, ...]
    drop: tuple[ContextId, ...]


def place(candidates: Iterable[Candidate], room_bytes: int, policy: Policy, now_s: float) -> Placement:
    """Fill the room with whole contexts: pinned ones first, then by worth; one that does not fit is left out.

    What is held and not chosen stays as long as nothing else needs the room.
    """
    ordered = sorted(candidates, key=lambda one: _order(one, now_s))
    chosen, left_bytes = list[Candidate](), room_bytes
    for one in ordered:
        if _wanted(one, policy, now_s) and one.size_bytes <= left_bytes:
            chosen.append(one)
            left_bytes -= one.size_bytes
    taken = {one.context for one in chosen}
    others = [one for one in reversed(ordered) if one.held_bytes and one.context not in taken]
    over_bytes = sum(one.size_bytes for one in chosen) + sum(one.held_bytes for one in others) - room_bytes
    drop = []
    for one in others:
        if over_bytes <= 0:
            break
        drop.append(one.context)
        over_bytes -= one.held_bytes
    return Placement(tuple(one.context for one in chosen), tuple(drop))


def _wanted(one: Candidate, policy: Policy, now_s: float) -> bool:
    if one.pinned or policy == "all":
        return True
    return policy == "recent" and one.use.worth(now_s) >= FORGOTTEN


def _order(one: Candidate, now_s: float) -> tuple[bool, float, int, str]:
    """Pinned first, then by worth; of equal worth the smaller first, then anyhow but always alike."""
    held = one.held_bytes * 2 > one.size_bytes
    return not one.pinned, -one.use.worth(now_s) * (_STAY if held else 1), one.size_bytes, one.context
