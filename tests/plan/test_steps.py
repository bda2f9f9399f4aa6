"""What the plan says at single events."""

from dataclasses import replace

import pytest

from preread.plan import events
from preread.plan.cost import Prefill
from preread.plan.events import Cell, Event, Instruction
from preread.plan.health import FAILURES, Breaker
from preread.plan.plan import MOST_BYTES, Plan
from preread.plan.task import Source, Task

FAST = Source(1e7, 0.01, silence_s=0.5)
SLOW_MACHINE = Prefill(0.01)


def task(*sources: Source, chunks: int = 2, groups: int = 2, size: int = 1000, first: int | None = None) -> Task:
    """A context of equal cells; `first`: the source that is to be asked for all of them."""
    asked = () if first is None else ((first,) * groups,) * chunks
    return Task((128,) * chunks, ((size,) * groups,) * chunks, SLOW_MACHINE, 0.1, 1e7, sources, asked)


def fetched(out: list[Instruction]) -> list[tuple[Cell, int]]:
    return [(one.cell, one.source) for one in out if isinstance(one, events.Fetch)]


def tell(plan: Plan, at_s: float, *said: Event) -> list[Instruction]:
    return [instruction for event in said for instruction in plan.step(event, at_s)]


def test_what_arrives_is_injected_and_opened_and_then_nothing_is_left_to_do() -> None:
    plan = Plan(task(FAST, chunks=1), 0.0)
    (first, _), (second, _) = fetched(tell(plan, 0.0, events.Tick()))
    assert plan.asked_of(0) and not plan.complete
    out = tell(plan, 0.1, events.Progress(0, 2000), events.Arrived(first, 0), events.Arrived(second, 0))
    assert [one for one in out if isinstance(one, events.Inject)] == [events.Inject(first), events.Inject(second)]
    out = tell(plan, 0.2, events.Placed(first), events.Placed(second))
    assert events.Open(2) in out and plan.complete
    assert tell(plan, 0.3, events.Tick(), events.Progress(0, 3000)) == []
    assert plan.flows[0].seen_bytes == 3000


def test_a_source_that_nothing_was_asked_of_is_told_apart() -> None:
    plan = Plan(task(FAST, FAST, first=1), 0.0)
    tell(plan, 0.0, events.Tick())
    assert [plan.asked_of(0), plan.asked_of(1)] == [False, True]


