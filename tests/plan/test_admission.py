"""Who is let in and who comes next: nobody is lost, starved or served twice, and who asks much waits for itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from preread.errors import Overloaded
from preread.plan.admission import MAKES_WAY_S, Admission, Rounds

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


def test_only_who_has_more_waiting_makes_way_and_the_sooner_the_more_it_has() -> None:
    rounds = Rounds()
    rounds.join("many", 0)
    rounds.join("many", 1)
    assert rounds.keeps_s("many") == math.inf, "nobody else waits"
    rounds.join("one", 2)
    assert rounds.keeps_s("many") == MAKES_WAY_S / 2
    assert rounds.keeps_s("one") == rounds.keeps_s("gone") == math.inf
    rounds.join("many", 3)
    rounds.join("many", 4)
    assert rounds.keeps_s("many") == MAKES_WAY_S / 4
    for ticket in (1, 3, 4):
        rounds.leave("many", ticket)
    assert rounds.keeps_s("many") == math.inf, "one of its own waits, as everybody's does"


class Waiting(RuleBasedStateMachine):
    """Any order of coming, going away and being served. The engine is free only for a moment."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.rounds = Rounds()
        self.last: str | None = None
        self.count = 0
        self.waiting: dict[int, str] = {}
        self.passed: dict[int, list[str]] = {}

    @rule(target=tickets, caller=CALLERS)
    def join(self, caller: str) -> tuple[str, int]:
        self.count += 1
        self.rounds.join(caller, self.count)
        self.waiting[self.count], self.passed[self.count] = caller, []
        return caller, self.count

    @rule(target=tickets, ticket=consumes(tickets))
    def leave(self, ticket: tuple[str, int]) -> object:
        caller, number = ticket
        if self.waiting.pop(number, None) is not None:
            self.rounds.leave(caller, number)
        return multiple()

    @rule()
    def serve(self) -> None:
        following = self.rounds.take(self.last)
        assert (following is None) == (not self.waiting), "somebody is lost"
        if following is None:
            return
        self.last, number = following
        assert self.waiting.pop(number) == self.last, "served twice, or as somebody else"
        for other in self.waiting:
            self.passed[other].append(self.last)

    @invariant()
    def nobody_starves(self) -> None:
        for number, caller in self.waiting.items():
            before = sum(1 for other, of in self.waiting.items() if of == caller and other < number)
            others = [by for by in self.passed[number] if by != caller]
            own = len(self.passed[number]) - len(others)
            for other in set(others):
                assert others.count(other) <= own + before + 1, "another caller came twice before this one came once"


TestWaiting = Waiting.TestCase
