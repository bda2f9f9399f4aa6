"""What becomes of a publication whose replica ended: it goes on as long as it gets on, and is given up at last."""

from hypothesis import given
from hypothesis import strategies as st

from preread.cloud.ray.decide import (
    MOST_BUSY,
    MOST_ENDED,
    Again,
    Busy,
    Course,
    Ended,
    GiveUp,
    Lost,
    Outcome,
    Removed,
    Taken,
    decide,
)
from preread.errors import EngineError, Overloaded, Unavailable

done = st.integers(0, 10**6)
GONE = Unavailable("it was removed")
outcomes = st.one_of(
    st.builds(Ended, st.text("abc", min_size=1), done),
    st.builds(Lost, done),
    st.just(Busy()),
    st.just(Taken()),
    st.just(Removed(GONE)),
)


def through(outcomes: list[Outcome]) -> Again | GiveUp:
    step: Again | GiveUp = Again(0.0, Course())
    for outcome in outcomes:
        assert isinstance(step, Again)
        step = decide(step.course, outcome)
    return step


@given(st.lists(outcomes, max_size=40))
def test_it_never_waits_long_nor_forgets_who_ended_nor_loses_ground(told: list[Outcome]) -> None:
    course, ended = Course(), set[str]()
    for outcome in told:
        step = decide(course, outcome)
        if isinstance(outcome, Ended):
            ended.add(outcome.owner)
        if isinstance(step, GiveUp):
            return
        assert 0 <= step.after_s <= 5 and step.course.gone == ended
        assert isinstance(outcome, Removed) or step.course.done >= course.done
        course = step.course


@given(st.lists(st.integers(1, 100), max_size=200))
def test_kills_do_not_end_what_gets_on(steps: list[int]) -> None:
    sums = [sum(steps[: n + 1]) for n in range(len(steps))]
    step = through([Ended(str(n), at) for n, at in enumerate(sums)])
    assert isinstance(step, Again) and step.after_s == 0 and len(step.course.gone) == len(steps)


@given(done, st.booleans())
def test_a_document_that_ends_replica_after_replica_is_given_up(at: int, lost: bool) -> None:
    one: list[Outcome] = [Lost(at) if lost else Ended(str(n), at) for n in range(MOST_ENDED)]
    assert isinstance(through(one[:-1]), Again)
    step = through(one)
    assert isinstance(step, GiveUp) and isinstance(step.error, EngineError) and "5 replicas" in str(step.error)


def test_who_only_lost_its_link_keeps_its_claim() -> None:
    step = through([Lost(0), Lost(128)])
    assert isinstance(step, Again) and not step.course.gone and step.after_s > 0


def test_where_all_are_busy_the_caller_is_asked_to_come_again() -> None:
    assert isinstance(through([Busy()] * MOST_BUSY), Again)
    step = through([Busy()] * (MOST_BUSY + 1))
    assert isinstance(step, GiveUp) and isinstance(step.error, Overloaded) and step.error.retry_after_s > 0
    assert isinstance(through([*[Busy()] * MOST_BUSY, Ended("a", 128), *[Busy()] * MOST_BUSY]), Again)


def test_somebody_else_is_waited_for_as_long_as_it_takes() -> None:
    step = through([Taken()] * 10_000)
    assert isinstance(step, Again) and step.after_s > 0


def test_a_name_that_cannot_be_put_is_tried_again_and_the_store_says_why_at_last() -> None:
    assert isinstance(through([Removed(GONE)] * (MOST_ENDED - 1)), Again)
    step = through([Removed(GONE)] * MOST_ENDED)
    assert isinstance(step, GiveUp) and step.error is GONE
