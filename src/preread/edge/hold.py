"""Getting a context's KV into the engine's cache: it is there, it lies on the shelf, it is streamed and computed
as the plan says, or it is computed.

Every function here is called by whoever has the site's turn.
"""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial

from preread import limits
from preread.edge.contexts import Known
from preread.edge.load import Loaded, Loading, LoadSpec, load_spec
from preread.edge.refine import Refinement
from preread.edge.site import Site
from preread.edge.sources import Supply, holder
from preread.edge.understand import Question
from preread.engine.sampling import Step
from preread.errors import Cancelled, PrereadError, TransportError
from preread.plan.beliefs import CLOUD, Heard
from preread.plan.plan import INJECTIONS
from preread.plan.task import Task
from preread.values import KVBlock, Span

_log = logging.getLogger(__name__)


class NotStreamed(PrereadError):
    """A context could not be streamed; the engine's cache is empty, and computing it here is what remains."""


async def generated(question: Question, site: Site) -> AsyncGenerator[Step, None]:
    """The answer's tokens, after the context that the engine holds (or `question.reuse` = 0 tokens of it).

    Once the first is there, what the turn's beginning has interrupted goes on: bringing that context to a better rung.
    """
    engine, sampling = site.engine, question.ask.sampling
    make = lambda: engine.generate(question.prompt, sampling, reuse=question.reuse)  # noqa: E731
    # A prompt that waits for its context does not show what a prompt takes.
    started, telling = time.monotonic(), question.named and site.held is not None
    async with aclosing(site.worker.stream(make, engine.cancel)) as steps:
        async for step in steps:
            if site.refinement is not None:
                site.refinement.go_on()
            if telling:
                took_s = time.monotonic() - started
                site.beliefs = site.beliefs.prompted(question.reuse, len(question.prompt), took_s)
                telling = False
            yield step


async def resident(question: Question, known: Known, site: Site) -> bool:
    """Whether the context is in the engine's cache now, after a copy from the shelf if it was there."""
    if site.held == known.entry.context:
        site.guest = site.guest and not question.named
        return True
    block = site.shelf.take(known.entry.context)
    if block is None:
        return False
    await set_aside(site)
    await site.worker.run(lambda: _put_back(site, block))
    site.held = known.entry.context
    return True


async def set_aside(site: Site) -> None:
    """Empty the engine's cache; what it held goes to the shelf if it fits there, and was asked for by name.

    On the shelf others may have to make way, which is to follow from names only.
    """
    held, engine = None if site.guest else site.held, site.engine
    site.held, site.guest = None, False
    await _stay(site)
    tokens, geometry = engine.context_tokens, engine.spec.geometry
    if held and site.shelf.takes(2 * tokens * geometry.values_per_token):
        site.shelf.put(held, await site.worker.run(lambda: engine.export(Span(0, tokens), Span(0, geometry.layers))))
    await site.worker.run(engine.clear)


async def make_room(question: Question, site: Site) -> None:
    """See that a prompt without a context fits beside the context that the engine holds, or set that aside."""
    needed = site.engine.context_tokens + len(question.prompt) + question.ask.sampling.max_tokens
    if needed > site.engine.spec.window_tokens:
        await set_aside(site)


async def streamed(
    question: Question, known: Known, what: LoadSpec, site: Site, done: Loaded
) -> AsyncGenerator[Step, None]:
    """Get the context from the cloud and from this machine, and generate behind the gate of what is there.

    Raises:
        NotStreamed: before the first token; what went wrong is its cause.
    """
    reserve = partial(_reserve, site, len(known.tokens))
    supplies = site.sources.supplies() if question.named else site.sources.here()
    task = _task(question, what, supplies, site)
    loading = Loading(what, known.tokens, task, supplies, site.engine, site.worker, reserve, done)
    until_answered = ExitStack()
    try:
        until_answered.enter_context(site.sources.disk.resting())
        if question.named:
            until_answered.enter_context(site.loading())
        async with loading, aclosing(_behind_the_gate(question, loading, site)) as steps:
            async for step in steps:
                if site.held is None:
                    await loading.complete()
                    until_answered.close()
                    site.held, site.guest = known.entry.context, not question.named
                    site.refinement = refinement(known, what, site) if question.named else None
                    if site.refinement is not None:
                        site.refinement.go_on()
                yield step
    except Exception as error:
        begun, site.held = site.held is not None, None
        if begun:
            raise  # tokens are out: there is no answering anew
        if not isinstance(error, PrereadError):
            _log.exception("loading a context failed in a way that nobody foresaw")
        raise NotStreamed(str(error)) from error
    finally:
        until_answered.close()
        if question.named:
            _learn(site, what, supplies, loading, done)
        if site.held is None:
            # Whatever a failed load left behind must not reach a later answer.
            await _stay(site)
            await site.worker.run(lambda: site.engine.clear(wipe=True))


