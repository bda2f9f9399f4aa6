"""Contexts on their way into the engine's cache: from memory, from a disk or a link as the plan says, or computed here.

When one is to come, and which makes room, `plan/schedule.py` decides; from where, and at which rung, is found out here.
A context comes once, whoever waits for it, and it does not once nobody does any more.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from preread.edge.choice import chosen
from preread.edge.coming import Asking, Coming
from preread.edge.history import History
from preread.edge.known import Known
from preread.edge.load import Loaded, Loading, LoadSpec, load_spec
from preread.edge.metrics import Memory, Metrics
from preread.edge.node import Node
from preread.edge.offload import Blocks
from preread.edge.refine import Refinement
from preread.edge.sources import Supply, holder
from preread.edge.spans import story
from preread.edge.threads import in_thread
from preread.edge.understand import Question
from preread.engine.cache import Rows
from preread.engine.llamacpp import LlamaCpp
from preread.errors import EngineError, PrereadError, TransportError
from preread.plan.beliefs import CLOUD, Heard
from preread.plan.legality import begins_anew, is_in_order, is_whole, spare_cells
from preread.plan.plan import LONGEST_BATCH_TOKENS, Plan
from preread.plan.task import Task
from preread.plan.worth import worth_loading
from preread.values import ContextId
from preread.wire import manifest as manifests

_MOST_SETTLE_S, _SETTLE_SHARE = 3.0, 0.3
"""For so long at most a context waits for the first answer of the cloud, and for this share of what computing takes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """A context is to be streamed: this of it, from there, by this plan, which has not begun."""

    spec: LoadSpec
    supplies: tuple[Supply, ...]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Compute:
    """A context is to be computed here, for this reason."""

    reason: str


