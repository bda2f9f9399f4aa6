"""What to hold: never more than fits, pinned first, by use, and without taking turns."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.place import HALF_LIFE_S, POLICIES, Candidate, Policy, Use, place
from preread.values import ContextId

NOW = 1e9
USES = st.builds(Use, st.floats(0, 100), st.floats(NOW - 1e8, NOW + 1e6))


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    sizes = draw(st.lists(st.integers(1, 100), max_size=12))
    return [
        Candidate(ContextId(f"c{index}"), size, draw(st.integers(0, size)), draw(USES), draw(st.booleans()))
        for index, size in enumerate(sizes)
    ]


def test_by_use() -> None:
    often, once, never, pinned = (
        Candidate(ContextId(name), 10, use=use, pinned=name == "pinned")
        for name, use in [("often", Use(5, NOW)), ("once", Use(1, NOW)), ("never", Use()), ("pinned", Use())]
    )
    all_four = [never, once, often, pinned]
    assert place(all_four, 100, "recent", NOW).hold == ("pinned", "often", "once")
    assert place(all_four, 20, "recent", NOW).hold == ("pinned", "often")
    assert place(all_four, 100, "all", NOW).hold == ("pinned", "often", "once", "never")
    assert place(all_four, 100, "off", NOW).hold == ("pinned",)
    assert place(all_four, 100, "recent", NOW + 20 * HALF_LIFE_S).hold == ("pinned",)


def test_what_does_not_fit_leaves_room_for_smaller_ones() -> None:
    large, small = Candidate(ContextId("large"), 50, use=Use(9, NOW)), Candidate(ContextId("s"), 10, use=Use(1, NOW))
    assert place([large, small], 40, "recent", NOW).hold == ("s",)


def test_uses_fade() -> None:
    use = Use().again(NOW).again(NOW)
    assert use.worth(NOW) == 2 and use.worth(NOW + HALF_LIFE_S) == pytest.approx(1)
    assert use.worth(NOW - 1e9) == 2, "a clock that was set back must not make more of it"


def test_two_of_like_use_do_not_take_turns() -> None:
    here = Candidate(ContextId("here"), 10, 10, Use(3, NOW))
    other = Candidate(ContextId("other"), 10, 0, Use(4, NOW))
    assert place([here, other], 10, "recent", NOW) == place([other, here], 10, "recent", NOW)
    assert place([here, other], 10, "recent", NOW).hold == ("here",)
    busier = replace(other, use=Use(5, NOW))
    assert place([here, busier], 10, "recent", NOW).hold == ("other",)
    assert place([here, busier], 10, "recent", NOW).drop == ("here",)


def test_what_is_held_stays_while_there_is_room() -> None:
    old, new = Candidate(ContextId("old"), 10, 10), Candidate(ContextId("new"), 10, 0, Use(1, NOW))
    assert place([old, new], 20, "recent", NOW).drop == ()
    assert place([old, new], 19, "recent", NOW).drop == ("old",)


@given(candidates(), st.integers(0, 400), st.sampled_from(POLICIES))
def test_bounds(found: list[Candidate], room_bytes: int, policy: Policy) -> None:
    placement = place(found, room_bytes, policy, NOW)
    by_id = {one.context: one for one in found}
    assert not set(placement.hold) & set(placement.drop)
    assert len(set(placement.hold)) == len(placement.hold) and len(set(placement.drop)) == len(placement.drop)
    held_bytes = sum(by_id[id].size_bytes for id in placement.hold)
    stays = sum(one.held_bytes for one in found if one.context not in {*placement.hold, *placement.drop})
    assert held_bytes <= room_bytes and (held_bytes + stays <= room_bytes or not stays)
    assert all(by_id[id].held_bytes for id in placement.drop)
    if placement.drop:  # no more than needed
        assert held_bytes + stays + by_id[placement.drop[-1]].held_bytes > room_bytes
    pins = [by_id[id].pinned for id in placement.hold]
    assert pins == sorted(pins, reverse=True)
    for one in found:  # what is left out did not fit, or is not wanted
        if one.pinned and one.context not in placement.hold:
            before = sum(by_id[id].size_bytes for id in placement.hold if by_id[id].pinned)
            assert before + one.size_bytes > room_bytes


@given(candidates(), st.integers(0, 400), st.sampled_from(POLICIES))
def test_a_second_look_changes_nothing(found: list[Candidate], room_bytes: int, policy: Policy) -> None:
    """Once all is held that should be, and dropped what should go, the next decision is the same."""
    first = place(found, room_bytes, policy, NOW)
    then = [
        replace(one, held_bytes=one.size_bytes if one.context in first.hold else 0)
        if one.context in {*first.hold, *first.drop}
        else one
        for one in found
    ]
    second = place(then, room_bytes, policy, NOW)
    assert set(second.hold) == set(first.hold) and second.drop == ()
