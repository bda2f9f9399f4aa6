"""Requests that have begun behind the gate of a context that then does not come as it was to."""

from preread.plan.residency import Residency
from preread.plan.schedule import Request, Schedule
from preread.plan.step_cost import StepCost


def test_who_has_begun_about_a_context_begins_again() -> None:
    plan = Schedule(Residency(200), StepCost.guessed(1000.0))
    about = {"context": "c", "context_tokens": 40, "reuse_tokens": 40}
    for id in (1, 2):
        plan.arrive(Request(id, "", 8, 4, **about), 0.0)  # type: ignore[arg-type]
    plan.arrive(Request(3, "", 8, 4, context="other", context_tokens=20), 0.0)
    assert plan.next(0.0).bring == ("c", "other")
    plan.answerable("c")
    step = plan.next(0.0)
    assert (step.begin, step.gated) == ((1, 2), "c")
    plan.stepped(step, [1, 1], None)
    claimed = plan.residency.claimed_cells
    assert claimed and plan.running == 2
    plan.answerable("c", now=False)
    assert plan.withdraw("c") == [1, 2] and plan.withdraw("c") == []
    assert plan.residency.claimed_cells == 0 and plan.running == 0
    plan.ready("c")
    step = plan.next(0.0)
    assert step.begin == (1, 2)
    assert [(part.id, part.tokens) for part in step.parts] == [(1, 9), (2, 9)], "what was chosen is known"