async def _behind_the_gate(question: Question, loading: Loading, site: Site) -> AsyncGenerator[Step, None]:
    """Generate when the plan says so; what it takes back before the first token begins anew later."""
    while True:
        await loading.answerable()
        try:
            async with aclosing(generated(question, site)) as steps:
                async for step in steps:
                    yield step
            return
        except Cancelled:
            if not loading.taken_back():
                await loading.answerable()  # raises what ended the load, if that was it
                raise


def _task(question: Question, what: LoadSpec, supplies: tuple[Supply, ...], site: Site) -> Task:
    """What the plan has to know of a load. The first supply that has a segment, or can get it, is to be asked."""
    chunks = tuple(stop - start for start, stop in what.manifest.chunks)
    beliefs, at_s = site.beliefs, time.monotonic()
    prompt_s = beliefs.prompt_s(question.reuse, len(question.prompt))
    decode_bytes_s = min(INJECTIONS, limits.cpus()) * beliefs.decode_bytes_s(what.rung)
    sources = tuple(beliefs.source(supply.name, at_s) for supply in supplies)
    first = what.grid(lambda place: holder(place, supplies))
    return Task(chunks, what.cells, beliefs.prefill, prompt_s, decode_bytes_s, sources, first)


def refinement(known: Known, loaded: LoadSpec, site: Site) -> Refinement | None:
    """How to bring the context that the engine holds from the rung that was loaded to the one that the site wants.

    None where that is no better rung of this context, or cannot be read here.
    """
    names = [rung.name for rung in loaded.manifest.rungs]  # best first
    if site.link is None or site.refine not in names or names.index(site.refine) >= names.index(loaded.rung):
        return None
    try:
        what = load_spec(known.rung(site.refine), known.tokens, site.preparations)
    except PrereadError as error:
        _log.info("context %r stays at %s: %s", known.entry.name, loaded.rung, error)
        return None
    return Refinement(what, site.engine, site.worker, site.sources)


async def computed(question: Question, known: Known, site: Site) -> Question:
    """Compute the context here; the question to go on with.

    A model whose KV cannot be exchanged cannot share it between requests either: there the question becomes one long
    prompt without a context.
    """
    engine = site.engine
    await set_aside(site)
    if engine.no_injection:
        return question.alone()
    started = time.monotonic()
    await site.worker.run(lambda: engine.prefill(known.tokens), engine.cancel)
    site.held, site.guest = known.entry.context, not question.named
    site.beliefs = site.beliefs.prefilled(len(known.tokens), time.monotonic() - started)
    return question


async def _stay(site: Site) -> None:
    """Bring the context that is held no further."""
    if site.refinement is not None:
        await site.refinement.pause()
        site.refinement = None


async def _reserve(site: Site, tokens: int) -> None:
    """Make way for a context of so many tokens, while its first segments are already on the wire."""
    await set_aside(site)
    await site.worker.run(lambda: site.engine.reserve(tokens))


def _put_back(site: Site, block: KVBlock) -> None:
    engine = site.engine
    engine.reserve(len(block.tokens))
    engine.inject(block)
    engine.open_layers(len(block.layers))


def _learn(site: Site, what: LoadSpec, supplies: tuple[Supply, ...], loading: Loading, done: Loaded) -> None:
    """Remember how the links and this machine did."""
    plan, now_s = loading.plan, time.monotonic()
    heard = [
        Heard(supply.name, flow.seen_bytes, flow.bytes_s, flow.rtt_s, breaker, plan.asked_of(number))
        for number, (supply, flow, breaker) in enumerate(zip(supplies, plan.flows, plan.breakers, strict=True))
    ]
    if any(one.name == CLOUD and one.seen_bytes for one in heard):
        site.streamed_s = now_s
    beliefs = site.beliefs.loaded(heard, now_s - done.started, now_s)
    site.beliefs = beliefs.decoded(what.rung, done.decoded_bytes, done.decoded_s)
    if isinstance(done.failure, TransportError) and site.beliefs.breaker.tripped:
        # The next request need not find out again; the catalogue's sync notices when the cloud is back.
        site.contexts.unreachable = str(done.failure)
