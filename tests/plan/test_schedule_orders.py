"""Random orders of what may happen to a schedule: every step can be done as it says, and every request ends."""

import random
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from preread.plan.residency import Residency
from preread.plan.schedule import ECHO_TOKENS, LOADS, MOST_WAIT_S, Schedule
from preread.plan.share import MANY_ANSWERS, STEP_TOKENS
from preread.plan.step import Part, Request, Step
from preread.plan.step_cost import StepCost

CALLERS = "ann", "bob", "cy"
MOST_STEPS = 6000
STEP_S = 0.05
"""So few seconds pass in each of the last steps that nobody is refused."""


@dataclass
class Live:
    """A request as the engine has it. `rows`: of the context, that its sequence sees; None: it has no sequence."""

    request: Request
    arrived_s: float
    known: int
    done: int = 0
    chosen: int = 0
    running: bool = False
    rows: int | None = None


@dataclass
class Held:
    """A context in the cache. `rows` is another number whenever its cells are others."""

    cells: int
    named: bool
    rows: int
    computed: int = 0
    ready: bool = False
    answerable: bool = False
    spare: int = 0

    @property
    def lacks(self) -> int:
        return self.cells - self.computed


@dataclass
class Stretch:
    """Tokens of a context that are computed."""

    context: str
    tokens: int
    done: int = 0


