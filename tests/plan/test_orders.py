"""Random orders of events: every instruction is legal, and the plan always ends."""

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from preread.plan import events
from preread.plan.cost import Link, Prefill
from preread.plan.health import FAILURES, Breaker
from preread.plan.plan import MOST_BYTES, Plan
from preread.plan.task import Source, Task


class World:
    """Performs instructions in an order that a seed draws, and checks that they are legal."""

    def __init__(
        self, seed: int, chunks: int, groups: int, links: list[Link | None], faults: float, *, windows: bool = False
    ) -> None:
        self.draw, self.faults, self.now_s = random.Random(seed), faults, 0.0
        behind = [self.draw.randrange(chunks) if windows and self.draw.random() < 0.6 else 0 for _ in range(groups)]
        sizes = tuple(
            tuple(0 if chunk < behind[group] else self.draw.randrange(1, 200_000) for group in range(groups))
            for chunk in range(chunks)
        )
        tokens = tuple(self.draw.randrange(64, 200) for _ in range(chunks))
        health = Breaker(), Breaker(), Breaker(FAILURES, -100.0), Breaker(FAILURES + 1, -0.1)
        sources = tuple(
            Source(link and link.bytes_s, link.rtt_s if link else 0.05, self.draw.choice(health), most_requests=5)
            for link in links
        )
        first: tuple[tuple[int, ...], ...] = ()
        if links and self.draw.random() < 0.5:
            first = tuple(tuple(self.draw.randrange(len(links)) for _ in range(groups)) for _ in range(chunks))
        prefill = Prefill(self.draw.choice((1e-4, 4e-3)))
        shares = tuple((g + 1) / groups for g in range(groups)) if self.draw.random() < 0.7 else ()
        self.crowded = self.draw.choice((0.0, 0.0, 0.2, 1.0))
        breaks = (True, *(self.draw.random() < 0.4 for _ in range(chunks - 1))) if self.draw.random() < 0.5 else ()
        self.task = Task(
            tokens, sizes, prefill, 0.1, 1e7, sources, first, in_order=windows, shares=shares, breaks=breaks
        )
        self.plan, self.groups, self.chunks = Plan(self.task, 0.0), groups, chunks
        self.asked: set[tuple[events.Cell, int]] = set()
        self.given_up: list[tuple[events.Cell, int]] = []
        self.here: set[events.Cell] = set()
        self.injecting: list[events.Cell] = []
        self.rows = {(c, g): "left behind" for c in range(chunks) for g in range(groups) if not sizes[c][g]}
        self.chain = range(0), groups  # chunks that were computed one by one from the start, in so many groups
        self.depth = groups
        self.span, self.answering, self.stopping, self.opened = range(0), False, False, 0
        self.seen, self.gave_up = [0] * len(links), False

    def do(self, out: list[events.Instruction]) -> None:
        for instruction in out:
            match instruction:
                case events.Fetch(cell, source):
                    assert (cell, source) not in self.asked and cell not in self.here and cell not in self.rows
                    self.asked.add((cell, source))
                    if self.task.first:
                        assert source in (self.task.first[cell[0]][cell[1]], len(self.seen) - 1)
                    assert sum(of == source for _, of in self.asked) <= 5
                    breaker = self.plan.breakers[source]
                    assert not breaker.trying or breaker.retry_s <= self.now_s, "asked of one that is to be left alone"
                case events.Abandon(cell, source):
                    self.asked.remove((cell, source))
                    self.given_up.append((cell, source))
                case events.Inject(cell):
                    self.here.remove(cell)
                    assert cell not in self.rows
                    assert cell[0] not in self.span or cell[1] >= self.depth, "it is being computed"
                    self.injecting.append(cell)
                case events.Compute(start, stop, depth):
                    assert depth is None or (self.task.shares and 0 < depth < self.groups and not self.gave_up)
                    depth = self.groups if depth is None else depth
                    assert not self.span and not self.answering and start < stop
                    assert all((c, g) in self.rows for c in range(start) for g in range(depth))
                    assert not any(c in range(start, stop) and g < depth for c, g in self.injecting)
                    if self.task.in_order and start:
                        assert self.chain[0].stop == start, "what windows look at is not there"
                        assert self.chain[1] >= depth, "what windows look at in upper layers is not there"
                    if depth < self.groups and self.task.breaks and not self.task.breaks[start]:
                        goes_on = self.task.in_order and self.chain[1] < self.groups
                        assert goes_on, "what it looks at is torn apart"
                    if not start:
                        self.chain = range(0), self.groups  # the engine keeps but one
                    self.span, self.depth = range(start, stop), depth
                case events.Interrupt():
                    assert self.span or self.answering
                    came = [cell for cell, how in self.rows.items() if cell[0] in self.span and how == "injected"]
                    assert not came or self.depth < self.groups, "what had come of it is lost"
                    self.stopping = True
                case events.Answer():
                    assert not self.span and not self.answering
                    self.answering = True
                case events.Open(groups):
                    assert self.answering and not self.stopping and groups > self.opened
                    assert all((c, g) in self.rows for c in range(self.chunks) for g in range(groups))
                    self.opened = groups
        size = {cell for cell, _ in self.asked} | self.here | set(self.injecting)
        assert len(size) <= 1 or sum(self.task.cells[c][g] for c, g in size) <= MOST_BYTES + 200_000

    def happens(self) -> None:
        """One thing that can happen now."""
        self.now_s += self.draw.choice((0.0, 0.001, 0.02, 0.3))
        choices = ["tick", "progress"]
        choices += ["link"] * 2 * bool(self.asked) + ["inject"] * 3 * bool(self.injecting)
        choices += ["late"] * bool(self.given_up)
        choices += ["engine"] * 2 * bool(self.span or self.stopping)
        match self.draw.choice(choices):
            case "progress" if self.seen:
                source = self.draw.randrange(len(self.seen))
                self.seen[source] += self.draw.randrange(100_000)
                self.tell(events.Progress(source, self.seen[source]))
            case "link":
                cell, source = self.draw.choice(sorted(self.asked))
                self.seen[source] += self.task.cells[cell[0]][cell[1]]
                self.tell(events.Progress(source, self.seen[source]))
                if (cell, source) not in self.asked:
                    return  # it was given up just now
                self.asked.remove((cell, source))
                if self.draw.random() < self.faults:
                    self.tell(events.Failed(cell, source, self.draw.choice(("link", "link", "cell", "source"))))
                else:
                    self.here.add(cell)
                    self.tell(events.Arrived(cell, source))
            case "late":  # it was given up when it was about to come
                cell, source = self.given_up.pop()
                late = events.Arrived(cell, source), events.Failed(cell, source, self.draw.choice(("link", "cell")))
                if (cell, source) not in self.asked:
                    self.tell(self.draw.choice(late))
            case "inject":
                cell = self.injecting.pop(self.draw.randrange(len(self.injecting)))
                if self.draw.random() < self.faults / 2:
                    self.tell(events.Spoilt(cell))
                else:
                    self.rows[cell] = "injected"
                    self.tell(events.Placed(cell))
            case "engine":
                self.engine()
            case _:
                self.tell(events.Tick())

    def engine(self) -> None:
        span, stopped, self.stopping = self.span, self.stopping, False
        if stopped and (self.answering or self.draw.random() < 0.8):
            self.span, self.answering = range(0), False
            self.tell(events.Interrupted())
            return
        if span and self.depth < self.groups and self.draw.random() < self.crowded:
            self.span, self.gave_up = range(0), True
            self.tell(events.Unsplit())
            return
        if span and span.start in (0, self.chain[0].stop):
            self.chain = range(span.stop), self.depth
        for chunk in span:
            for g in range(self.depth):
                self.here.discard((chunk, g))
                self.rows[chunk, g] = "computed"
        self.span = range(0)
        self.tell(events.Computed(self.draw.random()))

    def tell(self, event: events.Event) -> None:
        self.do(self.plan.step(event, self.now_s))
        if self.plan.complete:
            return
        if not (self.span or self.answering or self.injecting):
            assert self.asked, "it waits for something that nobody fetches"
        if self.answering and not self.stopping and self.opened < self.groups:
            assert self.asked or self.here or self.injecting, "the answer waits for what nobody brings"


