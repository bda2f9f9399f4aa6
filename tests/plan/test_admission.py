"""Who is let in and who comes next: nobody is lost, starved or served twice, and who asks much waits for itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import Overloaded
from preread.plan.admission import Admission, Rounds, Wasted

CALLERS = st.sampled_from(["a", "b", "c", "d"])


def test_one_caller_has_half_and_all_of_them_all() -> None:
    admission = Admission("requests", 4)
    admission.enter("a", 1, 7.0)
    admission.enter("a", 1, 7.0)
    with pytest.raises(Overloaded, match="you have 2 requests") as refusal:
        admission.enter("a", 1, 7.0)
    assert refusal.value.by_caller and refusal.value.retry_after_s == 7.0
    assert (admission.of("a"), admission.of("b")) == (2, 0)
    admission.enter("b", 1, 7.0)
    admission.enter("c", 1, 7.0)
    with pytest.raises(Overloaded, match="4 requests are waiting") as refusal:
        admission.enter("b", 1, 7.0)
    assert not refusal.value.by_caller
    admission.enter("d", 1, 7.0)  # it has nothing inside
    admission.leave("a", 1)
    with pytest.raises(Overloaded):
        admission.enter("a", 1, 7.0)
    admission.leave("d", 1)
    admission.enter("a", 1, 7.0)


def test_what_was_wasted_is_forgotten_by_halves() -> None:
    wasted = Wasted()
    assert wasted.of("a", 0.0) == 0.0
    for now_s in (0.0, 0.0, 5.0):
        wasted.note("a", now_s)
    assert wasted.of("a", 5.0) == 2.0
    assert wasted.of("a", 10.0) == 1.0
    assert wasted.of("b", 10.0) == 0.0


def test_of_many_callers_those_who_waste_most_are_remembered() -> None:
    wasted = Wasted()
    for number in range(5000):
        wasted.note(str(number), 0.0)
        wasted.note("much", 0.0)
    assert wasted.of("much", 0.0) == 5000.0
    assert sum(wasted.of(str(number), 0.0) > 0 for number in range(5000)) <= 1024


def test_what_is_larger_than_all_room_is_let_in_alone() -> None:
    admission = Admission("bytes", 4)
    admission.enter("a", 100, 1.0)
    with pytest.raises(Overloaded):
        admission.enter("b", 1, 1.0)
    admission.leave("a", 100)
    admission.enter("b", 1, 1.0)


@given(st.integers(1, 12), st.lists(st.tuples(CALLERS, st.integers(1, 3)), max_size=60))
def test_room_is_kept_and_given_back(most: int, requests: list[tuple[str, int]]) -> None:
    admission, inside = Admission("requests", most), []
    for caller, amount in requests:
        try:
            admission.enter(caller, amount, 1.0)
        except Overloaded:
            continue
        inside.append((caller, amount))
        own = [size for other, size in inside if other == caller]
        assert len(own) == 1 or sum(own) <= max(1, most // 2)
        assert len(inside) == 1 or sum(size for _, size in inside) <= 2 * most
    for caller, amount in inside:
        admission.leave(caller, amount)
    for caller in "abcd":
        admission.enter(caller, 1, 1.0)
        admission.leave(caller, 1)


def test_callers_come_in_turn_and_their_requests_in_order() -> None:
    rounds = Rounds()
    for ticket in range(5):
        rounds.join("many", ticket)
    rounds.join("one", 5)
    rounds.join("two", 6)
    rounds.join("two", 7)
    served, last = [], None
    while (following := rounds.take(last)) is not None:
        last, ticket = following
        served.append(ticket)
    assert served == [0, 5, 6, 1, 7, 2, 3, 4] and len(rounds) == 0


def test_who_was_served_last_comes_after_who_came_meanwhile() -> None:
    rounds = Rounds()
    rounds.join("many", 0)
    rounds.join("one", 1)
    assert rounds.take("many") == ("one", 1)
    rounds.leave("many", 0)
    assert rounds.take("one") is None


def test_who_leaves_while_others_of_the_same_caller_wait_leaves_alone() -> None:
    rounds = Rounds()
    rounds.join("many", 0)
    rounds.join("many", 1)
    rounds.leave("many", 0)
    assert rounds.take(None) == ("many", 1) and len(rounds) == 0