class Residents:
    """Belongs to the event loop. See `Bringer` in `core.py` for what the engine's loop calls.

    Attributes:
        last_load: the last one that began; None: none has.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._asking: dict[ContextId, list[Asking]] = {}
        self._coming: dict[ContextId, Coming] = {}
        self._tasks: dict[ContextId, asyncio.Task[None]] = {}
        self._unanswered = 0
        self.last_load: Loaded | None = None
        node.core.begin(self)
        self.metrics = Metrics(node.core.stats, self._memory)
        self.history = History(node.engine.spec.geometry.layers)

    @contextmanager
    def asking(self, question: Question) -> Iterator[Asking]:
        """While this is open, somebody waits for the question's context, or computes with it."""
        asking = Asking(question)
        if question.known is None:
            yield asking
            return
        context = question.known.entry.context
        asking.coming = self._coming.get(context)
        self._asking.setdefault(context, []).append(asking)
        try:
            yield asking
        finally:
            self._asking[context].remove(asking)
            if not self._asking[context]:
                del self._asking[context]
                if (task := self._tasks.get(context)) is not None:
                    # Of a task that has not begun, nothing would run: not even what says that the context is lost.
                    asyncio.get_running_loop().call_soon(task.cancel)

    async def begin(self) -> None:
        """A question comes: what is brought to a better rung waits until it has its first token."""
        self._unanswered += 1
        if self.node.refinement is not None:
            await self.node.refinement.pause()

    def begun(self) -> None:
        """It has it, or is gone."""
        self._unanswered -= 1
        self._refine()

    def _refine(self) -> None:
        if not self._unanswered and self.node.refinement is not None:
            self.node.refinement.go_on()

    def _memory(self) -> Memory:
        node = self.node
        held = node.sources.held
        received = {supply.name: supply.received_bytes for supply in node.sources.supplies()}
        return Memory(node.offload.used_bytes, 0 if held is None else held.used_bytes, received)

    # What the engine's loop calls

    def bring(self, context: ContextId) -> None:
        asked = self._asking.get(context)
        if not asked:
            self.node.core.lost(context)
            return
        coming = Coming(time.monotonic())
        for asking in asked:
            asking.coming = coming
        self._coming[context] = coming
        first = next((asking for asking in asked if asking.question.named), asked[0])
        brought = self._brought(first.question, context, coming)
        self._tasks[context] = asyncio.create_task(brought, context=first.within)

    def observed(self, position: int, tokens: int, seconds: float) -> None:
        self.node.beliefs = self.node.beliefs.prompted(position, tokens, seconds)

    def keeps(self, context: ContextId, size_bytes: int) -> bool:
        return self.node.offload.takes(size_bytes)

    def evicted(self, context: ContextId, blocks: Blocks) -> None:
        if blocks:
            self.node.offload.put(context, *blocks)
        refinement = self.node.refinement
        if refinement is not None and refinement.context == context:
            refinement.stop()
            self.node.refinement = None

    # How a context comes

    async def _brought(self, question: Question, context: ContextId, coming: Coming) -> None:
        core = self.node.core
        try:
            await self._bring(question, context, coming)
            core.ready(context)
        except asyncio.CancelledError:
            core.lost(context)
            raise
        except PrereadError as error:
            core.lost(context, error)
        except Exception as error:
            _log.exception("bringing a context failed in a way that nobody foresaw")
            core.lost(context, EngineError(f"a context could not be brought: {error}"))
        finally:
            del self._coming[context], self._tasks[context]

    async def _bring(self, question: Question, context: ContextId, coming: Coming) -> None:
        """From memory, or as the plan says, or all of it computed here."""
        node, known = self.node, question.known
        assert known is not None
        if blocks := node.offload.take(context):
            rows = await node.core.reserve(context)
            for block in blocks:
                await in_thread(partial(node.core.inject, rows, block))
            return
        await self._first_sync(question, known)
        way = _way(question, known, node)
        if isinstance(way, Stream):
            try:
                await self._stream(question, known, way, coming)
                return
            except Exception as error:
                if not isinstance(error, PrereadError):
                    _log.exception("loading a context failed in a way that nobody foresaw")
                way = Compute(str(error))
                await node.core.restart(context)
        coming.spec, coming.loaded, coming.reason = None, None, way.reason
        _log.info("context %r is computed here: %s", known.entry.name, way.reason)
        coming.context_s = await node.core.compute(context, known.tokens, 0) or 0.0

    async def _first_sync(self, question: Question, known: Known) -> None:
        """Right after a start the cloud is being asked what there is, and profiles are fetched: wait a moment for that.

        Else all of a context would be computed for want of an answer that takes a few round trips.
        """
        if self.node.link is not None and question.named and not question.ask.local:
            local_s = self.node.beliefs.prefill.seconds(0, len(known.tokens))
            await self.node.settled(min(_MOST_SETTLE_S, _SETTLE_SHARE * local_s))

    async def _stream(self, question: Question, known: Known, way: Stream, coming: Coming) -> None:
        """Get a context from the cloud, neighbours and this machine, and compute what comes no sooner.

        Raises:
            Exception: what went wrong that is not the links' fault.
        """
        node, done, spec, supplies = self.node, Loaded(), way.spec, way.supplies
        coming.spec, coming.loaded = spec, done
        self.last_load = done
        loading = Loading(spec, known.tokens, way.plan, supplies, node.core, node.decoders, done)
        try:
            with ExitStack() as while_loading:
                of = known.entry.context if question.named else None
                while_loading.enter_context(story("plan", of, bytes=spec.size_bytes, segments=len(spec.places)))
                while_loading.enter_context(node.sources.disk.resting())
                if question.named:
                    while_loading.enter_context(node.loading())
                async with loading:
                    await loading.complete()
        finally:
            if question.named:
                _learn(node, spec, supplies, loading, done)
        if question.named:
            node.refinement = refinement(known, spec, node, loading.rows)
            self._refine()  # an answer's first token may have been there before the load was known to be complete


def _way(question: Question, known: Known, node: Node) -> Stream | Compute:
    """What to stream, or why to compute. For a context that nobody named there is only what is here."""
    entry, spec = known.entry, node.engine.spec
    if question.ask.local:
        return Compute("it was to be computed here")
    if not node.contexts.own_model.streams(entry.fingerprint):
        return Compute(
            f"it was published for {entry.model}, and {spec.name} of this edge has other weights or settings: "
            "if both are quantisations of one model, see `preread fit family`"
        )
    away = "this edge has no cloud" if node.link is None else node.contexts.unreachable
    prompt_s = node.beliefs.prompt_s(question.reuse, len(question.prompt))
    try:
        rung = chosen(known, node.terms(prompt_s), here=not question.named)
    except PrereadError as error:
        return Compute(away or str(error))
    if away and not node.sources.without_cloud(rung.places):
        return Compute(away)
    what = load_spec(rung, known.tokens, node.preparations)
    supplies = node.sources.supplies() if question.named else node.sources.here()
    task = _task(question, what, supplies, node)
    plan = Plan(task, time.monotonic())
    if not worth_loading(plan):
        return Compute("computing it here was expected to be as soon, or nearly so")
    return Stream(what, supplies, plan)


