"""Which slot of a llama-server a request gets, so that a context is restored once and not for each request.

The server keeps in each slot what its last request had: the next one there that begins alike computes only the rest.
What it says of its slots tells whether a context is still in the slot that it was restored into. Pure.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from preread.values import ContextId


@dataclass(frozen=True, slots=True)
class Seen:
    """A slot, as the server tells.

    Attributes:
        id: its number.
        busy: a request is being computed there.
        tokens: that it holds.
        task: the last request that it had; -1: none yet.
    """

    id: int
    busy: bool
    tokens: int
    task: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A context that was brought into a slot.

    Attributes:
        context: which.
        tokens: so many of it.
        task: the last request there that began with it, or that was there before it came.
    """

    context: ContextId
    tokens: int
    task: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes. `slot`: None, the server chooses; `restore`: its context has to be restored there first."""

    slot: int | None
    restore: bool = False


def still(seen: Sequence[Seen], holdings: Mapping[int, Holding]) -> dict[int, Holding]:
    """The holdings that are still there: nobody else had the slot meanwhile, and the server did not empty it."""
    by_id = {slot.id: slot for slot in seen}
    return {
        id: holding
        for id, holding in holdings.items()
        if (slot := by_id.get(id)) is not None
        and (slot.busy or (slot.task == holding.task and slot.tokens >= holding.tokens))
    }


def for_context(
    context: ContextId, seen: Sequence[Seen], holdings: Mapping[int, Holding], taken: Container[int]
) -> Place:
    """Where a request about a context goes.

    A free slot that holds the context; else a free one that it is restored into: one that is empty, one without a
    context, the one that was used longest ago. Where none is free the server chooses: it prefers, among those that
    become free, the one whose tokens the prompt begins with.

    Args:
        context: the request's.
        seen: all slots.
        holdings: by slot, those that are still there.
        taken: slots that were given to requests that the server may not know of yet.
    """
    free = [slot for slot in seen if not slot.busy and slot.id not in taken]
    holding = [slot for slot in free if slot.id in holdings and holdings[slot.id].context == context]
    if holding:
        return Place(max(holding, key=lambda slot: (slot.task, slot.id)).id)
    if not free:
        return Place(None)
    first = min(free, key=lambda slot: (slot.tokens > 0, slot.id in holdings, slot.task, slot.id))
    return Place(first.id, restore=True)


def for_another(seen: Sequence[Seen], holdings: Mapping[int, Holding], taken: Container[int]) -> Place:
    """Where a request that begins with nothing known goes: not onto a context, if another slot is free.

    It is for those that begin a conversation only. Any other one is the server's to place, since a slot may hold what
    was said so far.
    """
    free = [slot for slot in seen if not slot.busy and slot.id not in taken]
    without = [slot for slot in free if slot.id not in holdings]
    if len(without) == len(free) or not without:
        return Place(None)
    return Place(min(without, key=lambda slot: (slot.tokens > 0, slot.task, slot.id)).id)