class World:
    """Performs steps, and checks that each can be; what happens besides, a seed draws."""

    def __init__(self, seed: int, cells: int, answers: int, contexts: int) -> None:
        self.draw, self.cells, self.answers, self.now_s = random.Random(seed), cells, answers, 0.0
        least = self.draw.choice((10, cells // 2))
        self.sizes = {f"context {index}": self.draw.randrange(least, int(cells * 0.9)) for index in range(contexts)}
        self.plan = Schedule(Residency(cells, 3), StepCost.guessed(self.draw.choice((30.0, 1000.0))), answers)
        self.computes = self.draw.choice((0.0, 0.5, 1.0))  # so many of all contexts, in the end
        self.live: dict[int, Live] = {}
        self.held: dict[str, Held] = {}
        self.stretches: dict[int, Stretch] = {}
        self.passed_over = False
        self.count = 0

    # What happens

    def happens(self) -> None:
        """One thing that can happen at any time."""
        coming = sorted(context for context, held in self.held.items() if not held.ready)
        choices = ["arrive"] * 3 + ["time"] + ["leave"] * bool(self.live) + ["load"] * 4 * bool(coming)
        match self.draw.choice(choices):
            case "arrive":
                self.arrive(self.request())
            case "leave":
                self.leave(self.draw.choice(sorted(self.live)))
            case "load":
                self.loads(self.draw.choice(coming))
            case _:
                self.now_s += self.draw.choice((0.0, 0.1, 6.0, 700.0))

    def happens_between_steps(self) -> None:
        """One thing that the engine's own thread does."""
        context = self.draw.choice(sorted(context for context, held in self.held.items() if not held.ready) or [None])
        if context is None:
            return
        stretches = self.plan.fills(context)
        if self.draw.random() < 0.3:
            self.lost(context)
        elif stretches and self.draw.random() < 0.3:
            self.plan.drop_fill(stretches[0])
            del self.stretches[stretches[0]]
        elif not stretches and not self.held[context].answerable and self.held[context].lacks:
            self.fill(context, self.draw.choice((1.0, 0.3)))

    def request(self) -> Request:
        """Somebody's, that has room in the cache at least by itself."""
        caller, context = self.draw.choice(CALLERS), self.draw.choice((None, *self.sizes))
        size = 0 if context is None else self.sizes[context]
        most = self.cells - size - 1
        prompt, wanted = self.draw.randrange(1, min(most, self.draw.choice((10, 900)))), self.draw.choice((1, 9, 300))
        request = Request(self.count, caller, prompt, wanted, echo=context is None and self.draw.random() < 0.3)
        guest = self.draw.random() < 0.4
        reuse = self.draw.randrange(size // 2, size + 1) if guest else size
        return replace(request, context=context, context_tokens=size, reuse_tokens=reuse, guest=guest)

    def arrive(self, request: Request) -> int:
        self.count += 1
        request = replace(request, id=self.count)
        self.live[request.id] = Live(request, self.now_s, request.prompt_tokens)
        if request.context in self.held and not request.guest:
            self.held[request.context].named = True
        self.plan.arrive(request, self.now_s)
        return request.id

    def leave(self, id: int) -> None:
        del self.live[id]
        self.plan.leave(id)

    def loads(self, context: str) -> None:
        """A context that is coming comes nearer, or less near."""
        held = self.held[context]
        if held.answerable and self.draw.random() < 0.5:
            self.ready(context)
        elif held.answerable or not self.plan.fills(context):
            held.answerable = not held.answerable
            self.plan.answerable(context, now=held.answerable)

    def ready(self, context: str) -> None:
        self.held[context].ready = True
        self.plan.ready(context)

    def lost(self, context: str) -> None:
        """With those who ask about it, or without."""
        if self.draw.random() < 0.5:
            for live in [*self.live.values()]:
                if live.request.context == context:
                    self.leave(live.request.id)
        for id in self.plan.fills(context):
            del self.stretches[id]
        del self.held[context]
        self.plan.lost(context)

    def fill(self, context: str, share: float) -> None:
        """Compute so much of what a context lacks; its cells are others then."""
        held = self.held[context]
        if self.draw.random() < 0.3 and self.plan.spare(
            context, spare := self.draw.randrange(1, self.cells), self.now_s
        ):
            held.spare = max(held.spare, spare)
        self.count += 1
        tokens = max(1, int(share * held.lacks))
        held.rows, held.computed = self.count, held.computed + tokens
        self.stretches[self.count] = Stretch(context, tokens)
        self.plan.fill(self.count, context, tokens, self.now_s)

    # What is done

    def steps(self, events: float) -> bool:
        """One step; False: there is none. Meanwhile, and before, so many things happen."""
        while self.draw.random() < events:
            self.happens_between_steps()
        before = self.plan.residency.claimed_cells
        step = self.plan.next(self.now_s)
        if step == Step():
            return False
        self.moves(step, before)
        self.check(step)
        while self.draw.random() < events:
            self.happens()
        if self.draw.random() < 1 - events / 3:
            self.computed(step)
        return True

    def moves(self, step: Step, claimed_before: int) -> None:
        for id in step.stop:
            live = self.live[id]
            assert live.running, "it has nothing to give back"
            live.running, live.done, live.rows = False, 0, None
        only_guests = not step.begin and not step.stop and self.plan.residency.claimed_cells == claimed_before
        only_guests &= all(self.guests(context) for context in step.bring)
        for context in step.evict:
            held = self.held.pop(context)
            assert held.ready, "it is still coming"
            assert not any(live.running and live.request.context == context for live in self.live.values())
            assert not (only_guests and held.named), "a guest took the place of what was asked for by name"
        self.check_cells()
        for context in step.bring:
            assert context not in self.held and not self.none_asks(context)
            self.count += 1
            self.held[context] = Held(self.sizes[context], not self.guests(context), self.count)
            assert sum(not held.ready for held in self.held.values()) <= LOADS
        for id in step.alone:
            live = self.live[id]
            assert not live.running and live.request.context is not None
            live.known += live.request.reuse_tokens
            live.request = replace(live.request, context=None, context_tokens=0, reuse_tokens=0)
        for id in step.refuse:
            live = self.live[id]
            assert not live.running and not live.chosen and self.now_s - live.arrived_s > MOST_WAIT_S
            self.leave(id)
        for id in step.begin:
            live = self.live[id]
            assert not live.running, "it was begun before"
            live.running = True
            if live.request.context is not None:
                held = self.held[live.request.context]
                assert held.ready or step.gated == live.request.context
                live.rows = held.rows

    def guests(self, context: str) -> bool:
        """Whether nobody asks for a context by name."""
        return all(live.request.guest for live in self.live.values() if live.request.context == context)

    def none_asks(self, context: str) -> bool:
        return not any(live.request.context == context for live in self.live.values())

    def check_cells(self) -> None:
        used = sum(live.done for live in self.live.values())
        used += sum(held.cells + (0 if held.ready else held.spare) for held in self.held.values())
        assert used <= self.cells

    def check(self, step: Step) -> None:
        """A step as it is about to be computed."""
        residency, running = self.plan.residency, [live for live in self.live.values() if live.running]
        assert residency.sizes == {context: held.cells for context, held in self.held.items()}
        assert residency.free_cells >= 0 and residency.claimed_cells >= sum(live.known for live in running)
        assert self.plan.running == len(running) <= self.answers
        assert self.plan.waiting == len(self.live) - len(running)
        assert step.tokens <= STEP_TOKENS and len({part.id for part in step.parts}) == len(step.parts)
        for part in step.parts:
            assert part.tokens > 0
            if (stretch := self.stretches.get(part.id)) is not None:
                assert step.gated is None and not part.chooses and part.tokens <= stretch.tokens - stretch.done
            else:
                self.check_part(part, self.live[part.id], step.gated)
        if step.parts and step.gated is None:
            answers = [live.request for live in running if self.decodes(live)]
            missing = [request.caller for request in answers if request.id not in {part.id for part in step.parts}]
            counts = Counter(request.caller for request in answers)
            assert not missing or len(missing) == len(answers), "all pause, or none"
            assert all(counts[caller] >= MANY_ANSWERS for caller in missing), "only who has many is passed over"
            assert not (missing and self.passed_over), "and not twice: an answer has a token in every second step"
            self.passed_over = bool(missing)

    def decodes(self, live: Live) -> bool:
        there = live.request.context is None or self.held[live.request.context].ready
        return there and live.chosen > 0 and live.known - live.done == 1

    def check_part(self, part: Part, live: Live, gated: str | None) -> None:
        assert live.running and part.tokens <= live.known - live.done
        assert part.chooses == (part.tokens == live.known - live.done)
        assert not live.request.echo or live.chosen or part.tokens <= ECHO_TOKENS
        if gated is not None:
            assert live.request.context == gated and self.held[gated].answerable and not self.held[gated].ready
        if live.request.context is not None:
            held = self.held[live.request.context]
            assert live.rows == held.rows, "its sequence sees cells that are not the context's any more"
            assert held.ready or gated is not None

    def computed(self, step: Step) -> None:
        chosen = [self.draw.choice((1, 1, 1, 2, 4)) if part.chooses else 0 for part in step.parts]
        self.plan.stepped(step, chosen, self.draw.choice((None, 0.01, 2.0)))
        for part, count in zip(step.parts, chosen, strict=True):
            if (stretch := self.stretches.get(part.id)) is not None:
                stretch.done += part.tokens
                if stretch.done == stretch.tokens:
                    self.filled(part.id, stretch)
            elif (live := self.live.get(part.id)) is not None:
                live.done, live.known = live.done + part.tokens + max(0, count - 1), live.known + count
                live.chosen += count
                full = live.request.reuse_tokens + live.known >= self.cells
                if full or live.chosen >= live.request.most_tokens:
                    self.leave(part.id)

    def filled(self, id: int, stretch: Stretch) -> None:
        del self.stretches[id]
        held = self.held[stretch.context]
        if not held.lacks:
            self.ready(stretch.context)

    # How it ends

    def ends(self) -> int:
        """Nothing happens any more but that the driver goes on. How many steps that takes."""
        for count in range(MOST_STEPS):
            if not self.live and not self.stretches:
                return count
            self.now_s += STEP_S
            went_on = self.steps(0.0)
            for context, held in [*self.held.items()]:
                if not held.ready and not self.plan.fills(context):
                    went_on = True
                    self.comes_nearer(context, held)
            assert went_on, "nothing is to be done, and somebody waits"
        raise AssertionError("it does not end")

    def comes_nearer(self, context: str, held: Held) -> None:
        if self.none_asks(context):
            self.lost(context)
        elif held.answerable or not held.lacks:
            self.ready(context)
        elif self.draw.random() < self.computes:
            self.fill(context, 1.0)
        else:
            held.answerable = True
            self.plan.answerable(context)


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(60, 3000), st.sampled_from([1, 2, 5, 20]), st.integers(1, 5))
def test_steps_can_be_done_as_they_are_said_and_every_request_ends(
    seed: int, cells: int, answers: int, contexts: int
) -> None:
    world = World(seed, cells, answers, contexts)
    for _ in range(world.draw.randrange(100)):
        world.happens()
        world.steps(0.5)
    world.ends()
    for context in [*world.held]:
        if not world.held[context].ready:
            world.lost(context)
    assert world.plan.next(world.now_s) == Step() and world.plan.idle
    residency = world.plan.residency
    assert residency.claimed_cells == 0 and residency.victims(cells, world.now_s) is not None, "cells are lost"


@settings(max_examples=30)
@given(
    st.integers(0, 2**32),
    st.integers(900, 20_000),
    st.sampled_from([2, 64]),
    st.sampled_from([None, "known", "new"]),
)
def test_who_asks_little_is_served_soon_beside_another_who_asks_much(
    seed: int, cells: int, answers: int, context: str | None
) -> None:
    """Fifty long requests of one, and then a short one: about nothing, or a context that was there, or was not."""
    world = World(seed, cells, answers, 0)
    size = 0 if context is None else 300
    world.sizes["x"] = size
    short = Request(0, "bob", 10, 5, None if context is None else "x", size, size)
    if context == "known":
        asked = world.arrive(short)
        world.steps(0.0)
        world.ready("x")
        world.leave(asked)
    for _ in range(50):
        world.arrive(Request(0, "ann", world.draw.randrange(1, 400), 100))
    for _ in range(world.draw.randrange(1, 100)):
        world.steps(0.0)
    asked = world.arrive(short)
    # 1,575 of 1,577 random loads need at most 5 steps; answers that fill all cells have to make way first.
    for _ in range(12):
        world.steps(0.0)
        if "x" in world.held and not world.held["x"].ready:
            world.ready("x")
    assert asked not in world.live or world.live[asked].chosen
    world.ends()
