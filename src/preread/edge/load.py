"""Loading a context: what the plan says is done here, and what happens is told to it.

fetch (many at once) → verify → decode in worker threads → inject, and compute on the engine's thread meanwhile. Which
piece comes from where is decided in `plan/plan.py`; this module must not decide anything.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from preread.codec.fitted import joined
from preread.codec.state import state_codec_by_version
from preread.edge.core import Core
from preread.edge.profiles import Preparations, Reader
from preread.edge.rungs import NotStreamable, Streamable
from preread.edge.sources import Supply
from preread.edge.spans import span
from preread.edge.threads import ended, in_thread
from preread.engine.cache import Rows
from preread.engine.llamacpp import Tokens
from preread.engine.worker import Worker
from preread.errors import Cancelled, CorruptData, EngineError, PrereadError, TransportError, UsageError
from preread.plan import events
from preread.plan.events import Cell, Event, Instruction
from preread.plan.plan import Plan
from preread.store.fetch import Source
from preread.values import KVBlock, KVShape, ObjectRef, StateBlock, StateShape
from preread.wire import manifest as manifests
from preread.wire import segment
from preread.wire.manifest import Manifest, SegmentPlace

T = TypeVar("T")

_TICK_S = 0.02
_FIRST_TICK_S, _FIRST_S = 0.005, 0.2
"""Until first answers come, requests leave one after the other, as the link can carry these."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to load: all segments of one rung of a context that anything behind it looks at.

    Attributes:
        manifest: of the context.
        rung: name of the rung; `base`: of the one that it refines, if it does.
        codec: decodes its segments.
        places: the segments, in layer order.
        size_bytes: of all of them on the wire.
    """

    manifest: Manifest
    rung: str
    base: str | None
    codec: Reader
    places: tuple[SegmentPlace, ...]
    size_bytes: int

    @property
    def cells(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of the segments in bytes, [chunk][group]; 0 of those that are not loaded."""
        return self.grid(lambda place: place.size_bytes)

    def grid(self, of: Callable[[SegmentPlace], int]) -> tuple[tuple[int, ...], ...]:
        """A number for each segment, [chunk][group]; 0 for those that are not loaded."""
        numbers = [[0] * len(self.manifest.groups) for _ in self.manifest.chunks]
        for place in self.places:
            numbers[place.chunk][place.group] = of(place)
        return tuple(map(tuple, numbers))


@dataclass(slots=True)
class Loaded:
    """How far a load has come.

    Attributes:
        started: when it began, of `time.monotonic`.
        received_bytes: of whole segments.
        seen_bytes: of all that arrived, unfinished segments included.
        computed_tokens, computed_s: what was computed here, and how long that took; a token of which only some layers
            were counts as that share of one.
        layered_tokens: of these, those that were computed through some layers only.
        predicted_s: seconds to the first token that the plan expected when it began; None: it has not.
        decoded_bytes, decoded_s: what was decoded, and how much processor time that took.
        origins: where the cells that are in place came from: a source's name; None: they were computed here.
        failure: the last thing that went wrong, if anything did.
        seconds: until everything was in place; None before that.
    """

    started: float = field(default_factory=time.monotonic)
    received_bytes: int = 0
    seen_bytes: int = 0
    computed_tokens: int = 0
    layered_tokens: int = 0
    computed_s: float = 0.0
    predicted_s: float | None = None
    decoded_bytes: int = 0
    decoded_s: float = 0.0
    origins: dict[Cell, str | None] = field(default_factory=dict)
    failure: PrereadError | None = None
    seconds: float | None = None


class Segments:
    """Whole places from where single objects come from: a segment, and the one that it refines, if it does."""

    def __init__(self, source: Source[ObjectRef, bytes]) -> None:
        self._source = source

    async def get(self, place: SegmentPlace) -> list[bytes]:
        """The frames of a place, the base first. Raises as the source does."""
        return [await self._source.get(ref) for ref in place.refs]


def load_spec(what: Streamable, tokens: Tokens, preparations: Preparations) -> LoadSpec:
    """What to load of a context at a rung. Its decoder is made ready by whoever needs it first.

    Args:
        what: the rung; `tokens`: the context's token ids.
        preparations: have the profile that it needs, if it needs one.

    Raises:
        NotStreamable: this edge cannot read it.
    """
    if isinstance(decoder := what.decoder, str):
        raise NotStreamable(decoder)
    codec = Reader(lambda: decoder.codec(what.manifest.context, tokens, preparations))
    return LoadSpec(what.manifest, what.name, what.base, codec, what.places, what.size_bytes)


