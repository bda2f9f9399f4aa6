"""What the engine's next step is after single events."""

from preread.plan.residency import Residency
from preread.plan.schedule import (
    Part,
    Request,
    Schedule,
    Step,
)
from preread.plan.step_cost import StepCost

CONTEXT = 400
"""Cells of each context here."""


def schedule(cells: int = 1000, contexts: int = 8, answers: int = 64, prefill_tokens_s: float = 1e4) -> Schedule:
    return Schedule(Residency(cells, contexts), StepCost.guessed(prefill_tokens_s), answers)


def ask(plan: Schedule, id: int, caller: str = "ann", prompt: int = 10, most: int = 10, at_s: float = 0.0) -> None:
    """Somebody asks about nothing in particular."""
    plan.arrive(Request(id, caller, prompt, most), at_s)


def about(
    plan: Schedule,
    id: int,
    context: str,
    caller: str = "ann",
    prompt: int = 10,
    reuse: int = CONTEXT,
    at_s: float = 0.0,
    guest: bool = False,
) -> None:
    """Somebody asks about a context."""
    request = Request(id, caller, prompt, 10, context, CONTEXT, reuse, guest=guest)
    plan.arrive(request, at_s)


def go(plan: Schedule, at_s: float = 0.0) -> Step:
    """The next step, which is computed; a token is chosen wherever one may be."""
    step = plan.next(at_s)
    plan.stepped(step, [int(part.chooses) for part in step.parts], None)
    return step


def behind_the_gate(plan: Schedule, id: int = 1, context: str = "x") -> Step:
    """A request comes, and its prompt is computed behind the gate of its context."""
    about(plan, id, context)
    assert plan.next(0.0).bring == (context,)
    plan.answerable(context)
    return plan.next(0.0)


# Contexts that are coming


def test_a_prompt_waits_for_its_contexts_layers_where_nobody_else_has_anything_to_compute() -> None:
    plan = schedule()
    assert behind_the_gate(plan) == Step(begin=(1,), parts=(Part(1, 10, True),), gated="x")


def test_who_began_behind_a_gate_that_is_shut_begins_again_with_what_the_context_is_then() -> None:
    plan = schedule()
    go_on = behind_the_gate(plan)
    plan.stepped(go_on, [1], None)
    plan.answerable("x", now=False)
    assert plan.next(0.0) == Step(stop=(1,))
    plan.ready("x")
    assert plan.next(0.0) == Step(begin=(1,), parts=(Part(1, 11, True),))


def test_a_gate_that_was_shut_only_for_a_moment_is_begun_behind_again() -> None:
    plan = schedule()
    behind_the_gate(plan)
    plan.answerable("x", now=False)
    plan.answerable("x")
    assert plan.next(0.0) == Step(stop=(1,), begin=(1,), parts=(Part(1, 10, True),), gated="x")


def test_who_began_behind_the_gate_of_a_context_that_is_lost_has_it_brought_again() -> None:
    plan = schedule()
    behind_the_gate(plan)
    plan.lost("x")
    assert plan.next(0.0) == Step(stop=(1,), bring=("x",))
    plan.ready("x")
    assert plan.next(0.0).begin == (1,)
    plan.leave(1)
    assert plan.residency.victims(1000, 0.0) == ["x"], "nobody computes with it"


def test_no_more_begin_behind_a_gate_than_may_be_computed_at_once() -> None:
    plan = schedule(answers=2)
    about(plan, 2, "x")
    about(plan, 3, "x")
    assert [part.id for part in behind_the_gate(plan).parts] == [2, 3]


# Guests


def test_a_guest_goes_on_alone_where_its_context_has_no_room_but_what_others_named() -> None:
    plan = schedule(cells=1000)
    for id, context in (1, "x"), (2, "y"):
        about(plan, id, context)
        plan.next(0.0)
        plan.ready(context)
        plan.leave(id)
    about(plan, 3, "z", guest=True, reuse=80)
    assert plan.next(0.0) == Step(alone=(3,), begin=(3,), parts=(Part(3, 90, True),))


def test_a_context_that_somebody_names_is_no_guest_though_a_guest_was_first_to_ask() -> None:
    plan = schedule(cells=500)
    about(plan, 1, "x", guest=True)
    about(plan, 2, "x")
    assert go(plan).bring == ("x",)
    plan.ready("x")
    plan.leave(1)
    plan.leave(2)
    assert plan.residency.victims(500, 0.0, guest=True) is None


def test_a_guest_that_goes_on_alone_waits_where_as_many_are_computed_as_may_be() -> None:
    plan = schedule(cells=500, answers=1)
    ask(plan, 1, prompt=100)
    go(plan)
    about(plan, 2, "x", guest=True, reuse=80)
    assert go(plan) == Step(alone=(2,), parts=(Part(1, 1, True),))
    plan.leave(1)
    assert go(plan) == Step(begin=(2,), parts=(Part(2, 90, True),))


def test_an_answer_that_outgrows_what_is_left_beside_all_of_its_context_goes_on_with_the_beginning_alone() -> None:
    plan = schedule(cells=CONTEXT + 12)
    about(plan, 1, "x", reuse=350)
    plan.next(0.0)
    plan.ready("x")
    assert [go(plan).parts for _ in range(3)] == [(Part(1, 10, True),), (Part(1, 1, True),), (Part(1, 1, True),)]
    assert go(plan) == Step(stop=(1,), evict=("x",), alone=(1,), begin=(1,), parts=(Part(1, 363, True),))


