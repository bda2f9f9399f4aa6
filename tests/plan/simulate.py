"""A load without a clock: one machine, links whose rates and faults are functions of time, and the plan between them.

Time goes in small steps. Requests under way share a link evenly. What the machine takes is exactly what it is told.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from preread.plan import events
from preread.plan.cost import Link, Need, Prefill, floor_s
from preread.plan.events import Cell, Event, Instruction
from preread.plan.plan import INJECTIONS, Plan
from preread.plan.task import Source, Task

MBIT = 1e6 / 8
STEP_S = 0.001
TICK_S = 0.02


@dataclass(frozen=True)
class Machine:
    """What is true of a machine, and of the codec on it."""

    prefill: Prefill = field(default_factory=lambda: Prefill(1 / 280, 2e-7, 0.01))
    prompt_s: float = 0.14
    decode_bytes_s: float = 60e6
    groups: int = 12

    def compute_s(self, start: int, tokens: int) -> float:
        return self.prefill.seconds(start, tokens)

    def local_s(self, tokens: int) -> float:
        """Time to first token without any link, in batches of 512."""
        return sum(self.compute_s(s, min(512, tokens - s)) for s in range(0, tokens, 512)) + self.prompt_s


@dataclass
class Wire:
    """A source. `bytes_s`: its rate at a time; `fails`: whether a request ends in an error at a time."""

    bytes_s: Callable[[float], float]
    rtt_s: float = 0.02
    fails: Callable[[float], bool] = lambda at_s: False
    breaks: bool = False  # before any cell is whole
    asked: dict[Cell, tuple[float, float]] = field(default_factory=dict)  # when its bytes may flow, bytes left
    seen_bytes: float = 0.0

    def flow(self, at_s: float) -> list[Cell]:
        """One step: the cells that are whole now."""
        active = [cell for cell, (ready_s, _) in self.asked.items() if ready_s <= at_s]
        whole = []
        for cell in active:
            ready_s, left = self.asked[cell]
            share = min(left - 1 if self.breaks else left, self.bytes_s(at_s) * STEP_S / len(active))
            self.seen_bytes += share
            self.asked[cell] = ready_s, left - share
            if left - share <= 1e-6:
                whole.append(cell)
        return whole


@dataclass
class Outcome:
    """How a load went: time to first token, tokens computed, bytes received, requests, interruptions.

    `layered_tokens`: of those that were computed, through their first layers only, which count as that share of one.
    """

    ttft_s: float = float("inf")
    computed_tokens: float = 0
    layered_tokens: float = 0
    seen_bytes: float = 0.0
    requests: int = 0
    interrupts: int = 0
    most_bytes: int = 0


class Load:
    """One simulated load; checks at every step what must never happen."""

    def __init__(self, task: Task, machine: Machine, wires: list[Wire]) -> None:
        self.task, self.machine, self.wires = task, machine, wires
        self.plan, self.now_s, self.outcome = Plan(task, 0.0), 0.0, Outcome()
        self.placed: set[Cell] = set()
        self.injecting: dict[Cell, float] = {}
        self.held: set[Cell] = set()
        self.decoded_s = 0.0
        self.computing: tuple[events.Compute, float, float] | None = None
        self.opened, self.answered, self.stopping = 0, None, False
        self.chain = 0, machine.groups  # chunks that were computed one by one from the start, in so many groups

    def run(self, limit_s: float = 600.0) -> Outcome:
        self.tell(events.Tick())
        steps = 0
        while self.outcome.ttft_s == float("inf"):
            self.now_s = steps * STEP_S
            steps += 1
            assert self.now_s < limit_s, "a load does not end"
            self.links(steps)
            self.decoder()
            self.engine()
            if steps % round(TICK_S / STEP_S) == 0:
                self.tell(events.Tick())
        assert self.plan.complete or self.answered is not None
        self.outcome.seen_bytes = sum(wire.seen_bytes for wire in self.wires)
        return self.outcome

    def links(self, steps: int) -> None:
        for index, wire in enumerate(self.wires):
            before = wire.seen_bytes
            whole = wire.flow(self.now_s)
            if whole or (wire.seen_bytes > before and steps % 20 == 0) or steps % 50 == 0:
                self.tell(events.Progress(index, int(wire.seen_bytes)))
                if not whole:
                    self.tell(events.Tick())
            for cell in whole:
                if cell in wire.asked:
                    del wire.asked[cell]
                    self.held.add(cell)
                    self.tell(events.Arrived(cell, index))
            for cell in list(wire.asked):
                if cell in wire.asked and wire.fails(self.now_s):
                    del wire.asked[cell]
                    self.tell(events.Failed(cell, index))

    def decoder(self) -> None:
        while ready := [cell for cell, done_s in self.injecting.items() if done_s <= self.now_s]:
            self.decoded_s = self.injecting.pop(ready[0])
            self.placed.add(ready[0])
            self.tell(events.Placed(ready[0]))
        self.decoded_s = self.now_s

    def engine(self) -> None:
        if self.computing is not None:
            what, began_s, until_s = self.computing
            if self.stopping or until_s <= self.now_s:
                self.computing = None
                if self.stopping and until_s > self.now_s:
                    self.stopping = False
                    self.tell(events.Interrupted())
                    return
                self.stopping = False
                depth, share = self.depth(what)
                if what.start in (0, self.chain[0]):
                    self.chain = what.stop, depth
                for chunk in range(what.start, what.stop):
                    self.placed |= {(chunk, g) for g in range(depth)}
                    self.outcome.computed_tokens += share * self.task.chunks[chunk]
                    self.outcome.layered_tokens += share * self.task.chunks[chunk] if share < 1 else 0
                self.tell(events.Computed(self.now_s - began_s))
        if self.answered is not None:
            if self.stopping:
                self.answered, self.stopping = None, False
                self.tell(events.Interrupted())
                return
            share = self.answered
            if int(share * self.machine.groups + 1e-9) < self.opened:
                share = min(share + STEP_S / self.machine.prompt_s, self.opened / self.machine.groups)
            self.answered = share
            if share >= 1 - 1e-9:
                self.outcome.ttft_s = self.now_s

    def depth(self, what: events.Compute) -> tuple[int, float]:
        """In how many groups chunks are computed, and what share that is of computing them."""
        groups = self.machine.groups
        return (groups, 1.0) if what.groups is None else (what.groups, self.task.shares[what.groups - 1])

    def tell(self, event: Event) -> None:
        for instruction in self.plan.step(event, self.now_s):
            self.do(instruction)
        owed = sum(size for wire in self.wires for _, size in wire.asked.values())
        self.outcome.most_bytes = max(self.outcome.most_bytes, int(owed))
        waits = self.computing is None and self.answered is None and not self.injecting
        if waits:
            assert any(wire.asked for wire in self.wires), "it waits for something that nobody fetches"

    def do(self, instruction: Instruction) -> None:
        match instruction:
            case events.Fetch(cell, source):
                assert cell not in self.placed and cell not in self.wires[source].asked
                size = self.task.cells[cell[0]][cell[1]]
                self.wires[source].asked[cell] = self.now_s + self.wires[source].rtt_s, float(size)
                assert len(self.wires[source].asked) <= self.task.sources[source].most_requests
                self.outcome.requests += 1
            case events.Abandon(cell, source):
                del self.wires[source].asked[cell]
            case events.Inject(cell):
                assert cell in self.held and cell not in self.placed and cell not in self.injecting
                if self.computing is not None:
                    what = self.computing[0]
                    assert not what.start <= cell[0] < what.stop or cell[1] >= self.depth(what)[0]
                self.held.discard(cell)
                size = self.task.cells[cell[0]][cell[1]]
                began_s = max([self.decoded_s, *self.injecting.values()])  # one after the other
                self.injecting[cell] = began_s + size / self.machine.decode_bytes_s
                assert len(self.injecting) <= INJECTIONS
            case events.Compute(start, stop):
                assert self.computing is None and self.answered is None
                depth, share = self.depth(instruction)
                earlier = {(c, g) for c in range(start) for g in range(depth) if self.task.cells[c][g]}
                assert earlier <= self.placed, "computed on top of rows that are not there"
                if self.task.in_order and start:
                    assert self.chain[0] == start and self.chain[1] >= depth
                assert not any(start <= cell[0] < stop and cell[1] < depth for cell in self.injecting)
                begin = sum(self.task.chunks[:start])
                tokens = sum(self.task.chunks[start:stop])
                takes_s = share * self.machine.compute_s(begin, tokens)
                self.computing = instruction, self.now_s, self.now_s + takes_s
            case events.Interrupt():
                self.stopping = True
                self.outcome.interrupts += 1
            case events.Answer():
                assert self.computing is None and self.answered is None
                self.answered = 0.0
            case events.Open(groups):
                needed = {(c, g) for c, row in enumerate(self.task.cells) for g in range(groups) if row[g]}
                assert needed <= self.placed and groups > self.opened
                self.opened = groups


def task_for(
    tokens: int, machine: Machine, bytes_per_token: float, links: list[Link], believed: Machine | None = None
) -> Task:
    """A context of so many tokens, in chunks of 128."""
    believed = believed or machine
    chunks = [128] * (tokens // 128)
    if (rest := tokens % 128) >= 64 or not chunks:
        chunks.append(rest)
    elif rest:
        chunks[-1] += rest
    cells = tuple((max(1, int(n * bytes_per_token / machine.groups)),) * machine.groups for n in chunks)
    sources = tuple(Source(link.bytes_s or None, link.rtt_s, most_requests=64) for link in links)
    return Task(tuple(chunks), cells, believed.prefill, believed.prompt_s, believed.decode_bytes_s, sources)


def windowed(task: Task, window_tokens: int, full_every: int) -> Task:
    """The same context of a model whose layers have a window, but for every so many groups' last."""
    starts = [sum(task.chunks[:c]) for c in range(len(task.chunks))]
    seen = sum(task.chunks) - window_tokens + 1

    def size(chunk: int, group: int) -> int:
        tokens = (
            task.chunks[chunk]
            if group % full_every == full_every - 1
            else min(task.chunks[chunk], max(0, starts[chunk] + task.chunks[chunk] - seen))
        )
        return task.cells[chunk][group] * tokens // task.chunks[chunk]

    groups = len(task.cells[0])
    cells = tuple(tuple(size(chunk, group) for group in range(groups)) for chunk in range(len(task.chunks)))
    return replace(task, cells=cells, in_order=seen > 0)


