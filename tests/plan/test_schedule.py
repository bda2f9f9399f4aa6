"""What the engine's next step is after single events."""

from preread.plan.residency import Residency
from preread.plan.schedule import ECHO_TOKENS, LOADS, MOST_WAIT_S, Schedule
from preread.plan.share import LEAST_TOKENS, MANY_ANSWERS, SHARED_TOKENS, STEP_TOKENS
from preread.plan.step import Part, Request, Step
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


# Requests


def test_a_prompt_is_computed_and_then_a_token_at_a_time() -> None:
    plan = schedule()
    assert plan.idle and go(plan) == Step()
    ask(plan, 1)
    assert (plan.idle, plan.waiting, plan.running) == (False, 1, 0)
    assert go(plan) == Step(begin=(1,), parts=(Part(1, 10, True),))
    assert (plan.waiting, plan.running) == (0, 1)
    assert go(plan) == go(plan) == Step(parts=(Part(1, 1, True),))
    plan.leave(1)
    assert plan.idle and go(plan) == Step() and plan.residency.free_cells == 1000
    plan.leave(1)
    assert plan.residency.free_cells == 1000, "who left before has nothing more to give back"


def test_sequences_are_told_that_answers_and_what_is_resident_may_have_in_all() -> None:
    assert schedule(contexts=8, answers=3).sequences == 8 + 3


def test_who_leaves_before_anything_was_computed_for_it_had_nothing() -> None:
    plan = schedule()
    ask(plan, 1)
    plan.leave(1)
    assert go(plan) == Step() and plan.residency.free_cells == 1000


def test_a_long_prompt_is_computed_in_the_largest_steps() -> None:
    plan = schedule(cells=2000)
    ask(plan, 1, prompt=1100)
    steps = [go(plan) for _ in range(3)]
    assert [step.parts for step in steps] == [
        (Part(1, STEP_TOKENS, False),),
        (Part(1, STEP_TOKENS, False),),
        (Part(1, 1100 - 2 * STEP_TOKENS, True),),
    ]
    assert steps[0].tokens == STEP_TOKENS


def test_several_prompts_share_smaller_steps_in_the_order_in_which_they_came() -> None:
    plan = schedule()
    ask(plan, 1, prompt=100)
    ask(plan, 2, prompt=100)
    assert go(plan).parts == (Part(1, 100, True), Part(2, SHARED_TOKENS - 100, False))


def test_a_prompt_all_of_whose_logits_are_wanted_is_computed_in_small_slices() -> None:
    plan = schedule()
    plan.arrive(Request(1, "ann", 20, 10, echo=True), 0.0)
    assert [go(plan).parts for _ in range(3)] == [
        (Part(1, ECHO_TOKENS, False),),
        (Part(1, 20 - ECHO_TOKENS, True),),
        (Part(1, 1, True),),
    ]


def test_a_step_that_was_given_up_is_made_again() -> None:
    plan = schedule()
    ask(plan, 1)
    step = plan.next(0.0)
    assert plan.next(0.0) == Step(parts=step.parts)


def test_a_step_counts_for_nobody_who_left_meanwhile() -> None:
    plan = schedule()
    ask(plan, 1)
    step = plan.next(0.0)
    plan.leave(1)
    plan.stepped(step, [1], None)
    assert go(plan) == Step() and plan.idle


def test_several_tokens_may_be_chosen_in_a_step() -> None:
    plan = schedule()
    ask(plan, 1)
    plan.stepped(plan.next(0.0), [3], None)
    assert go(plan).parts == (Part(1, 1, True),), "all but the last are in the cache"


def test_where_many_wait_for_their_first_token_steps_are_longer() -> None:
    plan = schedule(prefill_tokens_s=100.0)
    ask(plan, 1)
    go(plan)
    for id in (2, 3, 4):
        ask(plan, id, prompt=600)
    assert go(plan).tokens == 12


def test_who_streams_much_is_passed_over_every_second_time_for_somebodys_prompt() -> None:
    plan = schedule(cells=2000, prefill_tokens_s=1000.0)
    for id in range(1, MANY_ANSWERS + 1):
        ask(plan, id, caller="much")
        go(plan)
    ask(plan, 10, prompt=600, caller="much")
    ask(plan, 11, prompt=600, caller="one")
    steps = [go(plan).parts for _ in range(4)]
    answers = [[part.id for part in parts if part.id <= MANY_ANSWERS] for parts in steps]
    assert answers == [[], [1, 2, 3, 4], [], [1, 2, 3, 4]]
    assert all(11 in {part.id for part in parts} for parts in steps), "it comes before the prompts of who has many"


