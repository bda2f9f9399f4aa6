"""What becomes of conversations, after single events: kept, resumed, forked, dropped; and whose cells are whose."""

from preread.plan.residency import Residency
from preread.plan.schedule import LEAST_KEPT_TOKENS, Schedule
from preread.plan.step import Part, Request, Resumed, Step
from preread.plan.step_cost import StepCost

KEEP_S = 100.0


def schedule(cells: int = 1000, most: int = 8, keep_s: float = KEEP_S) -> Schedule:
    return Schedule(Residency(cells, most), StepCost.guessed(1e4), 64, keep_s)


def go(plan: Schedule, at_s: float = 0.0) -> Step:
    """The next step, which is computed; a token is chosen wherever one may be."""
    step = plan.next(at_s)
    plan.stepped(step, [int(part.chooses) for part in step.parts], None)
    return step


def said(plan: Schedule, id: int, prompt: int = 40, at_s: float = 0.0, kept: str | None = None, tokens: int = 0) -> int:
    """Somebody asks, gets a token, and has what was wanted; how many tokens of it are kept under `c` and the id."""
    plan.arrive(Request(id, "ann", prompt, 10, kept=kept, kept_tokens=tokens), at_s)
    go(plan, at_s)
    found = plan.end(id, f"c{id}", at_s)
    assert found is not None
    return found


def turn(plan: Schedule, id: int, prompt: int, tokens: int, kept: str = "c1") -> Step:
    """Somebody goes on from a conversation; the step in which the prompt is computed."""
    plan.arrive(Request(id, "ann", prompt, 10, kept=kept, kept_tokens=tokens), 0.0)
    return go(plan)


def test_what_was_computed_is_kept_and_the_next_turn_computes_what_is_new() -> None:
    plan = schedule()
    assert said(plan, 1) == 40
    assert plan.residency.sizes == {"c1": 40} and plan.residency.claimed_cells == 0
    assert turn(plan, 2, 60, 40) == Step(begin=(2,), resume=(Resumed(2, "c1", 40),), parts=(Part(2, 20, True),))
    assert plan.end(2, "c2", 0.0) == 60
    assert plan.residency.sizes == {"c2": 60}, "the earlier turn is part of it"
    assert plan.next(0.0) == Step(evict=("c1",))


def test_little_is_not_kept_and_nothing_where_nothing_is_to_be() -> None:
    assert said(schedule(), 1, LEAST_KEPT_TOKENS - 1) == 0
    assert said(schedule(), 1, LEAST_KEPT_TOKENS) == LEAST_KEPT_TOKENS
    assert schedule().keeps and not schedule(keep_s=0.0).keeps
    assert said(schedule(keep_s=0.0), 1) == 0


def test_of_a_request_that_is_gone_or_has_not_begun_nothing_is_kept() -> None:
    plan = schedule()
    assert plan.end(1, "c1", 0.0) is None
    plan.arrive(Request(1, "ann", 40, 10), 0.0)
    assert plan.end(1, "c1", 0.0) == 0 and plan.idle


def test_two_turns_from_the_same_conversation_both_resume_it_and_it_stays_while_one_computes_with_it() -> None:
    plan = schedule()
    said(plan, 1)
    assert turn(plan, 2, 60, 40).resume == (Resumed(2, "c1", 40),)
    assert turn(plan, 3, 70, 40).resume == (Resumed(3, "c1", 40),)
    assert plan.end(2, "c2", 0.0) == 61
    assert set(plan.residency.sizes) == {"c1", "c2"}, "the cells are another's as well, who has claimed none for them"
    assert plan.end(3, "c3", 0.0) == 70
    assert set(plan.residency.sizes) == {"c2", "c3"}


def test_a_turn_that_goes_on_from_the_middle_leaves_the_rest_where_it_is() -> None:
    plan = schedule()
    said(plan, 1)
    turn(plan, 2, 60, 30)
    plan.end(2, "c2", 0.0)
    assert set(plan.residency.sizes) == {"c1", "c2"}


def test_age_drops_a_conversation_but_not_under_who_computes_with_it() -> None:
    plan = schedule()
    said(plan, 1)
    assert plan.next(KEEP_S) == Step()
    assert plan.next(KEEP_S + 1) == Step(evict=("c1",))
    said(plan, 2, at_s=200.0)
    plan.arrive(Request(3, "ann", 60, 10, kept="c2", kept_tokens=40), 210.0)
    go(plan, 210.0)
    assert not go(plan, 400.0).evict
    plan.leave(3)
    assert plan.next(400.0) == Step(evict=("c2",))


def test_what_is_dropped_leaves_with_the_next_step_or_with_who_computes_with_it() -> None:
    plan = schedule()
    said(plan, 1)
    plan.drop("c1")
    plan.drop("never kept")
    assert plan.next(0.0) == Step(evict=("c1",))
    said(plan, 2)
    turn(plan, 3, 60, 40, "c2")
    plan.drop("c2")
    assert not go(plan).evict
    assert plan.end(3, "c3", 0.0) == 61
    assert plan.next(0.0) == Step(evict=("c2",))


def test_a_caller_is_forgotten_with_what_is_being_answered_and_no_other_is() -> None:
    plan = schedule()
    for id, caller in (1, "ann"), (2, "bob"):
        plan.arrive(Request(id, caller, 40, 10), 0.0)
    go(plan)
    plan.forget("ann")
    assert (plan.end(1, "c1", 0.0), plan.end(2, "c2", 0.0)) == (0, 40)
    assert said(plan, 3) == 40, "what comes later is kept"


