"""Getting a context in place: which cells to fetch from where, which chunks to compute here, when to begin the answer.

A context is a grid of cells, chunks of tokens × groups of layers. A chunk gets in place by computing it, for which all
chunks before it must be in place, or by fetching its cells in any order. So the machine computes from the start and
the links bring cells from the end backwards (`order.py`), and wherever they meet is right. Where layers have windows,
cells that nobody looks at need not come, and chunks can be computed in order only: one that came is computed anew where
another behind it has to be.

Chunks can be computed through their first layers only as well, while the others come. That is better where the end has
more bytes than its share, as with windows, and where there are too few chunks to divide the work evenly. What is
computed so is not gone on with through more layers: so both are tried at every step, whole chunks first.

The answer begins once its first group is under way and nothing is worth computing: its prompt is made ready behind a
gate meanwhile, and taken back where a link turns out slower.

A state machine without clock and I/O: `Plan.step` takes what happened, and when, and returns what to do now. Every
decision compares predicted finishes. A link of which nothing is known, or that failed, is taken to carry nothing
until it shows otherwise, so that one that is dead costs nothing; whatever arrives is used.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Final

from preread.plan.cost import Coming
from preread.plan.events import (
    Abandon,
    Answer,
    Arrived,
    Cell,
    Compute,
    Computed,
    Event,
    Failed,
    Fetch,
    Inject,
    Instruction,
    Interrupt,
    Interrupted,
    Open,
    Placed,
    Progress,
    Spoilt,
    Unsplit,
)
from preread.plan.flow import Flow
from preread.plan.grid import Grid
from preread.plan.health import Breaker
from preread.plan.order import order
from preread.plan.outlook import Outlook, Spent
from preread.plan.sources import Sources
from preread.plan.task import Task

INJECTIONS: Final = 2
"""Cells that are decoded and injected at once."""

MOST_BYTES: Final = 8 * 2**20
"""Cells that are under way or wait to be injected have no more bytes than this, but for one that is larger itself."""

LONGEST_BATCH_TOKENS: Final = 512
_WORTH_S, _WORTH = 0.01, 0.02
"""Computing must be better than waiting by so much, in seconds and as a share, to be begun."""
_LAYERS_S, _LAYERS = 0.01, 0.04
"""Computing some layers of all that is left must be better than computing whole chunks by so much: chunks can still be
computed when a link turns out slower."""
_STAY = 0.1
"""Computing fewer layers than of the chunks before must be better by so much: there is no going back to more."""
_IN_TIME = 0.8
"""A link that would have to be so much faster brings nothing in time; small batches would cost a tenth more."""
_RETRACT_S, _RETRACT = 0.1, 1.25
"""An answer that has begun is taken back only when that is better by so much."""
_INTERRUPT_S, _INTERRUPT = 0.05, 0.7
"""A computation is ended early only when loading is better by so much, and not often."""
_MOST_INTERRUPTS: Final = 3


class Engine(Enum):
    """What the engine is doing."""

    IDLE = 0
    COMPUTING = 1
    ANSWERING = 2
    STOPPING = 3


class Plan:
    """One load of one context. It begins with the first `step`, and is over when `complete`.

    Attributes:
        task: what is to be done, and what is known by now of how it can be.
        predicted_s: seconds to the first token that were expected when it began; None: it has not.
    """

    def __init__(self, task: Task, at_s: float) -> None:
        self.task, self._now_s, self.grid = task, at_s, Grid(task.cells, in_order=task.in_order)
        self._believed_s = task.chunk_s
        self._engine, self._began_s, self._until_s = Engine.IDLE, at_s, at_s
        self._span, self._depth = range(0), self.grid.groups  # chunks that are being computed, and in how many groups
        self._speed = 1.0  # seconds that computing takes ÷ what was believed
        local_s = sum(self._believed_s)
        self._sources = Sources(task, self.grid, at_s, local_s)
        self._opened = self._interrupts = 0
        self._found: Outlook | None = None
        self.predicted_s: float | None = None

    @property
    def complete(self) -> bool:
        """Everything is in place and the answer has begun."""
        return self._engine is Engine.ANSWERING and self._opened == self.grid.groups

    @property
    def breakers(self) -> tuple[Breaker, ...]:
        """The health of each source after this load."""
        return tuple(seen.health for seen in self._sources.each)

    @property
    def flows(self) -> tuple[Flow, ...]:
        """What each source was seen to do."""
        return tuple(seen.flow for seen in self._sources.each)

    def asked_of(self, source: int) -> bool:
        """Whether anything was ever asked of a source."""
        return self._sources.each[source].ever

    def saves(self, share: float, longer: float) -> bool:
        """Whether fetching is expected to save this share of what computing all that is left takes, and the prompt.

        longer: what is computed beside it takes so many times longer than it would alone.
        """
        alone = self._whole_outlook
        bar_s = (1 - share) * alone.all_s
        if alone.wait_s <= bar_s:
            return True
        beside = replace(alone, chunk_s=[longer * chunk_s for chunk_s in alone.chunk_s])
        return min([*beside.chunks[:-1], *beside.layers]) <= bar_s

    # What is believed

    def _share(self, groups: int) -> float:
        """Of what computing a chunk takes, what its first so many groups do."""
        return self.task.shares[groups - 1] if groups < self.grid.groups else 1.0

    @property
    def _computing_s(self) -> float:
        """Seconds until what is being computed is. What is overdue takes as long again as it is late.

        Otherwise it would be about to end for ever, and never be given up for what a link brings sooner.
        """
        return abs(self._until_s - self._now_s) if self._span else 0.0

    @property
    def _slower(self) -> float:
        """What is being computed takes so many times longer than it should, as far as it shows already."""
        if not self._span or self._now_s <= self._until_s:
            return 1.0
        taking_s, due_s = self._now_s + self._computing_s - self._began_s, self._until_s - self._began_s
        return taking_s / max(due_s, 1e-9)

    def _coming(self) -> Coming:
        """What may be expected of the links from now on."""
        expected = self._sources.expected()
        return Coming(
            bytes_s=sum(seen.flow.bytes_s for seen in expected),
            first_s=0.0 if any(seen.asked for seen in expected) else min((s.flow.rtt_s for s in expected), default=0.0),
            partly_bytes=sum(seen.partly_bytes for seen in expected),
            decode_bytes_s=self.task.decode_bytes_s,
            cell_bytes=self.grid.mean_bytes,
        )

    @property
    def _whole_outlook(self) -> Outlook:
        """What may be expected of all that is left, found once a step."""
        if self._found is None:
            self._found = self._outlook(self.grid.left())
        return self._found

    def _outlook(self, left: Sequence[int], *, afresh: bool = False) -> Outlook:
        """What may be expected from now on of these chunks; afresh: if what is being computed is given up first."""
        span, slower = range(0) if afresh else self._span, self._speed * self._slower
        return Outlook(
            left=left,
            grid=self.grid,
            spent=Spent(span, self._depth if span else self.grid.groups),
            busy_s=0.0 if afresh else self._computing_s,
            prompt_s=self.task.prompt_s,
            coming=self._coming(),
            asked_bytes=[*self._sources.asked_bytes],
            chunk_s=[slower * chunk_s for chunk_s in self._believed_s],
            shares=self.task.shares,
            breaks=self.task.breaks,
            in_order=self.task.in_order,
        )

    # What happens

    def step(self, event: Event, at_s: float) -> list[Instruction]:
        """Take note of an event, and say what to do. Times may stand still, but never go back."""
        self._now_s, self._found = max(at_s, self._now_s), None
        out: list[Instruction] = []
        match event:
            case Progress(source, seen_bytes):
                self._sources.progress(source, seen_bytes, self._now_s)
                return out
            case Arrived(cell, source):
                if self._sources.arrived(cell, source, self._now_s):  # or it was given up
                    self._give_up(cell, out)
                    self.grid.arrived(cell)
            case Failed(cell, source, fault):
                hopeless = self._sources.failed(cell, source, fault, self._now_s)
                if hopeless and cell in self.grid.away:
                    self.grid.spoil(cell)
            case Placed(cell):
                self.grid.placed(cell)
            case Spoilt(cell):
                self.grid.spoil(cell)
            case Computed(seconds):
                self._computed(seconds, out)
            case Interrupted():
                self._idle()
            case Unsplit():  # no layers by themselves, or not even all of a part
                self.task = replace(self.task, shares=(), alone=self.task.alone or self._depth == self.grid.groups)
                self._believed_s = self.task.chunk_s
                self._idle()
        self._sources.pass_time(self._now_s)
        if not self.complete:
            self._sources.look()
            self._inject(out)
            self._drive(out, sure=isinstance(event, Arrived | Placed) and any(self._sources.asked_bytes))
            self._fetch(out)
        return out

    def _computed(self, seconds: float, out: list[Instruction]) -> None:
        expected_s = self._share(self._depth) * sum(self._believed_s[chunk] for chunk in self._span)
        slower = seconds / max(expected_s, 1e-9)
        self._speed += 0.5 * (min(max(slower, 0.1), 10.0) - self._speed)
        for chunk in self._span:
            for cell in [*self.grid.cells(chunk)][: self._depth]:
                self._give_up(cell, out)
            self.grid.compute(chunk, self._depth)
        self._idle()

    def _idle(self) -> None:
        self._engine, self._span, self._depth = Engine.IDLE, range(0), self.grid.groups

    def _give_up(self, cell: Cell, out: list[Instruction]) -> None:
        out.extend(Abandon(cell, source) for source in self._sources.give_up(cell))

    # What to do

    def _inject(self, out: list[Instruction]) -> None:
        """Hand over what is here, what the answer waits for first; nothing that is being computed."""
        free = INJECTIONS - self.grid.busy
        ready = [cell for cell in self.grid.here if not self._is_computed(cell)]
        for cell in sorted(ready, key=lambda cell: (cell[1], -cell[0]))[: max(0, free)]:
            self.grid.inject(cell)
            out.append(Inject(cell))

    def _drive(self, out: list[Instruction], *, sure: bool) -> None:
        """Begin, go on with or take back what the engine does; sure: an answer that has begun is on no worse a way."""
        if self._engine is Engine.IDLE:
            self._begin(self._whole_outlook, out)
        elif self._engine is Engine.COMPUTING and self._in_vain(self._whole_outlook):
            self._engine = Engine.STOPPING
            self._interrupts += 1
            out.append(Interrupt())
        elif self._engine is Engine.ANSWERING and not sure and self._in_doubt(self._whole_outlook):
            self._engine = Engine.STOPPING
            out.append(Interrupt())
        if self._engine is Engine.ANSWERING and self.grid.groups_in_place > self._opened:
            self._opened = self.grid.groups_in_place
            out.append(Open(self._opened))

    def _begin(self, outlook: Outlook, out: list[Instruction]) -> None:
        """The engine is free: compute, answer, or wait for more to arrive."""
        count, groups = self._choice(outlook, outlook)
        if self.predicted_s is None:
            whole_s = outlook.chunks[count] if count else outlook.wait_s
            self.predicted_s = outlook.layers[groups - 1] if groups else whole_s
        if groups:
            self._compute_layers(outlook.left, groups, out)
        elif count and not self.grid.injecting(outlook.left[0]):
            self._compute(outlook.left, self._at_once(count, outlook.chunks), out)
        elif not count and self._first_comes:
            self._engine = Engine.ANSWERING
            out.append(Answer())

    @property
    def _first_comes(self) -> bool:
        """Whether the first group, which the answer begins with, is here or under way.

        A prompt is made ready behind its gate while the processors have nothing else to do.
        """
        return not self.grid.group_spoilt[0] and self._sources.asked_bytes[0] >= self.grid.group_away_bytes[0]

    def _in_doubt(self, outlook: Outlook) -> bool:
        """Whether the answer should rather not have been begun: computing more before it is much better by now.

        Better at all, while it has nothing to begin with: nothing is lost then.
        """
        bar_s = (outlook.wait_s - _RETRACT_S) / _RETRACT if self.grid.groups_in_place else _worth_s(outlook)
        return outlook.prompt_s < bar_s > outlook.least_s and bar_s > min([*outlook.chunks, *outlook.layers])

    def _choice(self, outlook: Outlook, others: Outlook) -> tuple[int, int]:
        """How many of some chunks to compute through all layers, or else, of all that is left, through how many groups.

        others: of what is left, chunks that are not being computed.
        """
        worth_s = float("inf") if self._span else _worth_s(outlook)
        if outlook.least_s >= worth_s:
            return 0, 0  # without a look at each
        finishes, layers = others.chunks, outlook.layers
        count, groups = finishes.index(min(finishes)), 0
        if layers and min(layers) < (1 - _LAYERS) * finishes[count] - _LAYERS_S:
            count, groups = 0, 1 + layers.index(min(layers))
            depth = self.grid.depth if self.grid.beginning and not self._span else self._depth
            if groups < depth < self.grid.groups and layers[groups - 1] > (1 - _STAY) * layers[depth - 1]:
                groups = depth
        best_s = layers[groups - 1] if groups else finishes[count]
        return (count, groups) if best_s < worth_s else (0, 0)

    def _at_once(self, count: int, finishes: list[float]) -> int:
        """Half of what is to be computed, as a link may turn out faster; all where that brings no chunk in time."""
        in_vain = count == len(finishes) - 1 and finishes[count] < _IN_TIME * finishes[count - 1] < float("inf")
        return count if in_vain else max(1, count // 2)

    def _compute(self, left: Sequence[int], most: int, out: list[Instruction]) -> None:
        """Compute the first chunk that is left, and up to `most`, with what has to be before them."""
        start, *others = self.grid.with_chunk(left[0])
        stop, tokens = start + 1, self.task.chunks[start]
        for chunk in [*others, *left[1:most]]:
            tokens += self.task.chunks[chunk]
            begun = chunk > left[0] and (self._has_come(chunk) or self.grid.injecting(chunk))
            if chunk != stop or tokens > LONGEST_BATCH_TOKENS or begun:
                break
            stop += 1
        self._go(range(start, stop), self.grid.groups, out)

    def _compute_layers(self, left: Sequence[int], groups: int, out: list[Instruction]) -> None:
        """Compute the first groups of layers of the next chunks that lack some of these."""
        lacking = [chunk for chunk in left if self.grid.lowest[chunk] < groups]
        chunks = self.grid.with_chunk(lacking[-1], groups) if self.task.in_order else lacking
        stop, tokens = chunks[0], 0
        for chunk in chunks:
            tokens += self.task.chunks[chunk]
            too_long = tokens > LONGEST_BATCH_TOKENS and chunk > chunks[0]
            if chunk != stop or too_long or self.grid.is_injected_below(chunk, groups):
                break
            stop += 1
        if stop > chunks[0]:
            self._go(range(chunks[0], stop), groups, out)

    def _go(self, span: range, groups: int, out: list[Instruction]) -> None:
        self._engine, self._span, self._depth, self._found = Engine.COMPUTING, span, groups, None
        if not span.start:
            self.grid.begin_anew()
        self._began_s = self._until_s = self._now_s
        self._until_s += self._share(groups) * self._speed * sum(self._believed_s[chunk] for chunk in span)
        for chunk in span:
            for cell in [*self.grid.cells(chunk)][:groups]:
                self._give_up(cell, out)
        out.append(Compute(span.start, span.stop, groups if groups < self.grid.groups else None))

    def _is_computed(self, cell: Cell) -> bool:
        """Whether a cell is being computed."""
        return cell[0] in self._span and cell[1] < self._depth

    def _has_come(self, chunk: int) -> bool:
        """Whether something of a chunk was fetched and is in place."""
        return self.grid.left_bytes[chunk] < sum(self.task.cells[chunk])

    def _in_vain(self, outlook: Outlook) -> bool:
        """Whether the computation should rather not have been begun: what it computes is here, or will be sooner.

        Never where something of it had come: its rows are given up for those that are computed, but for where only some
        layers are.
        """
        partly = self._depth < self.grid.groups
        if not partly and any(map(self._has_come, self._span)):
            return False
        goes_on = outlook if partly else outlook.of(self._not_computed(outlook.left))
        goes_on_s = min([*goes_on.chunks, *goes_on.layers])
        instead_s = min(self._outlook(outlook.left, afresh=True).chunks)
        here = not any(self.grid.away_bytes[c] for c in outlook.left)
        enough = here or self._interrupts < _MOST_INTERRUPTS
        return enough and instead_s < _INTERRUPT * goes_on_s - _INTERRUPT_S

    def _not_computed(self, left: Sequence[int]) -> list[int]:
        return [chunk for chunk in left if chunk not in self._span]

    # What to fetch

    def _fetch(self, out: list[Instruction]) -> None:
        """Ask for more, as long as the sources' windows have room."""
        if not self._sources.may_ask():
            return
        owed_bytes = self._sources.owed_bytes + sum(map(self.grid.bytes, self.grid.here))
        cells, first = self._wanted(self._whole_outlook)
        first_bytes = sum(map(self.grid.bytes, cells[:first]))
        for number, cell in enumerate(cells):
            sooner_bytes = first_bytes if first and number >= first else None
            if (source := self._sources.source_for(cell, sooner_bytes)) is None:
                if not self._sources.has_room(sooner_bytes):
                    return
                continue
            if owed_bytes and owed_bytes + self.grid.bytes(cell) > MOST_BYTES:
                return
            owed_bytes += self.grid.bytes(cell)
            self._sources.ask(cell, source)
            out.append(Fetch(cell, source))

    def _wanted(self, outlook: Outlook) -> tuple[list[Cell], int]:
        """Cells that are away, in the order in which they should come.

        And how many of them the answer begins with: up to the last of the first group. 0: it begins with others.
        """
        grid, left = self.grid, outlook.left
        partly = self._depth < grid.groups
        others = outlook if partly else outlook.of(self._not_computed(left))
        count, groups = self._choice(outlook, others)
        todo = [c for c in others.left if grid.away_bytes[c] and (groups or c not in grid.spoilt)]
        if count and todo != others.left:
            finishes = outlook.of(todo).chunks
            count = finishes.index(min(finishes))
        cells = [cell for cell in order(outlook, todo, count, groups) if cell in grid.away]
        if self._span:
            lower = [cell for cell in cells if self._is_computed(cell)]
            cells = [cell for cell in cells if not self._is_computed(cell)]
            unknown = not outlook.coming.bytes_s  # it may well be the faster way
            rest_bytes = (sum(of[c] for c in left) for of in (grid.left_bytes, grid.away_bytes))
            if unknown or outlook.coming.seconds(*rest_bytes) < self._computing_s - _INTERRUPT_S:
                whole = (cell for c in self._span for cell in grid.cells(c) if cell in grid.away)
                cells += lower if partly else whole
        begins = not self._span and not grid.groups_in_place
        return cells, max((number for number, cell in enumerate(cells, 1) if begins and cell[1] == 0), default=0)


def _worth_s(outlook: Outlook) -> float:
    """What computing must be sooner than to be worth beginning."""
    return (1 - _WORTH) * outlook.wait_s - _WORTH_S