def test_who_streams_little_is_not_passed_over_nor_anybody_for_ones_own_prompt() -> None:
    plan = schedule(cells=2000, prefill_tokens_s=1000.0)
    for id in range(1, MANY_ANSWERS):
        ask(plan, id, caller="little")
        go(plan)
    ask(plan, 11, prompt=600, caller="one")
    assert {1, 2, 3} < {part.id for part in go(plan).parts}
    plan = schedule(cells=2000, prefill_tokens_s=1000.0)
    for id in range(1, MANY_ANSWERS + 1):
        ask(plan, id, caller="much")
        go(plan)
    ask(plan, 10, prompt=600, caller="much")
    assert all({1, 2, 3, 4} < {part.id for part in go(plan).parts} for _ in range(3))


def test_a_prompt_takes_no_more_of_a_step_than_those_who_read_along_can_wait_for() -> None:
    slow, quick = schedule(prefill_tokens_s=100.0), schedule(prefill_tokens_s=1e6)
    for plan, tokens in ((slow, LEAST_TOKENS), (quick, STEP_TOKENS - 1)):
        ask(plan, 1)
        go(plan)
        ask(plan, 2, prompt=600)
        assert go(plan).parts == (Part(1, 1, True), Part(2, tokens, False))


def test_some_of_a_prompt_is_computed_however_slow_the_machine_is() -> None:
    plan = schedule(prefill_tokens_s=1.0)
    ask(plan, 1)
    plan.stepped(plan.next(0.0), [1], None)
    plan.cost = StepCost(0.0, 100.0, 0.0, 0.0)
    ask(plan, 2, prompt=600)
    assert go(plan).parts[1] == Part(2, LEAST_TOKENS - 1, False) or go(plan).parts[1] == Part(2, LEAST_TOKENS, False)


def test_what_steps_take_is_learnt_from_those_that_waited_for_nothing() -> None:
    plan = schedule()
    believed = plan.cost
    ask(plan, 1, prompt=SHARED_TOKENS + 1)
    plan.stepped(plan.next(0.0), [1], 10.0)
    plan.stepped(plan.next(0.0), [1], None)
    assert plan.cost == believed, "one was larger than those with answers are, the other may have waited"
    plan.stepped(plan.next(0.0), [1], 10.0)
    assert plan.cost.seconds(1) > believed.seconds(1)


def test_who_waited_for_longer_than_any_client_does_is_refused() -> None:
    plan = schedule(answers=1)
    ask(plan, 1)
    ask(plan, 2)
    go(plan)
    assert go(plan, MOST_WAIT_S).refuse == ()
    assert go(plan, MOST_WAIT_S + 1) == Step(refuse=(2,), parts=(Part(1, 1, True),)), "not whose answer is under way"


# Contexts that are coming


def test_a_context_is_brought_once_and_begun_with_when_it_is_ready() -> None:
    plan = schedule()
    about(plan, 1, "x")
    about(plan, 2, "x")
    assert go(plan) == Step(bring=("x",))
    assert go(plan) == Step()
    plan.ready("x")
    assert go(plan) == Step(begin=(1, 2), parts=(Part(1, 10, True), Part(2, 10, True)))
    plan.leave(1)
    plan.leave(2)
    assert plan.idle and plan.residency.is_ready("x"), "it stays for the next"


def test_no_more_contexts_are_brought_at_once_than_share_a_link_well() -> None:
    plan = schedule(cells=2000)
    for id, context in enumerate("xyz"):
        about(plan, id, context)
    assert go(plan).bring == ("x", "y") and LOADS == 2
    plan.ready("x")
    assert go(plan).bring == ("z",)


def test_who_waits_for_its_place_keeps_its_context_from_making_room_for_anothers() -> None:
    plan = schedule(cells=1000, answers=1)
    for id, context in (1, "x"), (2, "y"), (3, "y"):
        about(plan, id, context)
        go(plan)
        plan.ready(context)
        plan.leave(id)
    ask(plan, 4)
    go(plan)
    about(plan, 5, "x", "bob")
    about(plan, 6, "z", "bob")
    assert plan.residency.victims(400, 0.0) == ["x"], "it is worth least"
    assert go(plan) == Step(evict=("y",), bring=("z",), parts=(Part(4, 1, True),))