def layered(task: Task) -> Task:
    """The same, whose chunks can be computed through their first layers only."""
    groups = len(task.cells[0])
    return replace(task, shares=tuple((group + 1) / groups for group in range(groups)))


def steady(
    tokens: int,
    machine: Machine,
    bytes_per_token: float,
    mbps: float,
    rtt_s: float,
    *,
    known: bool = True,
    shaped: Callable[[Task], Task] = lambda task: task,
) -> tuple[Outcome, float, float]:
    """A steady link: the outcome, the floor, and local prefill's time."""
    link = Link(mbps * MBIT, rtt_s)
    task = shaped(task_for(tokens, machine, bytes_per_token, [link if known else Link(0, rtt_s)]))
    outcome = Load(task, machine, [Wire(lambda at_s: link.bytes_s, rtt_s)]).run()
    local_s = machine.local_s(tokens)
    need = Need(tokens, sum(map(sum, task.cells)), tokens / (local_s - machine.prompt_s), machine.prompt_s)
    return outcome, floor_s(need, link), local_s


def slowed(machine: Machine, factor: float) -> Machine:
    """The same machine, so many times slower at prefill and prompts."""
    p = machine.prefill
    slower = Prefill(p.token_s * factor, p.position_s * factor, p.batch_s * factor)
    return replace(machine, prefill=slower, prompt_s=machine.prompt_s * factor)