# Who is served


def test_a_context_that_came_is_begun_with_before_another_can_displace_it() -> None:
    """Computing it counted as its caller's: the other caller has had less by now."""
    plan = schedule(cells=600)
    about(plan, 1, "x", "ann")
    about(plan, 2, "y", "bob")
    assert plan.next(0.0).bring == ("x",)
    plan.fill(100, "x", CONTEXT, 0.0)
    assert go(plan).parts == (Part(100, CONTEXT, False),)
    plan.ready("x")
    assert go(plan) == Step(begin=(1,), parts=(Part(1, 10, True),))
    plan.leave(1)
    assert go(plan) == Step(evict=("x",), bring=("y",))


def test_one_short_request_is_served_beside_another_callers_fifty_long_ones() -> None:
    for cells, contexts in (100_000, ()), (3000, ()), (3000, ("x",)):
        plan = schedule(cells=cells)
        for id in range(50):
            ask(plan, id, prompt=600, most=1000)
        for _ in range(40):
            go(plan)
        ask(plan, 50, "bob") if not contexts else about(plan, 50, "x", "bob")
        steps = [go(plan)]
        for context in steps[0].bring:
            plan.ready(context)
        steps += [go(plan) for _ in range(2)]
        assert Part(50, 10, True) in [part for step in steps for part in step.parts]


def test_answers_make_way_for_a_caller_who_has_none_but_no_more_than_are_in_its_way() -> None:
    plan = schedule(cells=1000)
    for id in (1, 2, 3):
        ask(plan, id, prompt=300, most=10)
    go(plan)
    ask(plan, 4, "bob", prompt=300)
    step = go(plan)
    assert step.stop == (3,) and step.begin == (4,)


def test_no_answer_makes_way_where_that_is_not_enough() -> None:
    plan = schedule(cells=1000)
    for id in (1, 2, 3):
        ask(plan, id, prompt=300, most=10)
    go(plan)
    ask(plan, 4, "bob", prompt=900)
    assert go(plan).stop == ()


def test_a_callers_only_answer_does_not_make_way() -> None:
    plan = schedule(cells=1000, answers=2)
    for id, caller in (1, "ann"), (2, "bob"), (3, "cy"):
        ask(plan, id, caller)
    assert go(plan).begin == (1, 2)
    assert go(plan) == Step(parts=(Part(1, 1, True), Part(2, 1, True)))


def test_who_has_an_answer_under_way_waits_for_the_next() -> None:
    plan = schedule(cells=1000, answers=2)
    for id, caller in (1, "ann"), (2, "ann"), (3, "ann"), (4, "bob"), (5, "bob"):
        ask(plan, id, caller)
    step = go(plan)
    assert step.begin == (1, 4), "of those that were begun in the same step, another makes way"
    assert go(plan).begin == ()


def test_as_many_answers_as_may_be_make_way_only_if_there_are_cells_too() -> None:
    plan = schedule(cells=1000, answers=2)
    for id in (1, 2):
        ask(plan, id, prompt=400, most=10)
    go(plan)
    ask(plan, 3, "bob", prompt=700)
    assert go(plan).stop == ()


def test_a_context_is_computed_beside_another_callers_endless_prompts() -> None:
    plan = schedule(cells=100_000)
    about(plan, 1, "x", "bob")
    ask(plan, 2, prompt=2000)
    ask(plan, 3, prompt=2000)
    plan.next(0.0)
    plan.fill(100, "x", CONTEXT, 0.0)
    steps = [go(plan) for _ in range(10)]
    assert sum(part.tokens for step in steps for part in step.parts if part.id == 100) == CONTEXT


def test_a_callers_prompts_are_computed_before_its_contexts() -> None:
    plan = schedule()
    about(plan, 1, "x")
    ask(plan, 2)
    plan.next(0.0)
    plan.fill(100, "x", CONTEXT, 0.0)
    assert go(plan).parts == (Part(2, 10, True), Part(100, 118, False))


def test_who_had_much_is_not_forgiven_because_it_pauses_while_somebody_comes() -> None:
    plan = schedule(cells=10_000, answers=1)
    ask(plan, 1, "ann", prompt=500)
    ask(plan, 2, "bob", prompt=1)
    assert go(plan).parts == (Part(1, 500, True),)
    plan.leave(1)
    ask(plan, 3, "cy", prompt=1)
    ask(plan, 4, "ann", prompt=1)
    ask(plan, 5, "cy", prompt=1)
    order = []
    while not plan.idle:
        (part,) = go(plan).parts
        order.append(part.id)
        plan.leave(part.id)
    assert order == [2, 3, 5, 4]


def test_who_comes_back_after_a_pause_has_saved_nothing_up() -> None:
    plan = schedule(cells=10_000, answers=1)
    ask(plan, 1, "bob", prompt=1)
    go(plan)
    plan.leave(1)
    ask(plan, 2, "ann", prompt=500)
    go(plan)
    ask(plan, 3, "bob", prompt=1)
    ask(plan, 4, "ann", prompt=1)
    ask(plan, 5, "bob", prompt=1)
    plan.leave(2)
    order = []
    while not plan.idle:
        (part,) = go(plan).parts
        order.append(part.id)
        plan.leave(part.id)
    assert order == [3, 4, 5]


# Cells
