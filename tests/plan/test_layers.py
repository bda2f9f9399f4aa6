"""What the plan says at single events where chunks can be computed through their first layers only."""

from dataclasses import replace

import pytest

from preread.plan import events
from preread.plan.cost import Prefill
from preread.plan.events import Cell, Event, Instruction
from preread.plan.plan import Plan
from preread.plan.task import Source, Task

SIZE = 100_000
LINK = Source(5e5, 0.01, silence_s=5.0)
"""Ten cells take two seconds."""
MACHINE = Prefill(0.01)
"""A chunk of 128 tokens takes 1.28 s."""
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


def task(*sources: Source, chunks: int = 1) -> Task:
    """A context of five groups of layers."""
    return Task((128,) * chunks, ((SIZE,) * 5,) * chunks, MACHINE, 0.1, 1e9, sources, shares=SHARES)


def windowed(link: Source, chunks: int) -> Task:
    """One of which, but for its last chunk, nobody looks at any other than the last group's rows."""
    cells = ((0, 0, 0, 0, 1000),) * (chunks - 1) + ((10 * SIZE,) * 5,)
    return replace(task(link, chunks=chunks), cells=cells, in_order=True)


def tell(plan: Plan, at_s: float, *said: Event) -> list[Instruction]:
    return [instruction for event in said for instruction in plan.step(event, at_s)]


def fetched(out: list[Instruction]) -> list[Cell]:
    return [one.cell for one in out if isinstance(one, events.Fetch)]


def slow(plan: Plan, bytes_s: float) -> None:
    """The link was seen to be slower, or faster."""
    flow = plan.flows[0]
    flow._bytes = bytes_s * flow._seconds


def came(plan: Plan, at_s: float, *cells: Cell) -> list[Instruction]:
    """They arrive, and are injected."""
    out = list[Instruction]()
    for cell in cells:
        out += tell(plan, at_s, events.Arrived(cell, 0))
        out += tell(plan, at_s, events.Placed(cell))
    return out


def test_of_a_single_chunk_the_first_layers_are_computed_while_the_others_come() -> None:
    plan = Plan(task(LINK), 0.0)
    out = tell(plan, 0.0, events.Tick())
    assert out[0] == events.Compute(0, 1, 2) and plan.predicted_s == pytest.approx(0.64, abs=0.03)
    assert fetched(out)[0] == (0, 2), "the answer waits for it first"
    assert not {(0, 0), (0, 1)} & {*fetched(out)}, "what is computed need not come"
    out = tell(plan, 0.2, events.Progress(0, SIZE), events.Arrived((0, 2), 0))
    assert events.Inject((0, 2)) in out, "rows of other layers may be written meanwhile"
    tell(plan, 0.3, events.Placed((0, 2)))
    out = tell(plan, 0.512, events.Computed(0.512))
    assert out[:2] == [events.Answer(), events.Open(3)]
    tell(plan, 0.6, events.Progress(0, 3 * SIZE))
    assert came(plan, 0.6, (0, 3), (0, 4))[-1] == events.Open(5) and plan.complete


def test_without_room_for_that_chunks_are_computed_whole_or_not_at_all() -> None:
    link = replace(LINK, bytes_s=2e5)
    plan = Plan(task(link), 0.0)
    assert tell(plan, 0.0, events.Tick())[0] == events.Compute(0, 1, 3)
    assert events.Compute(0, 1) in tell(plan, 0.0, events.Unsplit())
    assert Plan(replace(task(link), shares=()), 0.0).step(events.Tick(), 0.0)[0] == events.Compute(0, 1)


def test_first_layers_are_computed_only_from_where_sums_begin_anew() -> None:
    """Behind chunks that were computed whole. From the start, and behind such a stretch, they are in any case."""
    begins = Plan(replace(windowed(LINK, 3), breaks=(True, False, False)), 0.0)
    assert isinstance(whole := tell(begins, 0.0, events.Tick())[0], events.Compute) and whole.groups
    for breaks, groups in (((True, True), True), ((True, False), False)):
        slower = replace(LINK, bytes_s=2e5)
        plan = Plan(replace(task(slower, chunks=2), breaks=breaks, cells=((0,) * 5, (SIZE,) * 5)), 0.0)
        (compute,) = [one for one in tell(plan, 0.0, events.Tick()) if isinstance(one, events.Compute)]
        assert compute.start == 1 and (compute.groups is not None) == groups


@pytest.mark.parametrize("chunks", [12, 40])
def test_chunks_that_can_be_divided_evenly_are_computed_whole(chunks: int) -> None:
    """That is no later, and can be taken back chunk by chunk when the link turns out to be slower."""
    out = tell(Plan(task(replace(LINK, bytes_s=4e5), chunks=chunks), 0.0), 0.0, events.Tick())
    (compute,) = (one for one in out if isinstance(one, events.Compute))
    assert compute.groups is None and compute.start == 0