links = st.lists(st.none() | st.builds(Link, st.sampled_from([0.0, 1e4, 1e6, 1e8]), st.floats(0, 0.2)), max_size=3)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), links, st.sampled_from([0.0, 0.1, 0.5]))
@example(
    251, 4, 2, [Link(1e8, 0.1468109452396241), Link(1e4, 0.08204815344591701), Link(0.0, 0.05246678620963972)], 0.5
)
@example(
    3521, 2, 2, [None, Link(1e8, 0.06729005245870992), Link(0.0, 0.175848528992426)], 0.1
)  # the last cell is nowhere
@example(4, 4, 1, [None, None, None], 0.5)  # who refuses the last cell brings it no sooner for being quick
def test_every_row_gets_there_once_and_the_plan_ends(
    seed: int, chunks: int, groups: int, links: list[Link | None], faults: float
) -> None:
    assert len(ended(World(seed, chunks, groups, links, faults)).rows) == chunks * groups


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), links, st.sampled_from([0.0, 0.1, 0.5]))
def test_what_windows_leave_behind_never_comes_and_chunks_are_computed_in_order(
    seed: int, chunks: int, groups: int, links: list[Link | None], faults: float
) -> None:
    assert len(ended(World(seed, chunks, groups, links, faults, windows=True)).rows) == chunks * groups


def ended(world: World) -> World:
    world.tell(events.Tick())
    for _ in range(20_000):
        if world.plan.complete:
            break
        world.happens()
    assert world.plan.complete, "it does not end"
    assert world.answering and world.opened == world.groups
    return world