def test_a_conversation_takes_the_place_of_others_that_nobody_named_the_oldest_first() -> None:
    plan = schedule(most=2)
    for id, at_s in (1, 0.0), (2, 10.0), (3, 20.0):
        said(plan, id, at_s=at_s)
    assert set(plan.residency.sizes) == {"c2", "c3"}


def test_of_two_the_older_goes_whether_either_is_about_a_context_or_not() -> None:
    plan = schedule(most=3)
    plan.arrive(Request(1, "ann", 10, 10, "x", 400, 400, cost_s=0.1), 0.0)
    plan.next(0.0)
    plan.ready("x")
    plan.leave(1)
    said(plan, 2)
    plan.arrive(Request(3, "ann", 40, 10, "x", 400, 400, cost_s=0.1), 10.0)
    go(plan, 10.0)
    assert plan.end(3, "c3", 10.0) == 40
    said(plan, 4, at_s=20.0)
    assert set(plan.residency.sizes) == {"x", "c3", "c4"}


def test_a_conversation_takes_the_place_of_a_context_that_nobody_named_but_of_no_other() -> None:
    for guest in (True, False):
        plan = schedule(most=1)
        plan.arrive(Request(1, "ann", 10, 10, "x", 400, 400, guest=guest), 0.0)
        plan.next(0.0)
        plan.ready("x")
        plan.leave(1)
        assert said(plan, 2) == (40 if guest else 0)
        assert plan.next(0.0) == (Step(evict=("x",)) if guest else Step())
        assert set(plan.residency.sizes) == ({"c2"} if guest else {"x"})


def test_a_context_takes_the_place_of_conversations_before_that_of_other_contexts() -> None:
    plan = schedule(cells=1000)
    plan.arrive(Request(1, "ann", 10, 10, "x", 400, 400), 0.0)
    plan.next(0.0)
    plan.ready("x")
    plan.leave(1)
    said(plan, 2, prompt=200)
    plan.arrive(Request(3, "ann", 10, 10, "y", 450, 450), 0.0)
    assert plan.next(0.0) == Step(evict=("c2",), bring=("y",))


def test_where_the_conversation_is_gone_or_leaves_no_room_all_of_the_prompt_is_computed() -> None:
    plan = schedule(cells=150)
    said(plan, 1)
    assert turn(plan, 2, 60, 40, "gone").parts == (Part(2, 60, True),)
    plan.leave(2)
    full = schedule(cells=150)
    said(full, 1, prompt=100)
    assert turn(full, 2, 120, 20) == Step(evict=("c1",), begin=(2,), parts=(Part(2, 120, True),))


def test_nothing_is_left_when_all_is_cleared_and_each_is_told_once() -> None:
    plan = schedule()
    said(plan, 1)
    plan.arrive(Request(2, "ann", 40, 10, context="manual", context_tokens=60, reuse_tokens=60), 0.0)
    assert plan.next(0.0).bring == ("manual",) and plan.loading == 1
    plan.ready("manual")
    plan.leave(2)
    assert plan.idle and plan.loading == 0
    assert sorted(plan.clear()) == ["c1", "manual"]
    assert plan.residency.sizes == {} and plan.next(0.0) == Step()


def test_guesses_go_into_the_next_step_as_far_as_there_are_cells() -> None:
    plan = schedule()
    plan.arrive(Request(1, "ann", 40, 10), 0.0)
    go(plan)
    plan.propose(1, 3)
    plan.propose(2, 3)  # who is gone
    step = plan.next(0.0)
    assert step.parts == (Part(1, 4, True),)
    plan.stepped(step, [2], None)
    assert plan.next(0.0).parts == (Part(1, 1, True),), "guesses are for one step"


def test_a_stem_is_kept_for_its_family_however_short_until_it_is_dropped_and_its_family_leaves_nothing() -> None:
    plan = schedule(keep_s=0.0)
    plan.arrive(Request(1, "ann", 3, 1, family="f", stem=True), 0.0)
    go(plan)
    assert plan.end(1, "stem", 0.0) == 3
    for id in (2, 3):
        plan.arrive(Request(id, "ann", 43, 1, family="f", kept="stem", kept_tokens=3), 2 * KEEP_S)
    step = go(plan, 2 * KEEP_S)
    assert step.resume == (Resumed(2, "stem", 3), Resumed(3, "stem", 3))
    assert step.parts == (Part(2, 40, True), Part(3, 40, True))
    plan.drop("stem")
    assert plan.end(2, "c2", 2 * KEEP_S) == 0
    assert plan.next(2 * KEEP_S).evict == (), "another computes with it"
    assert plan.end(3, "c3", 2 * KEEP_S) == 0
    assert plan.next(2 * KEEP_S) == Step(evict=("stem",)) and not plan.residency.sizes


def test_a_stem_makes_room_as_conversations_do() -> None:
    plan = schedule(cells=100)
    plan.arrive(Request(1, "ann", 40, 1, family="f", stem=True), 0.0)
    go(plan)
    assert plan.end(1, "stem", 0.0) == 40
    plan.arrive(Request(2, "bob", 90, 1), 0.0)
    assert plan.next(0.0).evict == ("stem",)


def test_nothing_of_a_family_is_kept_for_who_has_everything_forgotten() -> None:
    plan = schedule()
    plan.arrive(Request(1, "ann", 40, 1, family="f", stem=True), 0.0)
    go(plan)
    plan.forget("ann")
    assert plan.end(1, "stem", 0.0) == 0
