"""Which contexts have cells, and which make room."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.residency import HALF_LIFE_S, Residency


def residency(cells: int = 100, most: int = 8, **contexts: int) -> Residency:
    """A cache in which these contexts are ready, and none was asked for yet."""
    cache = Residency(cells, most)
    for key, size in contexts.items():
        cache.enter(key, size, 1.0, guest=False)
        cache.complete(key)
    return cache


def test_cells_are_a_contexts_a_requests_or_free() -> None:
    cache = residency(x=30)
    cache.claim(20)
    assert (cache.free_cells, cache.claimed_cells, cache.sizes) == (50, 20, {"x": 30})
    cache.claim(-5)
    cache.leave("x")
    assert (cache.free_cells, cache.claimed_cells, cache.sizes) == (85, 15, {})


def test_a_context_is_there_before_it_is_ready() -> None:
    cache = residency(x=30)
    cache.enter("y", 30, 1.0, guest=False)
    assert "y" in cache and not cache.is_ready("y") and cache.ready_keys == ["x"]
    cache.complete("y")
    assert cache.is_ready("y") and cache.ready_keys == ["x", "y"]
    assert "z" not in cache and not cache.is_ready("z")


def test_a_context_is_new_until_somebody_computes_with_it() -> None:
    cache = residency(x=30, y=30)
    cache.enter("z", 30, 1.0, guest=False)
    cache.join("z")  # behind its gate
    cache.complete("z")
    assert cache.new_keys == ["x", "y"]
    cache.join("x")
    cache.part("x")
    assert cache.new_keys == ["y"]


def test_where_enough_is_free_nobody_makes_room() -> None:
    assert residency(x=30).victims(70, 0.0) == []


def test_who_was_asked_for_more_often_stays() -> None:
    cache = residency(x=50, y=50)
    for key in ("x", "x", "y"):
        cache.used(key, 0.0, guest=False)
    assert cache.victims(50, 0.0) == ["y"]


def test_a_use_of_long_ago_counts_less() -> None:
    cache = residency(x=50, y=50)
    for key, at_s in (("x", 0.0), ("x", 0.0), ("y", 2 * HALF_LIFE_S)):
        cache.used(key, at_s, guest=False)
    assert cache.victims(50, 2 * HALF_LIFE_S) == ["x"]


def test_who_would_cost_more_to_get_back_stays() -> None:
    cache = residency()
    for key, cost_s in (("x", 9.0), ("y", 1.0)):
        cache.enter(key, 50, cost_s, guest=False)
        cache.complete(key)
        cache.used(key, 0.0, guest=False)
    assert cache.victims(50, 0.0) == ["y"]
    assert cache.victims(51, 0.0) == ["y", "x"], "no more than have to"


def test_who_takes_more_cells_for_the_same_worth_makes_room() -> None:
    cache = residency(x=30, y=70)
    for key in ("x", "y"):
        cache.used(key, 0.0, guest=False)
    assert cache.victims(30, 0.0) == ["y"]


def test_who_is_computed_with_or_still_coming_or_spared_stays() -> None:
    cache = residency(x=20, y=20)
    cache.enter("z", 20, 1.0, guest=False)
    cache.join("x")
    assert cache.victims(60, 0.0) == ["y"]
    assert cache.victims(61, 0.0) is None
    assert cache.victims(60, 0.0, spared=("y",)) is None
    cache.part("x")
    assert cache.victims(80, 0.0) == ["x", "y"]


def test_only_guests_make_room_for_a_guest() -> None:
    cache = residency(x=50)
    cache.enter("y", 50, 1.0, guest=True)
    cache.complete("y")
    assert cache.victims(50, 0.0, guest=True) == ["y"]
    assert cache.victims(51, 0.0, guest=True) is None
    cache.used("y", 0.0, guest=False)
    assert cache.victims(50, 0.0, guest=True) is None, "it was asked for by name since"


def test_of_guests_nothing_is_counted() -> None:
    cache = residency(x=50, y=50)
    cache.used("x", 0.0, guest=False)
    cache.used("y", 0.0, guest=True)
    cache.used("y", 0.0, guest=True)
    cache.used("z", 0.0, guest=False)  # which is not there
    assert cache.victims(50, 0.0) == ["y"]


def test_a_pinned_context_makes_room_last_and_yet_it_does() -> None:
    cache = Residency(100)
    cache.enter("x", 50, 1.0, guest=False, pinned=True)
    cache.enter("y", 50, 9.0, guest=False)
    for key in "xy":
        cache.complete(key)
        cache.used("y", 0.0, guest=False)
    assert cache.victims(50, 0.0) == ["y"]
    assert cache.victims(100, 0.0) == ["y", "x"]


def test_how_a_context_was_used_is_remembered_while_it_is_away() -> None:
    cache = Residency(100)
    for key in ("x", "y"):
        cache.enter(key, 50, 1.0, guest=False)
        cache.complete(key)
    for _ in range(3):
        cache.used("x", 0.0, guest=False)
    cache.used("y", 0.0, guest=False)
    cache.leave("x")
    cache.enter("x", 50, 1.0, guest=False)
    cache.complete("x")
    assert cache.victims(50, 0.0) == ["y"]
    cache.leave("x")
    cache.enter("x", 50, 1.0, guest=True)
    cache.complete("x")
    assert cache.victims(50, 0.0) == ["x"], "of what a guest begins with nothing is counted"


def test_not_more_contexts_are_remembered_than_some() -> None:
    cache = Residency(100)
    for number in range(1000):
        cache.enter(str(number), 1, 1.0, guest=False)
        cache.used(str(number), 0.0, guest=False)
        cache.leave(str(number))
    assert len(cache._left) == 256


def test_whoever_keeps_most_makes_room_first() -> None:
    cache = Residency(100)
    cache.keep("early", 20, 1.0, 0.0, "ann")
    for number in range(3):
        cache.keep(f"late{number}", 20, 1.0, 10.0 + number, "bob")
    assert cache.victims(60, 20.0) == ["late0", "late1"]
    cache.leave("late1")
    cache.leave("late2")
    assert cache.victims(100, 20.0) == ["early", "late0"], "of as many cells, the one of longer ago"


def test_one_more_context_than_may_be_takes_the_place_of_one() -> None:
    cache = residency(most=2, x=10, y=10)
    assert cache.victims(10, 0.0) == []
    assert cache.victims(10, 0.0, entering=True) == ["x"]
    cache.join("x")
    cache.join("y")
    assert cache.victims(10, 0.0, entering=True) is None


def test_who_parts_from_a_context_that_has_gone_changes_nothing() -> None:
    cache = residency(x=10)
    cache.join("x")
    cache.leave("x")
    cache.part("x")
    cache.leave("x")
    assert cache.free_cells == 100


SIZES = st.lists(st.integers(1, 50), max_size=6)
MARKS = st.lists(st.sampled_from(["ready", "coming", "used", "guest"]), min_size=6, max_size=6)


@given(SIZES, MARKS, st.integers(0, 40), st.integers(0, 400), st.integers(1, 6), st.booleans(), st.booleans())
def test_room_is_made_wherever_it_can_be_and_by_whom_it_may_be(
    sizes: list[int], marks: list[str], claimed: int, cells: int, most: int, guest: bool, entering: bool
) -> None:
    cache = Residency(sum(sizes) + 60, most)
    cache.claim(claimed)
    movable = []
    for key, (size, mark) in enumerate(zip(sizes, marks, strict=False)):
        cache.enter(f"{key}", size, 1.0, guest=mark == "guest")
        if mark != "coming":
            cache.complete(f"{key}")
        if mark == "used":
            cache.join(f"{key}")
        if mark == "guest" or (mark == "ready" and not guest):
            movable.append(f"{key}")
    over = entering and len(sizes) >= most
    chosen = cache.victims(cells, 0.0, guest=guest, entering=entering)
    if chosen is None:
        assert cache.free_cells + sum(cache.sizes[key] for key in movable) < cells or (over and not movable)
        return
    assert {*chosen} <= {*movable} and len({*chosen}) == len(chosen)
    assert cache.free_cells + sum(cache.sizes[key] for key in chosen) >= cells and (chosen or not over)
    if chosen[1:]:
        assert cache.free_cells + sum(cache.sizes[key] for key in chosen[:-1]) < cells, "no more than have to"


@given(st.lists(st.tuples(st.sampled_from("xy"), st.floats(0, 1e5)), max_size=20), st.floats(0, 1e6))
def test_times_may_be_any(uses: list[tuple[str, float]], now_s: float) -> None:
    cache = residency(x=50, y=50)
    for key, at_s in uses:
        cache.used(key, at_s, guest=False)
    assert cache.victims(100, now_s) in [[*order] for order in itertools.permutations("xy")]


def test_where_no_context_may_be_none_can_enter() -> None:
    assert residency(most=0).victims(1, 0.0, entering=True) is None
