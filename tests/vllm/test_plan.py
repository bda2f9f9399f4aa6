"""What each step saves and loads: every token of a publication once, and only what a prompt begins with."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.vllm.plan import Arrived, Planner

PAGE = 4
NOTHING = np.zeros((1, 1, 10, 2), np.float16)
CONTEXT = np.arange(10, dtype=np.int32)


class Source:
    """Says what it is told to."""

    def __init__(self, *answers: Arrived | str | None) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def ask(self, name: str) -> Arrived | str | None:
        self.asked.append(name)
        return self.answers.pop(0)


def wish(**what: object) -> dict[str, object]:
    return {"preread": what}


def planner(*answers: Arrived | str | None, publishes: bool = True) -> Planner:
    return Planner(Source(*answers) if answers else None, PAGE, publishes=publishes)


@given(prompt=st.integers(1, 40), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=50), cached=st.integers(0, 8))
def test_every_token_is_saved_once_in_order_and_at_its_place(prompt: int, cuts: Sequence[int], cached: int) -> None:
    plan = planner()
    tokens = list(range(prompt))
    cached = min(cached, prompt - 1)
    assert plan.matched("a", wish(publish="manual"), tokens, cached, plain=True) == 0
    pages, at, saved = list[int](), cached, list[tuple[int, int]]()
    for number, cut in enumerate([*cuts, prompt, 3]):  # the last ones are of the answer
        needed = -(-(at + cut) // PAGE)
        new = [100 + 7 * page for page in range(len(pages), needed)]
        pages += new
        at += cut
        plan.scheduled("a", new, at, anew=number == 0)
        for save in plan.step().saves:
            saved.append((save.start, save.stop))
            places = [pages[token // PAGE] * PAGE + token % PAGE for token in range(save.start, save.stop)]
            assert save.slots.tolist() == places and save.tokens.tolist() == tokens
    assert saved[0][0] == 0 and saved[-1][1] == prompt
    assert all(one[1] == other[0] for one, other in pairwise(saved))
    assert plan.finished("a") == {"publishing": "manual", "tokens": prompt}


@given(same=st.integers(0, 10), more=st.integers(1, 9), computed=st.integers(0, 12))
def test_as_much_is_loaded_as_the_prompt_begins_with_in_whole_pages(same: int, more: int, computed: int) -> None:
    prompt = [*CONTEXT[:same].tolist(), *([99] * more)]
    plan = planner(Arrived(CONTEXT, "lossless", NOTHING, NOTHING))
    count = plan.matched("a", wish(context="manual"), prompt, computed, plain=True)
    assert count == max(0, same // PAGE * PAGE - computed)
    if count:
        plan.allocated("a", [5, 9, 2], count)
        (load,) = plan.step().loads
        assert (load.start, load.stop) == (computed, same // PAGE * PAGE)
        assert load.slots.tolist() == [[5, 9, 2][t // PAGE] * PAGE + t % PAGE for t in range(load.start, load.stop)]
    told = plan.finished("a")
    assert told is not None and told["loaded_tokens"] == count
    assert ("reason" in told) == (same < len(CONTEXT))


def test_something_is_left_to_compute_of_a_prompt_that_is_the_context() -> None:
    plan = planner(Arrived(CONTEXT[:8], "lossless", NOTHING, NOTHING))
    assert plan.matched("a", wish(context="manual"), CONTEXT[:8].tolist(), 0, plain=True) == 4


def test_a_context_that_is_coming_is_asked_for_again_and_one_that_does_not_come_is_computed() -> None:
    plan = planner(None, None, "the cloud does not answer")
    ask = ("a", wish(context="manual"), CONTEXT.tolist(), 0)
    assert plan.matched(*ask, plain=True) is None
    assert plan.matched(*ask, plain=True) is None
    assert plan.matched(*ask, plain=True) == 0
    assert plan.finished("a") == {"context": "manual", "loaded_tokens": 0, "reason": "the cloud does not answer"}


@pytest.mark.parametrize(
    "params",
    [
        wish(publish="a/b"),
        wish(publish=3),
        wish(context="manual", form="letter"),
        wish(contxt="manual"),
        {"preread": "manual"},
        wish(publish="x" * 200),
    ],
)
def test_a_wish_that_makes_no_sense_is_passed_over_and_said(
    params: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    plan = Planner(source, PAGE, publishes=True)
    assert plan.matched("a", params, CONTEXT.tolist(), 0, plain=True) == 0
    plan.scheduled("a", [1, 2, 3], 10, anew=True)
    assert plan.step().saves == () and plan.finished("a") is None
    assert "is passed over" in caplog.text and source.asked == []


def test_what_does_not_follow_from_tokens_alone_is_neither_published_nor_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    plan = Planner(source, PAGE, publishes=True)
    assert plan.matched("a", wish(publish="manual", context="other"), CONTEXT.tolist(), 0, plain=False) == 0
    assert plan.finished("a") is None and source.asked == [] and "token ids alone" in caplog.text


def test_nothing_is_fetched_or_saved_for_a_request_without_a_wish() -> None:
    source = Source()
    plan = Planner(source, PAGE, publishes=True)
    for params in (None, {}, {"other": {"publish": "manual"}}):
        assert plan.matched("a", params, CONTEXT.tolist(), 0, plain=True) == 0
        plan.scheduled("a", [1, 2, 3], 10, anew=True)
    assert plan.step().saves == () and source.asked == [] and plan.finished("a") is None


def test_a_publication_that_is_given_up_is_dropped_and_not_one_that_is_whole() -> None:
    plan = planner()
    for id, stop in (("a", 6), ("b", 10)):
        plan.matched(id, wish(publish="manual"), CONTEXT.tolist(), 0, plain=True)
        plan.scheduled(id, [1, 2, 3], stop, anew=True)
        plan.finished(id)
    assert plan.step().dropped == ("a",) and plan.step().dropped == ()


def test_without_a_store_nothing_is_published(caplog: pytest.LogCaptureFixture) -> None:
    plan = planner(publishes=False)
    assert plan.matched("a", wish(publish="manual"), CONTEXT.tolist(), 0, plain=True) == 0
    assert plan.finished("a") is None and "no store" in caplog.text
