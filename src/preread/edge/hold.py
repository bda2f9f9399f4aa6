"""Getting a context's KV into the engine's cache: it is there, it lies on the shelf, it is streamed, or it is computed.

Every function here is called by whoever has the site's turn.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np

from preread.edge.contexts import Known
from preread.edge.load import GaveUp, Loaded, Parcel, load
from preread.edge.refine import Refinement
from preread.edge.rungs import parcel_at
from preread.edge.site import Site
from preread.edge.understand import Question
from preread.engine.sampling import Step
from preread.errors import Cancelled, EngineError, PrereadError, TransportError
from preread.plan.cost import Need
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
    async with aclosing(site.worker.stream(make, engine.cancel)) as steps:
        async for step in steps:
            if site.refinement is not None:
                site.refinement.go_on()
            yield step


async def resident(known: Known, site: Site) -> bool:
    """Whether the context is in the engine's cache now, after a copy from the shelf if it was there."""
    if site.held == known.entry.context:
        return True
    if known.entry.context not in site.shelf:
        return False
    await set_aside(site)
    block = site.shelf.take(known.entry.context)
    if block is None:
        return False
    await site.worker.run(lambda: _put_back(site, block))
    site.held = known.entry.context
    return True


async def set_aside(site: Site) -> None:
    """Empty the engine's cache; what it held goes to the shelf if it fits there."""
    held, engine = site.held, site.engine
    site.held = None
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
    question: Question, known: Known, what: Parcel, need: Need, site: Site, done: Loaded
) -> AsyncGenerator[Step, None]:
    """Stream the context in and generate at the same time; the engine waits before each layer that is not there yet.

    Raises:
        NotStreamed: before the first token; what went wrong is its cause.
    """
    assert site.link is not None
    engine = site.engine
    reserving = asyncio.ensure_future(_reserve(site, len(known.tokens)))
    loading = asyncio.create_task(_load_or_cancel(what, need, site, reserving, done))
    try:
        await reserving
        async with aclosing(generated(question, site)) as steps:
            async for step in steps:
                if site.held is None:
                    await loading
                    site.held = known.entry.context
                    site.refinement = refinement(known, what, site)
                    if site.refinement is not None:
                        site.refinement.go_on()
                yield step
    except (Cancelled, EngineError) as error:
        begun, site.held = site.held is not None, None
        if begun:
            raise  # tokens are out: there is no answering anew
        raise NotStreamed(str(await _failure(loading) or error)) from error
    finally:
        loading.cancel()
        await asyncio.wait([loading, reserving])
        _learn(site, loading, done)
        if site.held is None:
            # Whatever a failed load left behind must not reach a later answer.
            await _stay(site)
            await site.worker.run(lambda: engine.clear(wipe=True))


def refinement(known: Known, loaded: Parcel, site: Site) -> Refinement | None:
    """How to bring the context that the engine holds from the rung that was loaded to the one that the site wants.

    None where that is no better rung of this context, or cannot be read here.
    """
    names = [rung.name for rung in loaded.manifest.rungs]  # best first
    if site.link is None or site.refine not in names or names.index(site.refine) >= names.index(loaded.rung):
        return None
    try:
        what = parcel_at(known, site.refine, site)
    except PrereadError as error:
        _log.info("context %r stays at %s: %s", known.entry.name, loaded.rung, error)
        return None
    return Refinement(what, site.engine, site.worker, site.link)


async def computed(question: Question, known: Known, site: Site) -> Question:
    """Compute the context here; the question to go on with.

    A model whose KV cannot be exchanged cannot share it between requests either: there the question becomes one long
    prompt without a context.
    """
    engine = site.engine
    await set_aside(site)
    if engine.no_injection:
        whole = np.concatenate([known.tokens[: question.reuse], question.prompt])
        return Question(None, 0, whole, question.ask)
    started = time.monotonic()
    await site.worker.run(lambda: engine.prefill(known.tokens), engine.cancel)
    site.held = known.entry.context
    site.estimates.prefilled(len(known.tokens), time.monotonic() - started)
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


async def _load_or_cancel(what: Parcel, need: Need, site: Site, reserving: asyncio.Future[None], done: Loaded) -> None:
    """Load; when that fails, release the engine, which waits for layers that will not come."""
    assert site.link is not None
    try:
        await load(what, site.link, site.engine, reserving, site.estimates.link, need, done)
    except BaseException:
        await asyncio.wait([reserving])
        site.engine.cancel()
        raise


async def _failure(loading: asyncio.Task[None]) -> Exception | None:
    """Why a load failed. A bug is logged as one, and then is no more a reason not to answer than a broken link."""
    try:
        await loading
    except PrereadError as error:
        return error
    except Exception as error:
        _log.exception("loading a context failed in a way that nobody foresaw")
        return error
    return None


def _learn(site: Site, loading: asyncio.Task[None], done: Loaded) -> None:
    """Remember how the link did."""
    failure = None if loading.cancelled() else loading.exception()
    if done.seconds is not None:
        site.estimates.transferred(done.received_bytes, done.seconds)
    elif isinstance(failure, GaveUp):
        site.estimates.gave_up(done.seen_bytes, time.monotonic() - done.started)
    if isinstance(failure, TransportError):
        # The next request need not find out again; the catalogue's sync notices when the cloud is back.
        site.contexts.unreachable = str(failure)
