import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.choose import Offer, choose_rung

LADDER = (
    Offer("lossless", 10_000, 0.0),
    Offer("q8", 6_000, None),
    Offer("b4", 3_000, -0.0001),
    Offer("q4", 3_100, None),
    Offer("b2", 1_500, 0.006),
    Offer("b1", 800, 0.03),
)


@pytest.mark.parametrize(
    ("max_dloss", "unusable", "chosen"),
    [
        (0.01, (), "b2"),
        (0.006, (), "b2"),
        (0.0059, (), "b4"),
        (1.0, (), "b1"),
        (0.0, (), "b4"),
        (0.01, ("b2",), "b4"),
        (0.01, ("b1", "b2", "b4"), "lossless"),
        (0.01, ("b1", "b2", "b4", "lossless"), "q8"),
        (0.01, ("b1", "b2", "b4", "lossless", "q8"), "q4"),
        (0.01, tuple(offer.name for offer in LADDER), None),
    ],
)
def test_the_fewest_bytes_within_the_budget(max_dloss: float, unusable: tuple[str, ...], chosen: str | None) -> None:
    assert choose_rung(LADDER, max_dloss, lambda name: name not in unusable) == chosen


def test_what_costs_more_than_the_budget_is_never_taken() -> None:
    assert choose_rung([Offer("b1", 1, 0.011)], 0.01, lambda _: True) is None
    assert choose_rung([], 0.01, lambda _: True) is None


TIMED = (
    Offer("lossless", 10_000, 0.0, 2.0),
    Offer("q8", 6_000, None, 1.0),
    Offer("b4", 3_000, 0.0001, 0.5),
    Offer("b2", 1_500, 0.006, 0.3),
    Offer("b1", 800, 0.03, 0.2),
)


@pytest.mark.parametrize(
    ("deadline_s", "max_dloss", "chosen"),
    [
        (2.0, 0.01, "lossless"),
        (1.99, 0.01, "b4"),
        (0.3, 0.01, "b2"),
        (0.29, 0.01, "b2"),  # the soonest, late as it is
        (0.29, 1.0, "b1"),
        (5.0, 0.0, "lossless"),
    ],
)
def test_the_best_that_is_expected_in_time(deadline_s: float, max_dloss: float, chosen: str) -> None:
    assert choose_rung(TIMED, max_dloss, lambda _: True, deadline_s) == chosen


def test_what_cannot_be_read_is_passed_over_for_what_is_in_time_too() -> None:
    assert choose_rung(TIMED, 0.01, lambda name: name != "b4", 1.0) == "b2"
    assert choose_rung(LADDER, 0.01, lambda _: True, 1.0) == "b2"  # of no rung anything is known: the fewest bytes


names = st.sampled_from(["a", "b", "c", "d", "e", "f"])
stated = st.none() | st.floats(-1, 1)


@given(
    st.lists(st.builds(Offer, names, st.integers(1, 99), stated), unique_by=lambda offer: offer.name),
    st.floats(0, 1),
    st.sets(names),
)
def test_no_better_choice_exists(offers: list[Offer], max_dloss: float, readable: set[str]) -> None:
    chosen = choose_rung(offers, max_dloss, lambda name: name in readable)
    kept = [o for o in offers if o.name in readable and o.dloss is not None and o.dloss <= max_dloss]
    unstated = [o.name for o in offers if o.name in readable and o.dloss is None]
    if kept:
        (found,) = [o for o in kept if o.name == chosen]
        assert found.size_bytes == min(o.size_bytes for o in kept)
    else:
        assert chosen == (unstated[0] if unstated else None)