def test_a_context_that_is_computed_is_slices_after_which_nothing_is_chosen() -> None:
    plan = schedule(cells=2000)
    about(plan, 1, "x")
    go(plan)
    plan.fill(100, "x", 600, 0.0)
    assert plan.fills("x") == [100] and plan.fills("y") == []
    assert go(plan).parts == (Part(100, STEP_TOKENS, False),)
    assert go(plan).parts == (Part(100, 600 - STEP_TOKENS, False),)
    assert plan.fills("x") == [] and go(plan) == Step()


def test_a_stretch_of_a_context_that_nobody_waits_for_is_computed_or_dropped() -> None:
    plan = schedule()
    about(plan, 1, "x")
    go(plan)
    plan.leave(1)
    for id in (100, 101):
        plan.fill(id, "x", 10, 0.0)
    plan.drop_fill(100)
    assert go(plan).parts == (Part(101, 10, False),)


def test_with_a_context_that_is_lost_goes_what_is_computed_of_it_and_no_other() -> None:
    plan = schedule()
    for id, context in (1, "x"), (2, "y"):
        about(plan, id, context)
    go(plan)
    for id, context in (100, "x"), (101, "y"):
        plan.fill(id, context, 10, 0.0)
    plan.leave(1)
    plan.lost("x")
    assert (plan.fills("x"), plan.fills("y")) == ([], [101]) and "x" not in plan.residency


def test_of_a_context_that_is_not_coming_nobody_can_begin_behind_the_gate() -> None:
    plan = schedule()
    plan.answerable("x")
    about(plan, 1, "x")
    assert go(plan) == Step(bring=("x",)) and go(plan) == Step()


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


def test_behind_a_gate_as_many_prompts_are_computed_as_go_into_a_step_whole() -> None:
    plan = schedule(cells=4000)
    for id in (2, 3, 4):
        about(plan, id, "x", prompt=251)
    assert [part.tokens for part in behind_the_gate(plan, 5).parts] == [251, 251]
    plan = schedule(cells=4000)
    about(plan, 2, "x", prompt=STEP_TOKENS)
    assert behind_the_gate(plan).parts == (Part(2, STEP_TOKENS, True),)


def test_behind_a_gate_a_prompt_waits_that_has_no_cells() -> None:
    plan = schedule(cells=CONTEXT + 100)
    about(plan, 2, "x", prompt=90)
    assert [part.id for part in behind_the_gate(plan).parts] == [2]


def test_a_gate_is_waited_at_only_while_nobody_else_has_anything_to_compute() -> None:
    plan = schedule()
    step = behind_the_gate(plan)
    about(plan, 2, "x")
    about(plan, 3, "y")
    assert not plan.others_wait(step), "they wait for contexts themselves"
    ask(plan, 4)
    assert plan.others_wait(step)
    assert plan.next(0.0) == Step(bring=("y",), begin=(4,), parts=(Part(4, 10, True),))
    plan.leave(4)
    plan.fill(100, "y", 10, 0.0)
    assert plan.others_wait(step) and plan.next(0.0).parts == (Part(100, 10, False),)


def test_a_step_may_be_given_up_if_it_is_only_for_those_who_left() -> None:
    plan = schedule()
    ask(plan, 1)
    ask(plan, 2)
    step = plan.next(0.0)
    assert plan.only_for(step, (1, 2, 3)) and not plan.only_for(step, (1,))
    plan.leave(2)
    assert plan.only_for(step, (1,)) and not plan.only_for(step, ())


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


def test_cells_are_claimed_ahead_as_an_answer_grows() -> None:
    plan = schedule(cells=1000)
    ask(plan, 1, prompt=10, most=1000)
    claimed = []
    for _ in range(70):
        go(plan)
        claimed.append(plan.residency.claimed_cells)
    assert sorted({*claimed}) == [74, 139]


def test_an_answer_that_grows_displaces_contexts_that_nobody_computes_with() -> None:
    plan = schedule(cells=CONTEXT + 80)
    about(plan, 1, "x")
    go(plan)
    plan.ready("x")
    plan.leave(1)
    ask(plan, 2, prompt=10, most=1000)
    steps = [go(plan) for _ in range(70)]
    assert [step.evict for step in steps if step.evict] == [("x",)] and not any(step.stop for step in steps)


