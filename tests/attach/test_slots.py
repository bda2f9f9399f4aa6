"""Which slot a request gets: never a busy one, a restored context stays where it is, and others leave it there."""

from hypothesis import given
from hypothesis import strategies as st

from preread.attach.slots import Holding, Place, Seen, for_another, for_context, still
from preread.values import ContextId

CONTEXTS = [ContextId(letter * 64) for letter in "abc"]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Seen], dict[int, Holding], set[int]]:
    ids = range(draw(st.integers(1, 5)))
    seen = [Seen(id, draw(st.booleans()), draw(st.integers(0, 50)), draw(st.integers(-1, 9))) for id in ids]
    holdings = {
        id: Holding(draw(st.sampled_from(CONTEXTS)), draw(st.integers(1, 50)), draw(st.integers(-1, 9)))
        for id in draw(st.sets(st.sampled_from(ids)))
    }
    return seen, still(seen, holdings), draw(st.sets(st.sampled_from(ids)))


@given(situations(), st.sampled_from(CONTEXTS))
def test_a_request_never_gets_a_slot_that_another_has(
    situation: tuple[list[Seen], dict[int, Holding], set[int]], context: ContextId
) -> None:
    seen, holdings, taken = situation
    free = {slot.id for slot in seen if not slot.busy} - taken
    for place in (for_context(context, seen, holdings, taken), for_another(seen, holdings, taken)):
        assert place.slot is None or place.slot in free
    assert (for_context(context, seen, holdings, taken).slot is None) == (not free)


@given(situations(), st.sampled_from(CONTEXTS))
def test_a_context_is_restored_only_where_no_free_slot_holds_it(
    situation: tuple[list[Seen], dict[int, Holding], set[int]], context: ContextId
) -> None:
    seen, holdings, taken = situation
    free = {slot.id for slot in seen if not slot.busy} - taken
    there = {id for id in free if id in holdings and holdings[id].context == context}
    place = for_context(context, seen, holdings, taken)
    assert place.restore == (not there and bool(free))
    assert not there or place.slot in there


@given(situations(), st.sampled_from(CONTEXTS))
def test_another_context_makes_room_only_where_no_slot_without_one_is_free(
    situation: tuple[list[Seen], dict[int, Holding], set[int]], context: ContextId
) -> None:
    seen, holdings, taken = situation
    free = {slot.id for slot in seen if not slot.busy} - taken
    place = for_context(context, seen, holdings, taken)
    if place.restore and place.slot in holdings:
        assert not any(slot.tokens == 0 for slot in seen if slot.id in free)
        assert free <= set(holdings)


@given(situations())
def test_what_begins_with_nothing_known_leaves_contexts_where_they_are_if_it_can(
    situation: tuple[list[Seen], dict[int, Holding], set[int]],
) -> None:
    seen, holdings, taken = situation
    free = {slot.id for slot in seen if not slot.busy} - taken
    place = for_another(seen, holdings, taken)
    assert place.slot not in holdings and not place.restore
    if free & set(holdings) and free - set(holdings):
        assert place.slot is not None


def test_many_requests_one_after_the_other_restore_a_context_once() -> None:
    slots, holdings, restored = [Seen(id, False, 0, -1) for id in range(4)], dict[int, Holding](), 0
    for task in range(20):
        holdings = still(slots, holdings)
        place = for_context(CONTEXTS[0], slots, holdings, ())
        assert place.slot is not None
        restored += place.restore
        holdings[place.slot] = Holding(CONTEXTS[0], 10, task)
        slots[place.slot] = Seen(place.slot, False, 15, task)
    assert restored == 1


def test_a_slot_that_somebody_else_used_or_that_was_emptied_holds_nothing_any_more() -> None:
    holdings = {id: Holding(CONTEXTS[0], 10, 3) for id in range(4)}
    seen = [Seen(0, False, 12, 3), Seen(1, False, 12, 4), Seen(2, False, 0, 3), Seen(3, True, 0, 9)]
    assert set(still(seen, holdings)) == {0, 3}
    assert still([], holdings) == {}


def test_two_requests_at_once_about_a_context_get_a_slot_each() -> None:
    seen, holdings = [Seen(0, False, 12, 3), Seen(1, False, 0, -1)], {0: Holding(CONTEXTS[0], 10, 3)}
    assert for_context(CONTEXTS[0], seen, holdings, ()) == Place(0)
    assert for_context(CONTEXTS[0], seen, holdings, {0}) == Place(1, restore=True)
    assert for_context(CONTEXTS[0], seen, holdings, {0, 1}) == Place(None)
