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