def test_where_cells_run_out_the_youngest_answer_makes_way_and_is_computed_again() -> None:
    plan = schedule(cells=200)
    ask(plan, 1, "ann", prompt=10, most=1000)
    ask(plan, 2, "bob", prompt=20, most=1000)
    stops = [step for step in (go(plan) for _ in range(80)) if step.stop]
    assert [step.stop for step in stops] == [(2,)] and plan.waiting == 1
    plan.leave(1)
    (part,) = go(plan).parts
    assert part.id == 2 and part.tokens > 60 and part.chooses, "with all that was chosen before"


def test_of_who_has_most_an_answer_makes_way_though_anothers_is_younger() -> None:
    plan = schedule(cells=360)
    for id, caller in (1, "ann"), (2, "ann"), (3, "bob"):
        ask(plan, id, caller, prompt=10, most=1000)
    stops = [step.stop for step in (go(plan) for _ in range(80)) if step.stop]
    assert stops == [(2,)]


def test_who_waited_long_for_cells_lets_nobody_by_who_comes_after_it() -> None:
    plan = schedule(cells=100)
    ask(plan, 1, prompt=40)
    go(plan)
    ask(plan, 2, prompt=60)
    ask(plan, 3, prompt=10)
    assert go(plan, 1.0).begin == (3,)
    ask(plan, 4, prompt=10, at_s=10.0)
    assert go(plan, 10.0).begin == ()
    plan.leave(1)
    assert go(plan, 10.0).begin == (2,)


def test_who_waits_for_room_for_its_context_is_waited_for_too() -> None:
    plan = schedule(cells=500)
    ask(plan, 1, prompt=200)
    go(plan)
    about(plan, 2, "x")
    ask(plan, 3)
    assert go(plan, 10.0).begin == ()
    plan.leave(1)
    assert go(plan, 10.0) == Step(bring=("x",), begin=(3,), parts=(Part(3, 10, True),))


# How far it is


def test_how_much_of_a_prompt_and_of_a_context_is_computed_can_be_asked() -> None:
    plan = schedule(cells=8 * STEP_TOKENS)
    ask(plan, 1, prompt=STEP_TOKENS + 10)
    assert plan.computed(1) == 0 == plan.computed(99)
    go(plan)
    assert plan.computed(1) == STEP_TOKENS
    for _ in range(3):
        go(plan)
    assert plan.computed(1) == STEP_TOKENS + 10, "what is generated does not count"
    about(plan, 2, "x")
    plan.next(0.0)
    plan.fill(7, "x", CONTEXT, 0.0)
    go(plan)
    assert 0 < plan.filled("x") <= CONTEXT and plan.filled("y") == 0


# Cells besides a context's own


def test_a_context_that_is_computed_layer_by_layer_keeps_cells_besides_its_own_until_it_is_ready() -> None:
    plan = schedule()
    about(plan, 1, "x")
    assert plan.next(0.0).bring == ("x",)
    assert plan.spare("x", 500, 0.0) and plan.residency.free_cells == 100
    assert plan.spare("x", 400, 0.0) and plan.residency.free_cells == 100, "it has as many"
    assert not plan.spare("x", 700, 0.0) and plan.residency.free_cells == 100
    assert plan.spare("x", 550, 0.0) and plan.residency.free_cells == 50
    plan.ready("x")
    assert plan.residency.free_cells == 600
    about(plan, 2, "y")
    assert plan.next(0.0).bring == ("y",)
    assert plan.spare("y", 100, 0.0) and plan.residency.claimed_cells > 100
    plan.lost("y")
    plan.leave(1), plan.leave(2)
    assert plan.residency.claimed_cells == 0


def test_only_what_nobody_named_makes_room_for_such_cells() -> None:
    plan = schedule()
    for id, context in enumerate(("x", "y"), 1):
        about(plan, id, context, guest=context == "y")
        assert plan.next(0.0).bring == (context,)
        plan.ready(context)
        plan.leave(id)
    about(plan, 3, "z")
    assert plan.next(0.0).evict == ("y",)  # 400 cells of 1,000 each
    assert not plan.spare("z", 300, 0.0)
    plan.lost("z")
    plan.leave(3)
    about(plan, 4, "y", guest=True)
    assert plan.next(0.0).bring == ("y",)
    plan.ready("y")
    plan.leave(4)
    plan.fill(5, "x", 10, 0.0)
    assert plan.spare("x", 300, 0.0)
    step = plan.next(0.0)
    assert step.evict == ("y",) and step.parts, "it leaves before anything is computed"
