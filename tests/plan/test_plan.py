"""The plan in simulated loads: how long they take, and what they cost."""

import random
from dataclasses import replace

import pytest

from preread.plan.cost import Link, Prefill
from preread.plan.health import Breaker
from preread.plan.plan import MOST_BYTES
from preread.plan.task import Source, Task

from .simulate import MBIT, Load, Machine, Wire, layered, slowed, steady, task_for, windowed

THIN, LOSSLESS = 1200.0, 12288.0
MACHINE = Machine()


@pytest.mark.parametrize("bytes_per_token", [THIN, LOSSLESS])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tokens", [300, 1000])
def test_no_link_makes_it_slower_than_local_prefill(bytes_per_token: float, known: bool, tokens: int) -> None:
    ratios = []
    for mbps in (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 300):
        outcome, floor_s, local_s = steady(tokens, MACHINE, bytes_per_token, mbps, 0.02, known=known)
        assert outcome.ttft_s <= 1.05 * local_s, mbps
        assert outcome.most_bytes <= MOST_BYTES
        ratios.append(outcome.ttft_s / floor_s)
    assert sorted(ratios)[len(ratios) // 2] <= 1.4, ratios
    assert max(ratios) <= 2.2, ratios


def test_a_fast_link_that_is_known_is_not_computed_beside() -> None:
    outcome, _, _ = steady(1000, MACHINE, THIN, 100, 0.02)
    assert outcome.computed_tokens == 0 and outcome.interrupts == 0


@pytest.mark.parametrize("mbps", [50, 300])
def test_a_fast_link_of_which_nothing_is_known_shows_itself_to_a_context_of_one_chunk(mbps: float) -> None:
    """The chunk that is being computed is asked for too, and computing it ends when it is here."""
    outcome, floor_s, local_s = steady(175, MACHINE, LOSSLESS, mbps, 0.02, known=False)
    assert outcome.ttft_s < 0.6 * local_s and outcome.ttft_s < 2 * floor_s
    dead, _, local_s = steady(175, MACHINE, LOSSLESS, 0, 0.02, known=False)
    assert dead.ttft_s <= 1.05 * local_s


def test_a_dead_link_is_computed_beside_in_large_batches() -> None:
    outcome, _, _ = steady(4000, MACHINE, THIN, 0, 0.02, known=False)
    assert outcome.computed_tokens == 4000 and outcome.seen_bytes == 0


def test_a_slow_link_and_the_machine_meet_in_the_middle() -> None:
    outcome, floor_s, local_s = steady(1000, MACHINE, LOSSLESS, 20, 0.02)
    assert 0 < outcome.computed_tokens < 1000
    assert outcome.ttft_s < 0.7 * local_s and outcome.ttft_s < 1.2 * floor_s


@pytest.mark.parametrize("dies_s", [0.0, 0.1, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("believed", [2, 20, 200])
def test_a_link_that_falls_silent_gives_way_to_computing(dies_s: float, believed: float) -> None:
    task = task_for(1000, MACHINE, LOSSLESS, [Link(believed * MBIT, 0.02)])
    outcome = Load(task, MACHINE, [Wire(lambda at_s: believed * MBIT if at_s < dies_s else 0.0)]).run()
    # what is lost is the time in which the link could still have been slow, and a batch
    assert outcome.ttft_s <= 1.05 * MACHINE.local_s(1000) + min(dies_s, 0.3) + 0.5


def test_a_link_that_becomes_faster_is_used() -> None:
    task = task_for(1000, MACHINE, LOSSLESS, [Link(2 * MBIT, 0.02)])
    outcome = Load(task, MACHINE, [Wire(lambda at_s: (2 if at_s < 0.5 else 200) * MBIT)]).run()
    assert outcome.ttft_s < 0.5 * MACHINE.local_s(1000)


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_a_machine_that_is_not_what_it_was_believed_to_be(factor: float) -> None:
    true = slowed(MACHINE, factor)
    for mbps in (0, 5, 20, 100):
        link = Link(mbps * MBIT, 0.02)
        task = task_for(1000, true, LOSSLESS, [link], believed=MACHINE)
        outcome = Load(task, true, [Wire(lambda at_s, rate=link.bytes_s: rate)]).run()
        assert outcome.ttft_s <= 1.05 * true.local_s(1000) + 0.05


def test_connections_that_break_are_asked_again_and_then_left_alone() -> None:
    task = task_for(1000, MACHINE, LOSSLESS, [Link(20 * MBIT, 0.02)])
    once = Load(task, MACHINE, [Wire(lambda at_s: 20 * MBIT, fails=lambda at_s: 0.3 <= at_s < 0.302)])
    outcome = once.run()
    assert 0 < outcome.computed_tokens < 1000 and not once.plan.breakers[0].tripped
    always = Load(task, MACHINE, [Wire(lambda at_s: 20 * MBIT, fails=lambda at_s: True)])
    outcome = always.run()
    assert outcome.computed_tokens == 1000 and always.plan.breakers[0].tripped
    assert outcome.ttft_s <= 1.05 * MACHINE.local_s(1000)
    again = Load(
        Task(*task_fields(task), sources=(Source(20 * MBIT, 0.02, always.plan.breakers[0]),)), MACHINE, [Wire(_none)]
    )
    again.plan._now_s = 0.0
    assert again.run().computed_tokens == 1000


@pytest.mark.parametrize("dies_s", [0.0, 0.5])
@pytest.mark.parametrize("pause_s", [0.0, 100.0])
def test_a_link_that_fell_silent_costs_the_next_load_nothing(dies_s: float, pause_s: float) -> None:
    task = task_for(1000, MACHINE, LOSSLESS, [Link(20 * MBIT, 0.02)])
    first = Load(task, MACHINE, [Wire(lambda at_s: 20 * MBIT if at_s < dies_s else 0.0)])
    first.run()
    (breaker,) = first.plan.breakers
    assert breaker.tripped
    then = replace(task.sources[0], breaker=replace(breaker, failed_s=breaker.failed_s - first.now_s - pause_s))
    second = Load(replace(task, sources=(then,)), MACHINE, [Wire(_none)]).run()
    alone = Load(replace(task, sources=()), MACHINE, []).run()
    assert second.ttft_s <= alone.ttft_s and second.requests <= 2
    back = Load(replace(task, sources=(then,)), MACHINE, [Wire(lambda at_s: 20 * MBIT)])
    assert back.run().ttft_s < 0.8 * alone.ttft_s and not back.plan.breakers[0].tripped


def test_answers_that_all_break_off_are_not_asked_for_without_end() -> None:
    """Their bytes make the link look fast, and always some are under way when others fail."""
    task = task_for(1000, MACHINE, LOSSLESS, [Link(20 * MBIT, 0.02)])
    draw = random.Random(1)
    load = Load(task, MACHINE, [Wire(lambda at_s: 20 * MBIT, fails=lambda at_s: draw.random() < 0.05)])
    load.wires[0].breaks = True
    outcome = load.run()
    assert outcome.computed_tokens == 1000 and load.plan.breakers[0].tripped
    assert outcome.ttft_s <= 1.05 * MACHINE.local_s(1000)


def test_a_second_source_hedges_the_first() -> None:
    links = [Link(20 * MBIT, 0.02), Link(10 * MBIT, 0.01)]
    task = task_for(1000, MACHINE, LOSSLESS, links)
    wires = [Wire(lambda at_s: 20 * MBIT if at_s < 0.2 else 0.0), Wire(lambda at_s: 10 * MBIT, 0.01)]
    load = Load(task, MACHINE, wires)
    outcome = load.run()
    assert outcome.ttft_s < 0.9 * MACHINE.local_s(1000)
    assert wires[1].seen_bytes > wires[0].seen_bytes


def test_two_sources_are_used_at_once() -> None:
    links = [Link(20 * MBIT, 0.02), Link(20 * MBIT, 0.02)]
    task = task_for(1000, MACHINE, LOSSLESS, links)
    both = Load(task, MACHINE, [Wire(lambda at_s: 20 * MBIT), Wire(lambda at_s: 20 * MBIT)]).run()
    one, _, _ = steady(1000, MACHINE, LOSSLESS, 20, 0.02)
    assert both.ttft_s < 0.8 * one.ttft_s


def _halves(bytes_s: list[float], fails: bool = False) -> tuple[Load, list[Wire]]:
    """Every other chunk is a neighbour's to fetch, the rest comes from the cloud."""
    task = task_for(1000, MACHINE, LOSSLESS, [Link(rate, 0.01) for rate in bytes_s])
    first = tuple((chunk % 2,) * MACHINE.groups for chunk in range(len(task.chunks)))
    wires = [Wire(lambda at_s, rate=rate: rate) for rate in bytes_s]  # type: ignore[misc]
    wires[0].fails = lambda at_s: fails
    return Load(replace(task, first=first), MACHINE, wires), wires


def test_what_is_anothers_to_fetch_is_not_asked_of_the_cloud_too() -> None:
    load, wires = _halves([40 * MBIT, 40 * MBIT])
    outcome = load.run()
    theirs = sum(sum(load.task.cells[c]) for c in range(0, len(load.task.chunks), 2))
    assert wires[0].seen_bytes <= theirs and outcome.ttft_s < MACHINE.local_s(1000) / 2


def test_a_disk_that_has_nothing_is_no_reason_to_believe_in_the_link() -> None:
    """A fast source that nothing will come from does not hide that nothing is known of the other."""
    task = task_for(175, MACHINE, LOSSLESS, [Link(200e6, 0.001), Link(0, 0.02)])
    first = tuple((1,) * MACHINE.groups for _ in task.chunks)
    for rate, bound in ((300 * MBIT, 0.6), (0.0, 1.05)):
        wires = [Wire(lambda at_s: 200e6, 0.001), Wire(lambda at_s, rate=rate: rate)]  # type: ignore[misc]
        outcome = Load(replace(task, first=first), MACHINE, wires).run()
        assert outcome.ttft_s <= bound * MACHINE.local_s(175) and not wires[0].seen_bytes


def test_the_cloud_stands_in_for_a_neighbour_that_fails() -> None:
    load, wires = _halves([40 * MBIT, 40 * MBIT], fails=True)
    outcome = load.run()
    assert outcome.computed_tokens < 900 and wires[1].seen_bytes > 0
    assert outcome.ttft_s < 1.05 * MACHINE.local_s(1000)


@pytest.mark.parametrize("bytes_s", [0.0, 1e3, 20e3, 100e3])
@pytest.mark.parametrize("stops_s", [0.0, 0.1])
def test_a_neighbour_that_is_silent_or_drips_costs_little(bytes_s: float, stops_s: float) -> None:
    """All cells are its to fetch; the cloud alone would bring them in half a second, computing takes ten."""
    machine = Machine(Prefill(1 / 100, 2e-7, 0.01))
    task = task_for(1000, machine, THIN, [Link(80 * MBIT, 0.01), Link(20 * MBIT, 0.02)])
    near = replace(task.sources[0], silence_s=3.0)
    alone = Load(replace(task, sources=task.sources[1:]), machine, [Wire(lambda at_s: 20 * MBIT)]).run()
    first = tuple((0,) * machine.groups for _ in task.chunks)
    wires = [Wire(lambda at_s: 5e6 if at_s < stops_s else bytes_s, 0.01), Wire(lambda at_s: 20 * MBIT)]
    load = Load(replace(task, first=first, sources=(near, task.sources[1])), machine, wires)
    assert load.run().ttft_s < alone.ttft_s + 0.6
    assert load.plan.breakers[0].failures == 1, "the next load knows"


def _none(at_s: float) -> float:
    return 0.0


def task_fields(task: Task) -> tuple[object, ...]:
    return task.chunks, task.cells, task.prefill, task.prompt_s, task.decode_bytes_s


def test_health_and_flows_are_told_after_a_load() -> None:
    load = Load(task_for(300, MACHINE, THIN, [Link(20 * MBIT, 0.02)]), MACHINE, [Wire(lambda at_s: 20 * MBIT)])
    load.run()
    assert load.plan.breakers == (Breaker(),)
    assert load.plan.flows[0].bytes_s == pytest.approx(20 * MBIT, rel=0.3)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mbps", [1, 5, 20, 100])
@pytest.mark.parametrize("tokens", [150, 300, 1000])
def test_first_layers_make_no_plan_worse(tokens: int, mbps: float, known: bool) -> None:
    """Of a model with windows and of one without: whether chunks can be computed through their first layers only."""
    small = replace(MACHINE, prefill=Prefill(1 / 500, 2e-7, 0.01), groups=9)
    for machine, of in ((MACHINE, lambda task: task), (small, lambda task: windowed(task, 512, 3))):
        whole, _, local_s = steady(tokens, machine, LOSSLESS, mbps, 0.02, known=known, shaped=of)
        both, floor_s, _ = steady(
            tokens, machine, LOSSLESS, mbps, 0.02, known=known, shaped=lambda task, of=of: layered(of(task))
        )
        assert floor_s * 0.999 <= both.ttft_s <= min(1.04 * whole.ttft_s + 0.005, 1.05 * local_s)
        if known and tokens == 150 and mbps == 20:
            assert both.ttft_s < 0.9 * whole.ttft_s, "there is but one chunk"


def test_first_layers_are_computed_where_windows_leave_most_bytes_to_the_end() -> None:
    machine = replace(MACHINE, prefill=Prefill(1 / 500, 2e-7, 0.01), groups=9)
    whole, _, _ = steady(1000, machine, 4600, 20, 0.03, shaped=lambda task: windowed(task, 512, 3))
    both, _, _ = steady(1000, machine, 4600, 20, 0.03, shaped=lambda task: layered(windowed(task, 512, 3)))
    assert both.ttft_s < 0.9 * whole.ttft_s and both.layered_tokens > 200


@pytest.mark.parametrize("changes_s", [0.3, 1.0])
@pytest.mark.parametrize("mbps", [(20, 2), (2, 40)])
def test_what_first_layers_were_computed_of_is_gone_on_with_when_a_link_changes(
    mbps: tuple[float, float], changes_s: float
) -> None:
    machine = replace(MACHINE, prefill=Prefill(1 / 500, 2e-7, 0.01), groups=9)
    link = Link(mbps[0] * MBIT, 0.02)
    task = layered(windowed(task_for(1000, machine, 4600, [link]), 512, 3))
    wire = Wire(lambda at_s: mbps[at_s > changes_s] * MBIT, 0.02)
    assert Load(task, machine, [wire]).run().ttft_s <= machine.local_s(1000) * 1.05 + changes_s