def test_cells_under_way_are_bounded_in_bytes_but_one_may_be_larger() -> None:
    wide = replace(FAST, bytes_s=1e9)
    thirds, larger = task(wide, chunks=1, groups=8, size=MOST_BYTES // 3), task(wide, size=2 * MOST_BYTES)
    counts = [
        len(fetched(tell(Plan(replace(one, decode_bytes_s=1e12), 0.0), 0.0, events.Tick()))) for one in (thirds, larger)
    ]
    assert counts == [3, 1]


def test_a_computation_that_takes_longer_than_it_should_is_given_up_for_what_a_link_brings_sooner() -> None:
    """But never for computing the same again: the machine has become slower."""
    for bytes_s, ends in ((1e5, True), (None, False)):
        source = replace(FAST, bytes_s=bytes_s)
        plan = Plan(replace(task(source, chunks=1, groups=2, size=100_000), prefill=Prefill(0.01)), 0.0)
        (begun,) = [one for one in tell(plan, 0.0, events.Tick()) if isinstance(one, events.Compute)]
        assert begun == events.Compute(0, 1)  # 1.28 s, and loading would take 2
        told = tell(plan, 1.2, events.Tick())
        told += tell(plan, 1.3, events.Tick())
        assert events.Interrupt() not in told
        assert (events.Interrupt() in tell(plan, 6.0, events.Tick())) == ends


def test_one_that_has_to_get_a_cell_itself_is_given_the_time_that_this_takes() -> None:
    """Two cells of 100 kB over the cloud's 1 MB/s, and a round trip to either: overdue after 0.25 s + 3 × 0.22 s."""
    cloud = replace(FAST, bytes_s=1e6, silence_s=9.0)
    asked = task(replace(FAST, silence_s=9.0), cloud, chunks=1, size=100_000, first=0)
    plan = Plan(replace(asked, prefill=Prefill(1.0)), 0.0)  # so slow that nothing is ever computed
    assert fetched(tell(plan, 0.0, events.Tick())) == [((0, 0), 0)]
    assert fetched(tell(plan, 0.01, events.Tick())) == [((0, 1), 0)]
    assert not fetched(tell(plan, 0.55, events.Progress(0, 1000), events.Tick()))
    assert fetched(tell(plan, 0.95, events.Progress(0, 2000), events.Tick()))


@pytest.mark.parametrize("late", [events.Arrived, events.Failed])
def test_what_was_given_up_is_not_wanted_when_it_comes(late: type[events.Arrived] | type[events.Failed]) -> None:
    """Two sources are asked for a cell, since one is overdue; what the slower one does then is of no matter."""
    plan = Plan(task(FAST, FAST, chunks=1, groups=1), 0.0)
    assert fetched(tell(plan, 0.0, events.Tick())) == [((0, 0), 0)]
    assert fetched(tell(plan, 0.4, events.Tick())) == [((0, 0), 1)]
    out = tell(plan, 0.41, events.Arrived((0, 0), 1))
    assert events.Abandon((0, 0), 0) in out and events.Inject((0, 0)) in out
    before = plan.grid.away_bytes, plan.grid.busy, plan.breakers
    assert tell(plan, 0.42, late((0, 0), 0)) == []
    assert (plan.grid.away_bytes, plan.grid.busy, plan.breakers) == before and not plan.grid.spoilt


def test_for_one_that_is_late_the_last_one_stands_in_until_something_comes_of_it() -> None:
    plan = Plan(task(FAST, replace(FAST, bytes_s=1e5), first=0, chunks=4), 0.0)
    asked = fetched(tell(plan, 0.0, events.Tick()))
    assert {source for _, source in asked} == {0} and len(asked) > 2
    out = fetched(tell(plan, 0.5, events.Tick()))
    assert len(out) > 1 and {source for _, source in out} == {1}, "also for what is not overdue itself"
    assert plan.breakers[0].failures == 1
    tell(plan, 0.6, *[events.Arrived(cell, 0) for cell, _ in asked])
    assert plan.breakers[0] == Breaker()


def test_one_that_is_late_is_waited_for_where_nobody_can_stand_in() -> None:
    gone = Breaker(FAILURES, 0.0)
    plan = Plan(task(replace(FAST, silence_s=9.0), replace(FAST, breaker=gone), first=0), 0.0)
    assert fetched(tell(plan, 0.0, events.Tick()))
    assert not fetched(tell(plan, 0.5, events.Tick())) and plan.breakers[0].failures == 1


def test_a_cell_that_is_nowhere_is_computed() -> None:
    """A source is asked twice for what turns out wrong, and then the next one."""
    plan, cell = Plan(task(FAST, FAST), 0.0), (1, 0)
    asked = dict(fetched(tell(plan, 0.0, events.Tick())))
    tried = []
    while not plan.grid.spoilt:
        tried.append(asked[cell])
        asked |= dict(fetched(tell(plan, 0.1, events.Failed(cell, asked[cell], "cell"))))
    assert tried == [0, 0, 1, 1] and plan.grid.spoilt == {1}
    assert not any(breaker.tripped for breaker in plan.breakers), "nothing is wrong with the links"


def test_a_cell_is_not_nowhere_while_somebody_is_about_to_bring_it() -> None:
    """It is asked of both, since the first is overdue; both have nothing more, but the second has begun to send it."""
    plan = Plan(task(FAST, FAST), 0.0)
    first = fetched(tell(plan, 0.0, events.Tick()))
    both = fetched(tell(plan, 0.4, events.Tick()))
    (mine, _), (other, _) = both[0], both[1]
    assert {source for _, source in first} == {0} and {source for _, source in both} == {1} and mine[0] == 1
    tell(plan, 0.41, events.Failed(other, 1, "source"), events.Failed(mine, 0, "source"))
    assert mine[0] not in plan.grid.spoilt
    assert events.Inject(mine) in tell(plan, 0.42, events.Arrived(mine, 1))


def test_a_source_that_is_left_alone_is_not_waited_for_where_another_can_stand_in() -> None:
    tripped = replace(FAST, breaker=Breaker(FAILURES, -0.1))
    out = tell(Plan(task(tripped, FAST, first=0), 0.0), 0.0, events.Tick())
    assert sorted(fetched(out)) == [((chunk, group), 1) for chunk in (0, 1) for group in (0, 1)]
    assert len(out) == 4, "its rate is counted on: nothing is computed beside"


def test_one_request_tries_a_source_that_had_failed_and_the_others_go_elsewhere() -> None:
    tripped = replace(FAST, breaker=Breaker(FAILURES, -100.0))
    plan = Plan(task(tripped, FAST, first=0), 0.0)
    out = fetched(tell(plan, 0.0, events.Tick()))
    assert sorted(source for _, source in out) == [0, 1, 1, 1]
    tried = next(cell for cell, source in out if source == 0)
    tell(plan, 0.02, events.Progress(0, 1000), events.Arrived(tried, 0))
    assert plan.breakers[0] == Breaker()


def test_a_source_that_falls_silent_is_replaced_and_one_that_speaks_again_is_used() -> None:
    silent_s = FAST.silence_s + 4 * FAST.rtt_s
    plan = Plan(task(FAST, FAST, first=0, chunks=80), 0.0)
    asked = fetched(tell(plan, 0.0, events.Tick()))
    assert {source for _, source in asked} == {0}
    overdue = fetched(tell(plan, silent_s - 0.01, events.Tick()))
    assert not plan.breakers[0].tripped and set(overdue) <= {(cell, 1) for cell, _ in asked}
    tell(plan, silent_s + 0.01, events.Progress(0, 0), events.Tick())
    assert plan.breakers[0].tripped
    *others, (cell, _) = overdue
    brought = [events.Arrived(cell, source) for cell, source in others]
    new = fetched(tell(plan, silent_s + 0.1, *brought))
    assert {source for _, source in new} == {1} and not {cell for cell, _ in new} & {cell for cell, _ in asked}
    out = tell(plan, silent_s + 0.1, events.Progress(0, 1000), events.Arrived(cell, 0))
    assert not plan.breakers[0].tripped and cell not in plan.grid.away, "whatever arrives is used"
    assert 0 in {source for _, source in fetched(out)}


@pytest.mark.parametrize("seconds", [0.0, 100.0])
def test_a_machine_that_is_believed_to_take_no_time_is_computed_on(seconds: float) -> None:
    plan = Plan(replace(task(), prefill=Prefill(0.0)), 0.0)
    assert tell(plan, 0.0, events.Tick()) == [events.Compute(0, 1)]
    assert events.Compute(1, 2) in tell(plan, seconds, events.Computed(seconds))


def test_a_source_takes_as_many_requests_as_it_says_and_then_the_next_one_is_asked() -> None:
    one, two = replace(FAST, most_requests=1), replace(FAST, most_requests=2)
    plan = Plan(task(one, two), 0.0)
    assert sorted(source for _, source in fetched(tell(plan, 0.0, events.Tick()))) == [0, 1, 1]
    assert fetched(tell(plan, 0.01, events.Tick())) == []


def test_without_sources_chunks_are_computed_in_batches_but_for_the_last() -> None:
    plan = Plan(task(chunks=6), 0.0)
    assert tell(plan, 0.0, events.Tick()) == [events.Compute(0, 3)]
    assert tell(plan, 4.0, events.Computed(4.0)) == [events.Compute(3, 4)]


@pytest.mark.parametrize(("bytes_s", "stop"), [(200.0, 3), (400.0, 3), (500.0, 1), (1000.0, 1), (None, 1)])
def test_where_a_link_brings_no_chunk_in_time_all_are_computed_at_once(bytes_s: float | None, stop: int) -> None:
    """Three chunks take 3.9 s with the prompt, the last 2,000 bytes 5 s at 400 bytes a second, 4 s at 500."""
    out = tell(Plan(task(replace(FAST, bytes_s=bytes_s), chunks=3), 0.0), 0.0, events.Tick())
    assert [one for one in out if isinstance(one, events.Compute)] == [events.Compute(0, stop)]


def test_a_batch_has_at_most_512_tokens() -> None:
    assert tell(Plan(task(chunks=30), 0.0), 0.0, events.Tick()) == [events.Compute(0, 4)]


@pytest.mark.parametrize(("here", "stop"), [(0, 7), (1, 5), (2, 5)])
def test_a_batch_ends_before_a_chunk_of_which_some_or_all_is_in_place(here: int, stop: int) -> None:
    unknown = replace(FAST, bytes_s=None)
    plan = Plan(task(unknown, unknown, chunks=10), 0.0)
    out = tell(plan, 0.0, events.Tick())
    asked = dict(fetched(out))
    assert events.Compute(0, 4) in out
    for cell in [(5, 0), (5, 1)][:here]:
        assert events.Inject(cell) in tell(plan, 0.1, events.Arrived(cell, asked[cell]))
        tell(plan, 0.1, events.Placed(cell))
    tell(plan, 0.2, *[events.Failed((9, 1), source, "source") for source in (0, 1)])
    assert tell(plan, 4.0, events.Computed(4.0))[-1] == events.Compute(4, stop)


def test_a_chunk_that_cannot_be_decoded_is_computed_in_its_turn_and_not_fetched_again() -> None:
    plan = Plan(task(FAST), 0.0)
    asked = fetched(tell(plan, 0.0, events.Tick()))
    tell(plan, 0.1, events.Progress(0, 4000), *[events.Arrived(cell, 0) for cell, _ in asked])
    out = tell(plan, 0.1, events.Spoilt((1, 0)), events.Placed((0, 0)), events.Placed((0, 1)), events.Placed((1, 1)))
    assert events.Interrupt() in out and not fetched(out), "the answer had begun"
    assert tell(plan, 0.1, events.Interrupted()) == [events.Compute(1, 2)]
    out = tell(plan, 1.0, events.Computed(0.9))
    assert out == [events.Answer(), events.Open(2)] and plan.complete


def test_what_is_being_injected_is_waited_for_before_its_chunk_is_computed() -> None:
    plan = Plan(task(FAST, chunks=1), 0.0)
    (first, _), (second, _) = fetched(tell(plan, 0.0, events.Tick()))
    assert events.Inject(first) in tell(plan, 0.1, events.Progress(0, 1000), events.Arrived(first, 0))
    assert tell(plan, 0.2, events.Failed(second, 0, "source")) == [events.Interrupt()]
    assert tell(plan, 0.2, events.Interrupted()) == []
    assert tell(plan, 0.3, events.Placed(first)) == [events.Compute(0, 1)]


def test_a_computation_ends_when_its_chunk_has_come_meanwhile() -> None:
    plan = Plan(task(replace(FAST, bytes_s=None), chunks=1), 0.0)
    out = tell(plan, 0.0, events.Tick())
    assert out[0] == events.Compute(0, 1) and len(fetched(out)) == 2, "it may well be the faster way"
    out = tell(plan, 0.1, events.Progress(0, 2000), events.Arrived((0, 0), 0), events.Arrived((0, 1), 0))
    assert out == [events.Interrupt()], "and nothing is injected below it"
    out = tell(plan, 0.11, events.Interrupted())
    assert out[:2] == [events.Inject((0, 0)), events.Inject((0, 1))]


def test_an_answer_that_has_begun_is_taken_back_when_the_link_falls_silent() -> None:
    plan = Plan(task(replace(FAST, silence_s=100.0), chunks=1), 0.0)
    assert events.Answer() in tell(plan, 0.0, events.Tick(), events.Progress(0, 1000), events.Arrived((0, 0), 0))
    assert tell(plan, 0.01, events.Placed((0, 0))) == [events.Open(1)]
    out: list[Instruction] = []
    now_s = 0.01
    while not out:
        now_s += 0.02
        said = tell(plan, now_s, events.Progress(0, 1000), events.Tick())
        out = [one for one in said if not isinstance(one, events.Fetch)]
    assert out == [events.Interrupt()] and now_s < 10
    assert tell(plan, now_s, events.Interrupted())[-1] == events.Compute(0, 1)


def test_until_the_answer_can_begin_little_is_asked_for_beyond_its_first_group() -> None:
    plan = Plan(task(replace(FAST, bytes_s=9e4, rtt_s=0.02), chunks=4, groups=4), 0.0)
    asked = [cell for cell, _ in fetched(tell(plan, 0.0, events.Tick()))]
    assert asked == [(3, 0), (2, 0), (1, 0), (0, 0)]
    said = [one for at_s in (0.005, 0.01, 0.015, 0.02) for one in tell(plan, at_s, events.Tick())]
    later = [group for (_, group), _ in fetched(said)]
    assert later == [1, 1], "as the link can carry them, behind the first group"
    assert events.Answer() in said, "it is made ready meanwhile"
    came = [event for cell in asked for event in (events.Arrived(cell, 0), events.Placed(cell))]
    out = tell(plan, 0.1, events.Progress(0, 4000), *came)
    assert events.Open(1) in out and len(later + fetched(out)) > 6, "as many are under way"


def test_what_the_answer_begins_with_comes_first_wherever_it_lies() -> None:
    """States, which only the last chunk has, of a model with windows or none in all layers but the last."""
    cells = (*((0, 0, 1000),) * 7, (3000, 1000, 1000))
    plan = Plan(Task((128,) * 8, cells, SLOW_MACHINE, 0.001, 1e7, (replace(FAST, bytes_s=1e5, rtt_s=0.02),)), 0.0)
    asked = [cell for cell, _ in fetched(tell(plan, 0.0, events.Tick()))]
    assert asked == [(7, 0)], "by itself: what comes beside it would take of its link"
    later = [cell for at_s in (0.01, 0.02) for cell, _ in fetched(tell(plan, at_s, events.Tick()))]
    assert later == [(7, 1), (7, 2)]
    assert len(fetched(tell(plan, 0.06, events.Progress(0, 3000), events.Arrived((7, 0), 0)))) > 1


def test_an_answer_that_has_nothing_to_begin_with_yet_is_taken_back_as_soon_as_computing_is_better() -> None:
    plan = Plan(task(replace(FAST, silence_s=100.0), chunks=1), 0.0)
    tell(plan, 0.0, events.Tick())
    assert events.Answer() in tell(plan, 0.001, events.Tick()), "its first group is under way"
    out, now_s = list[Instruction](), 0.0
    while events.Interrupt() not in out:
        now_s += 0.02
        out = tell(plan, now_s, events.Progress(0, 0), events.Tick())
    assert now_s < 0.89, "one that has something is given up later"
    assert tell(plan, now_s, events.Interrupted())[-1] == events.Compute(0, 1)


def test_progress_alone_is_only_noted() -> None:
    plan = Plan(task(FAST), 0.0)
    assert tell(plan, 0.0, events.Progress(0, 0)) == [] and fetched(tell(plan, 0.0, events.Tick()))


def test_a_cell_that_arrives_breaks_the_silence_whether_its_bytes_were_told_or_not() -> None:
    plan = Plan(task(FAST), 0.0)
    (cell, _), *_ = fetched(tell(plan, 0.0, events.Tick()))
    tell(plan, 0.53, events.Arrived(cell, 0), events.Tick())
    tell(plan, 0.8, events.Tick())
    assert not plan.breakers[0].tripped


def test_what_nobody_looks_at_is_not_fetched() -> None:
    plan = Plan(Task((128,) * 2, ((0, 1000), (1000, 1000)), SLOW_MACHINE, 0.1, 1e7, (FAST,), in_order=True), 0.0)
    assert {cell for cell, _ in fetched(tell(plan, 0.0, events.Tick()))} == {(0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(("in_order", "computed"), [(False, events.Compute(1, 2)), (True, events.Compute(0, 2))])
def test_where_order_matters_a_chunk_that_came_is_computed_with_one_behind_it_that_has_to_be(
    in_order: bool, computed: events.Compute
) -> None:
    plan = Plan(replace(task(FAST), in_order=in_order), 0.0)
    asked = fetched(tell(plan, 0.0, events.Tick()))
    tell(plan, 0.1, events.Progress(0, 4000), *[events.Arrived(cell, 0) for cell, _ in asked])
    out = tell(plan, 0.1, events.Spoilt((1, 0)), events.Placed((0, 0)), events.Placed((0, 1)), events.Placed((1, 1)))
    assert events.Interrupt() in out and tell(plan, 0.1, events.Interrupted()) == [computed]
    assert tell(plan, 1.0, events.Computed(0.9)) == [events.Answer(), events.Open(2)] and plan.complete


@pytest.mark.parametrize(("came", "ends"), [(False, True), (True, False)])
def test_a_computation_of_what_had_come_in_part_goes_on_to_its_end(came: bool, ends: bool) -> None:
    """The rows that had come are given up when it begins: whoever ended it would have to have them again."""
    plan = Plan(task(FAST, replace(FAST, bytes_s=None), chunks=1, size=100_000), 0.0)
    tell(plan, 0.0, events.Tick())
    if came:
        tell(plan, 0.02, events.Arrived((0, 1), 1), events.Placed((0, 1)))
    out = list[Instruction]()
    for at in range(1, 9):
        out += (said := tell(plan, at / 2, events.Tick()))
        if events.Interrupt() in said and events.Compute(0, 1) not in out:  # of the answer, for which nothing comes
            out.remove(events.Interrupt())
            out += tell(plan, at / 2, events.Interrupted())
    assert events.Compute(0, 1) in out
    out += tell(
        plan, 5.01, events.Progress(1, 300_000), *(events.Arrived(cell, source) for cell, source in fetched(out))
    )
    assert (events.Interrupt() in out) == ends
