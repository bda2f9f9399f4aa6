"""Guesses are what came before, and as many of them are made as pay."""

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.drafts import MOST_DRAFTS, RUN, Drafts, Runs, worth
from preread.plan.step_cost import StepCost

TOKENS = st.lists(st.integers(0, 3), max_size=60)
"""Few different ones, so that runs come again."""

SECONDS = st.floats(1e-5, 1.0)


def cost(base_s: float, token_s: float) -> StepCost:
    return StepCost(base_s, token_s, 0.0, 0.0)


CHEAP = cost(0.1, 1e-4)
"""A step takes as long for a dozen tokens as for one."""


def searched(tokens: list[int], run: tuple[int, ...]) -> int | None:
    """Where what came after a run when it came last is, found by looking everywhere; not where nothing has come yet."""
    for at in range(len(tokens) - RUN - 1, -1, -1):
        if tuple(tokens[at : at + RUN]) == run:
            return at + RUN
    return None


# Runs


@given(TOKENS, st.lists(st.integers(0, 3), min_size=RUN, max_size=RUN))
def test_what_came_after_a_run_is_what_a_search_finds(tokens: list[int], run: list[int]) -> None:
    assert Runs(tokens).after(tuple(run)) == searched(tokens, tuple(run))


@given(TOKENS, TOKENS)
def test_tokens_may_come_at_once_or_one_by_one(first: list[int], then: list[int]) -> None:
    grown, whole = Runs(first), Runs([*first, *then])
    for token in then:
        grown.append(token)
    ends = {tuple(whole.tokens[at : at + RUN]) for at in range(len(whole.tokens))}
    assert all(grown.after(run) == whole.after(run) for run in ends)


def test_a_run_that_never_came_has_nothing_after_it() -> None:
    assert Runs([1, 2, 3, 4]).after((2, 3, 9)) is None
    assert Runs().after(()) is None


# What is guessed


def test_a_guess_is_what_came_after_the_same_tokens_in_the_context() -> None:
    drafts = Drafts(Runs([1, 2, 3, 4, 5, 6, 7]), [], [8, 9])
    for token in (2, 3, 4):
        drafts.chosen(token)
    assert drafts.guesses(2) == [5, 6]


def test_a_place_is_followed_as_long_as_it_is_right() -> None:
    """Entries that are alike but for their numbers: what came last after the same tokens is another entry."""
    entries = [1, 7, 7, 7, 2, 7, 7, 7, 3, 7, 7, 7, 4]
    drafts = Drafts(Runs([0, 0, *entries]), [], [0, 0, 1])
    for token in (7, 7, 7):
        drafts.chosen(token)
    assert drafts.guesses(3) == [2, 7, 7]
    drafts.chosen(9)
    assert drafts.guesses(3) == []
    for token in (7, 7, 7):
        drafts.chosen(token)
    assert drafts.guesses(3) == [9, 7, 7], "it was wrong: what came last is taken"


def test_a_place_ends_where_what_was_read_does() -> None:
    drafts = Drafts(Runs([1, 2, 3, 4, 5]), [], [1, 2, 3])
    for token in (4, 5):
        drafts.chosen(token)
    assert drafts.guesses(3) == []


def test_what_was_said_comes_before_what_the_context_says() -> None:
    drafts = Drafts(Runs([1, 2, 3, 4]), [], [1, 2, 3, 9])
    for token in (1, 2, 3):
        drafts.chosen(token)
    assert drafts.guesses(3) == [9, 1, 2]


def test_an_answer_is_guessed_from_itself() -> None:
    drafts = Drafts(Runs(), [], [])
    for token in (1, 2, 3, 4, 1, 2, 3):
        drafts.chosen(token)
    assert drafts.guesses(1) == [4]


def test_a_run_may_reach_from_the_context_into_the_prompt() -> None:
    drafts = Drafts(Runs([9, 9, 1, 2]), [9, 9, 1, 2], [3, 4, 5])
    for token in (1, 2, 3):
        drafts.chosen(token)
    assert drafts.guesses(1) == [4]


def test_without_a_guess_nothing_is_proposed() -> None:
    drafts = Drafts(Runs([1, 2, 3, 4]), [], [])
    assert drafts.proposed(0, CHEAP) == []
    drafts.chosen(7)
    assert drafts.proposed(0, CHEAP) == []


def test_more_is_proposed_as_guesses_turn_out_right() -> None:
    text = [*range(40)]
    drafts = Drafts(Runs(text), [], [])
    found = []
    for token in text[:12]:
        drafts.chosen(token)
        found.append(len(drafts.proposed(0, CHEAP)))
    assert found[:2] == [0, 0], "no run has come yet"
    assert found == sorted(found) and found[-1] == MOST_DRAFTS
    assert drafts.proposed(0, CHEAP) == text[12 : 12 + MOST_DRAFTS]


def test_guesses_that_turn_out_wrong_end_and_are_made_again_when_they_would_have_been_right() -> None:
    text = [*range(100)]
    drafts = Drafts(Runs(text), [], [])
    for start in range(0, 60, 4):  # each time something else comes than came after these three
        for token in (*text[start : start + 3], 999 + start):
            drafts.chosen(token)
    for token in text[70:73]:
        drafts.chosen(token)
    assert drafts.guesses(1) == [73] and drafts.proposed(0, cost(0.01, 0.008)) == []
    for token in text[73:90]:
        drafts.chosen(token)
    assert drafts.proposed(0, cost(0.01, 0.001))[:1] == [90]


# What pays


@given(st.floats(0, 1), st.integers(0, 95), SECONDS)
def test_nothing_pays_where_a_token_costs_as_much_as_a_step_of_its_own(right: float, beside: int, s: float) -> None:
    assert worth(right, beside, cost(0.0, s)) == 0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 95), SECONDS, SECONDS)
def test_more_pay_the_oftener_they_are_right(one: float, other: float, beside: int, base: float, each: float) -> None:
    low, high = sorted((one, other))
    of = cost(base, each)
    assert 0 <= worth(low, beside, of) <= worth(high, beside, of) <= MOST_DRAFTS


@given(st.integers(0, 95), SECONDS, SECONDS)
def test_none_pays_that_is_never_right(beside: int, base_s: float, token_s: float) -> None:
    assert worth(0.0, beside, cost(base_s, token_s)) == 0


@given(st.integers(0, 20))
def test_as_many_as_may_be_pay_where_they_cost_nothing_and_are_right(beside: int) -> None:
    assert worth(1.0, beside, cost(1.0, 0.0)) == MOST_DRAFTS


@given(st.floats(0.5, 1), SECONDS, st.integers(0, 40), st.integers(0, 40))
def test_fewer_pay_the_more_others_wait_for_the_step(right: float, token_s: float, one: int, other: int) -> None:
    few, many = sorted((one, other))
    of = cost(10 * token_s, token_s)
    assert worth(right, many, of) <= worth(right, few, of)