def test_behind_windows_the_first_layers_of_all_chunks_are_computed_in_order() -> None:
    plan = Plan(windowed(replace(LINK, bytes_s=1e6), 9), 0.0)
    out = tell(plan, 0.0, events.Tick())
    assert out[0] == events.Compute(0, 4, 1), "of chunks that nobody looks at too"
    assert (8, 0) not in fetched(out), "what is computed need not come"
    assert tell(plan, 1.0, events.Computed(1.0))[0] == events.Compute(4, 8, 1)
    assert tell(plan, 2.0, events.Computed(1.0))[0] == events.Compute(8, 9, 1)


@pytest.mark.parametrize(("bytes_s", "groups"), [(1e6, 3), (2e6, 1)])
def test_fewer_layers_are_computed_of_the_next_chunks_only_where_that_is_much_better(
    bytes_s: float, groups: int
) -> None:
    """What was computed through few layers is not gone on with through more."""
    link = replace(LINK, bytes_s=2.6e5)
    plan = Plan(windowed(link, 8), 0.0)
    assert tell(plan, 0.0, events.Tick())[0] == events.Compute(0, 4, 3)
    slow(plan, bytes_s)
    assert tell(plan, 3.1, events.Computed(3.07))[0] == events.Compute(4, 8, groups)


def test_where_nothing_can_be_computed_beside_what_comes_all_is_waited_for_or_all_computed() -> None:
    link = replace(LINK, bytes_s=5e5)
    part = replace(task(link, chunks=4), in_order=True, shares=())
    assert events.Compute(0, 1) in tell(Plan(part, 0.0), 0.0, events.Tick()), "if it could be"
    found_out = Plan(part, 0.0)
    tell(found_out, 0.0, events.Tick())
    assert not any(isinstance(one, events.Compute) for one in tell(found_out, 0.0, events.Unsplit())), "too late"
    plan = Plan(replace(part, alone=True), 0.0)
    assert not any(isinstance(one, events.Compute) for one in tell(plan, 0.0, events.Tick()))
    assert found_out.task.alone
    slow(plan, 4.5e5)
    assert not any(isinstance(one, events.Compute) for one in tell(plan, 0.1, events.Tick())), "5.1 s, and 4.4 s"
    slow(plan, 3e5)
    assert any(isinstance(one, events.Compute) for one in tell(plan, 0.2, events.Tick())), "5.1 s, and 6.6 s"


def test_behind_what_was_begun_anew_nothing_goes_on_though_that_was_given_up() -> None:
    """The engine keeps one beginning, and gives it up for the next."""
    plan = Plan(windowed(replace(LINK, bytes_s=1e6), 8), 0.0)
    assert tell(plan, 0.0, events.Tick())[0] == events.Compute(0, 4, 1)
    slow(plan, 1.5e5)
    assert tell(plan, 1.0, events.Computed(1.0))[0] == events.Compute(0, 4, 4), "more layers"
    slow(plan, 1e7)
    assert events.Interrupt() in tell(plan, 1.1, events.Tick())
    slow(plan, 1e6)
    (compute,) = (one for one in tell(plan, 1.2, events.Interrupted()) if isinstance(one, events.Compute))
    assert (compute.start, compute.groups) == (0, 1)


def test_what_is_being_injected_is_not_computed_meanwhile() -> None:
    plan = Plan(task(replace(LINK, bytes_s=1e7)), 0.0)
    asked = fetched(tell(plan, 0.0, events.Tick()))
    assert asked[0] == (0, 0), "all of it is fetched"
    out = tell(plan, 0.02, events.Progress(0, SIZE), events.Arrived((0, 0), 0))
    assert out[0] == events.Inject((0, 0))
    slow(plan, 1.2e5)
    assert events.Interrupt() in tell(plan, 0.03, events.Tick())
    assert not any(isinstance(one, events.Compute) for one in tell(plan, 0.03, events.Interrupted(), events.Tick()))
    (compute,) = (one for one in tell(plan, 0.04, events.Placed((0, 0))) if isinstance(one, events.Compute))
    assert compute.groups == 4


def test_a_computation_of_some_layers_is_given_up_for_what_a_link_brings_sooner() -> None:
    plan = Plan(task(LINK), 0.0)
    assert tell(plan, 0.0, events.Tick())[0] == events.Compute(0, 1, 2)
    out = tell(plan, 0.05, events.Progress(0, 200_000), events.Tick())
    asked = fetched(out)
    assert (0, 0) in asked and (0, 1) in asked, "they may come sooner than they are computed"
    out += tell(plan, 0.06, events.Progress(0, 450_000), events.Tick())
    assert events.Interrupt() in out
    assert not any(isinstance(one, events.Compute) for one in tell(plan, 0.07, events.Interrupted()))


def test_what_cannot_be_decoded_is_computed_with_the_layers_before_it() -> None:
    plan = Plan(task(LINK), 0.0)
    tell(plan, 0.0, events.Tick())
    out = tell(plan, 0.3, events.Progress(0, SIZE), events.Arrived((0, 2), 0), events.Spoilt((0, 2)))
    assert not any(isinstance(one, events.Answer) for one in out)
    out = tell(plan, 0.512, events.Computed(0.512))
    assert isinstance(out[0], events.Compute) and (out[0].groups is None or out[0].groups >= 3)