def _task(question: Question, what: LoadSpec, supplies: tuple[Supply, ...], node: Node) -> Task:
    """What the plan has to know of a load. The first supply that has a segment, or can get it, is to be asked."""
    chunks = tuple(stop - start for start, stop in what.manifest.chunks)
    beliefs, at_s = node.beliefs, time.monotonic()
    prompt_s = beliefs.prompt_s(question.reuse, len(question.prompt))
    decode_bytes_s = node.decoders.threads * beliefs.decode_bytes_s(what.rung)
    sources = tuple(beliefs.source(supply.name, at_s) for supply in supplies)
    first = what.grid(lambda place: holder(place, supplies)) if len(supplies) > 1 else ()
    sight = node.engine.spec.sight
    splits = _splits(sum(chunks), node.engine)
    return Task(
        chunks,
        what.cells,
        beliefs.prefill,
        prompt_s,
        decode_bytes_s,
        sources,
        first,
        in_order=is_in_order(sum(chunks), sight),
        shares=_shares(what) if splits else (),
        breaks=tuple(begins_anew(start, sight) for start, _ in what.manifest.chunks),
        alone=not splits and is_whole(sight),
    )


def _splits(tokens: int, engine: LlamaCpp) -> bool:
    """Whether stretches of a context can be computed in cells of their own, to be copied into the context's."""
    spare = spare_cells(tokens, LONGEST_BATCH_TOKENS, engine.spec.sight)
    return engine.runner.splits_layers and tokens + spare <= engine.cells


def _shares(what: LoadSpec) -> tuple[float, ...]:
    """What the first groups of layers take of computing; infinitely much, where a later one has some of the same."""
    groups, shares = what.manifest.groups, list[float]()
    for count in range(1, len(groups) + 1):
        through = max(group.layers[1] for group in groups[:count])
        apart = manifests.open_layers(what.manifest, count) >= through
        shares.append(through / len(what.manifest.model.layers) if apart else float("inf"))
    return tuple(shares)


def refinement(known: Known, loaded: LoadSpec, node: Node, rows: Rows) -> Refinement | None:
    """How to bring the context that the engine holds from the rung that was loaded to the one that the site wants.

    None where that is no better rung of this context, or cannot be read here.
    """
    names = [rung.name for rung in loaded.manifest.rungs]  # best first
    if node.link is None or node.refine not in names or names.index(node.refine) >= names.index(loaded.rung):
        return None
    if node.engine.spec.recurrent:  # each answer has gone on from its own copy of the state
        return None
    try:
        what = load_spec(known.rung(node.refine), known.tokens, node.preparations)
    except PrereadError as error:
        _log.info("context %r stays at %s: %s", known.entry.name, loaded.rung, error)
        return None
    return Refinement(what, node.core, rows, node.sources)


def _learn(node: Node, what: LoadSpec, supplies: tuple[Supply, ...], loading: Loading, done: Loaded) -> None:
    """Remember how the links and this machine did."""
    plan, now_s = loading.plan, time.monotonic()
    heard = [
        Heard(supply.name, flow, breaker, plan.asked_of(number))
        for number, (supply, flow, breaker) in enumerate(zip(supplies, plan.flows, plan.breakers, strict=True))
    ]
    if any(one.name == CLOUD and one.flow.seen_bytes for one in heard):
        node.streamed_s = now_s
    beliefs = node.beliefs.loaded(heard, now_s - done.started, now_s)
    node.beliefs = beliefs.decoded(what.rung, done.decoded_bytes, done.decoded_s)
    if isinstance(done.failure, TransportError) and node.beliefs.breaker.tripped:
        # The next request need not find out again; the catalogue's sync notices when the cloud is back.
        node.contexts.unreachable = str(done.failure)