class Loading:
    """One load under way. It belongs to the event loop; use it in an `async with` statement, which ends all of it.

    Args:
        what: the segments; `tokens`: the context's token ids.
        plan: of the load, not begun.
        links: the sources of its task.
        core: gets the rows, and computes.
        decoders: the threads in which segments are decoded.
        done: is kept up to date.
    """

    def __init__(
        self,
        what: LoadSpec,
        tokens: Tokens,
        plan: Plan,
        links: tuple[Supply, ...],
        core: Core,
        decoders: Worker,
        done: Loaded,
    ) -> None:
        self._what, self._tokens, self._links, self._done = what, tokens, links, done
        self._core, self._decoders, self._context = core, decoders, what.manifest.context
        self.plan = plan
        self._places = {(place.chunk, place.group): place for place in what.places}
        self._before = [link.received_bytes for link in links]
        self._frames: dict[Cell, tuple[list[bytes], str]] = {}  # and the source
        self._fetching: dict[tuple[Cell, int], asyncio.Task[None]] = {}
        self._working: set[asyncio.Task[Any]] = set()
        self._over, self._computing, self._stopping = asyncio.Event(), False, False
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        self._tell(events.Tick())
        self._reserved, self._ready = self._work(self._reserve()), self._work(self._prepare())
        self._work(self._keep_time())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (tasks := [*self._working]):
            task.cancel()
        await ended(tasks)

    async def complete(self) -> None:
        """Wait until everything is in place.

        Raises:
            Exception: something went wrong that is not the links' fault; what came is of no use then.
        """
        while not self.plan.complete:
            if self._failure is not None:
                raise self._failure
            await self._over.wait()
        self._done.seconds = self._done.seconds or time.monotonic() - self._done.started

    @property
    def rows(self) -> Rows:
        """The context's rows, once it is complete."""
        return self._reserved.result()

    # Events and instructions

    def _tell(self, event: Event) -> None:
        if self._failure is None:
            for instruction in self.plan.step(event, time.monotonic()):
                self._perform(instruction)
            self._done.predicted_s = self.plan.predicted_s
            if self.plan.complete:
                self._over.set()

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case events.Fetch(cell, source):
                self._fetching[cell, source] = self._work(self._fetch(cell, source))
            case events.Abandon(cell, source):
                self._fetching.pop((cell, source)).cancel()
            case events.Inject(cell):
                self._work(self._inject(cell, *self._frames.pop(cell)))
            case events.Compute(start, stop, groups):
                self._computing, self._stopping = True, False
                self._work(self._compute(start, stop, groups))
            case events.Interrupt() if self._computing:
                self._stopping = True
                self._core.interrupt(self._context)
            case events.Interrupt():
                self._work(self._take_back())
            case events.Answer():
                self._core.answerable(self._context)
            case events.Open(groups):
                self._core.open(self._context, manifests.open_layers(self._what.manifest, groups))

    def _work(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[Any]) -> None:
        """What nobody foresaw ends the load; of failures that follow from the first, the first is kept."""
        self._working.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and self._failure is None:
            self._failure = error
            self._over.set()
            self._core.interrupt(self._context)

    async def _keep_time(self) -> None:
        while not self.plan.complete:
            beginning = not self._done.received_bytes and time.monotonic() < self._done.started + _FIRST_S
            await asyncio.sleep(_FIRST_TICK_S if beginning else _TICK_S)
            self._progress()
            self._tell(events.Tick())

    def _progress(self) -> None:
        self._done.seen_bytes = 0
        for source, link in enumerate(self._links):
            seen_bytes = link.received_bytes - self._before[source]
            self._done.seen_bytes += seen_bytes
            self._tell(events.Progress(source, seen_bytes))

    # What takes time

    async def _fetch(self, cell: Cell, source: int) -> None:
        event: Event = events.Failed(cell, source)
        try:
            with span("fetch", chunk=cell[0], group=cell[1], source=source, bytes=self._places[cell].size_bytes):
                frames = await Segments(self._links[source]).get(self._places[cell])
            event = events.Arrived(cell, source)
            self._done.received_bytes += sum(map(len, frames))
        except UsageError as error:
            self._done.failure, event = error, events.Failed(cell, source, "source")
        except TransportError as error:
            self._done.failure = error
        except PrereadError as error:
            self._done.failure, event = error, events.Failed(cell, source, "cell")
        self._progress()
        if self._fetching.pop((cell, source), None) is not None:  # or it was given up just now
            if isinstance(event, events.Arrived):
                self._frames[cell] = frames, self._links[source].name
            self._tell(event)

    async def _reserve(self) -> Rows:
        await asyncio.sleep(0)  # the first requests leave before the processors have anything else to do
        return await self._core.reserve(self._context)

    async def _take_back(self) -> None:
        """The prompt is not to be computed yet after all; if it is being computed, that ends first."""
        self._core.answerable(self._context, now=False)
        await self._core.call(lambda: None)
        self._tell(events.Interrupted())

    async def _prepare(self) -> None:
        await asyncio.sleep(0)  # as in `_reserve`
        await in_thread(self._what.codec.ready)  # while the first segments are on their way

    async def _inject(self, cell: Cell, frames: list[bytes], source: str) -> None:
        if not (self._reserved.done() and self._ready.done()):
            await asyncio.wait([self._reserved, self._ready])
        rows, _ = self._reserved.result(), self._ready.result()
        try:
            # in this task's context: spans are within its own
            took_s = await self._decoders.run(partial(copy_context().run, self._injected, cell, frames, rows))
        except CorruptData as error:
            self._done.failure = error
            self._tell(events.Spoilt(cell))
            return
        self._done.decoded_bytes += sum(map(len, frames))
        self._done.decoded_s += took_s
        self._done.origins[cell] = source
        self._tell(events.Placed(cell))

    async def _compute(self, start: int, stop: int, count: int | None) -> None:
        chunks, groups = self._what.manifest.chunks, self._what.manifest.groups[:count]
        first, last = chunks[start][0], chunks[stop - 1][1]
        layers = None if count is None else max(group.layers[1] for group in groups)
        await asyncio.wait([self._reserved])
        self._reserved.result()
        try:
            if self._stopping:
                raise Cancelled("it was taken back before the context had its rows")
            if self.plan.task.alone:
                raise EngineError("all of it is computed sooner than it comes, and no part can be computed beside that")
            seconds = await self._core.compute(self._context, self._tokens[first:last], first, layers)
        except Cancelled:
            self._computing = False
            self._tell(events.Interrupted())
            return
        self._computing = False
        if seconds is None:
            self._tell(events.Unsplit())
            return
        every = len(self._what.manifest.model.layers)
        tokens = round((last - first) * (every if layers is None else layers) / every)
        self._done.computed_tokens += tokens
        self._done.layered_tokens += 0 if layers is None else tokens
        self._done.computed_s += seconds
        cells = {(chunk, group) for chunk in range(start, stop) for group in range(len(groups))}
        self._done.origins |= dict.fromkeys(cells)
        self._tell(events.Computed(seconds))

    def _injected(self, cell: Cell, frames: list[bytes], rows: Rows) -> float:
        """From bytes whose digest is right into the context's rows; the processor time that took, in seconds.

        Not how long it took: that would count what else the machine is doing, as a rule the prompt.
        """
        began_s = time.thread_time()
        with span("decode", chunk=cell[0], group=cell[1]):
            block = decoded_part(self._what, self._places[cell], frames)
        with span("inject", chunk=cell[0], group=cell[1]):
            self._core.inject(rows, block)
        return time.thread_time() - began_s


def decoded_part(what: LoadSpec, place: SegmentPlace, frames: list[bytes]) -> KVBlock | StateBlock:
    """The rows, or states, of a segment whose digest is right; arguments and errors as of `decoded`."""
    if not isinstance(place.shape, StateShape):
        return decoded(what, place, frames)
    payload = segment.unpack(frames[0], manifests.header(what.manifest, what.rung, place))
    version = manifests.rung_named(what.manifest, what.rung).states or ""
    codec = state_codec_by_version(version, what.rung)
    return codec.decode(payload, place.numbers, place.tokens.stop, place.shape)


def decoded(what: LoadSpec, place: SegmentPlace, frames: list[bytes]) -> KVBlock:
    """The rows of a segment whose digest is right.

    Args:
        what: what it is of.
        place: which segment.
        frames: it and, before it, the one that it refines, if it does.

    Raises:
        CorruptData: it is not what the manifest says it is.
    """
    names = [what.base, what.rung] if what.base else [what.rung]
    payloads = [
        segment.unpack(frame, manifests.header(what.manifest, name, place))
        for name, frame in zip(names, frames, strict=True)
    ]
    payload = joined(*payloads) if what.base else payloads[0]
    assert isinstance(place.shape, KVShape)
    return what.codec.decode(payload, place.tokens, place.layers, place.shape)
