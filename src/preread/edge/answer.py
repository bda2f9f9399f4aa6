"""The edge's story: a private question, a shared context, an answer.

understand → wait for the turn → hold the context (it is here, or stream it in, or compute it) → generate → say what
came from where. Streaming and generating run at the same time: the engine computes the prompt through the layers that
have arrived. Whatever goes wrong with streaming ends in computing here, before the first token is out.
"""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from preread.edge.at_hand import usable
from preread.edge.choice import chosen
from preread.edge.contexts import Known
from preread.edge.hold import NotStreamed, computed, generated, make_room, resident, streamed
from preread.edge.load import Loaded, LoadSpec, load_spec
from preread.edge.record import Record
from preread.edge.request import Ask, Done, Piece
from preread.edge.site import Site
from preread.edge.text import Echo, Writer
from preread.edge.turns import ANYBODY, Visitor
from preread.edge.understand import Question, understand
from preread.engine.sampling import Step
from preread.errors import PrereadError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """A context is to be streamed, and this of it."""

    spec: LoadSpec


@dataclass(frozen=True, slots=True)
class Compute:
    """A context is to be computed here, for this reason."""

    reason: str


async def answer(ask: Ask, site: Site) -> AsyncGenerator[Piece | Done, None]:
    """Understand a question, and answer it.

    Raises:
        UsageError, EngineError, Overloaded: as `understand` and `answered` do.
    """
    question = await understand(ask, site)
    async with aclosing(answered(question, site)) as items:
        async for item in items:
            yield item


async def answered(question: Question, site: Site, visitor: Visitor = ANYBODY) -> AsyncGenerator[Piece | Done, None]:
    """Answer a question: pieces of text as they are generated, then `Done`.

    Close the generator to cancel; the engine is free again within a few tokens.

    Raises:
        EngineError: the local engine failed.
        Overloaded: it had to wait too long.
    """
    record, ask = Record(question.arrived_s), question.ask
    # One token is generated even where none is wanted: that the context has come shows with it.
    wanted, question = ask.sampling.max_tokens, replace(question, ask=_of_one_token_at_least(ask))
    async with site.turn(visitor):
        if not (question.known is None or question.named or usable(question.known, site)):
            question = question.alone()  # what it begins with was displaced meanwhile
        record.begin(question)
        writer = Writer(site.engine, ask.stop)
        echo = Echo(ask, writer) if ask.echo else None
        async with aclosing(_steps(question, site, record)) as steps:
            async for step in steps:
                if echo is not None and step.given:
                    echo.take(step)
                    continue
                record.token(step if wanted else replace(step, end=True))
                if echo is not None:
                    yield echo.piece()
                    echo = None
                if not wanted:
                    break
                if piece := writer.write(step):
                    yield piece
                if writer.finished:
                    break
        if piece := writer.rest():
            yield piece
        record.note_refinement(site.refinement)
        yield Done(writer.finish, question.prompt_tokens, record.timings)


def _of_one_token_at_least(ask: Ask) -> Ask:
    return replace(ask, sampling=replace(ask.sampling, max_tokens=max(1, ask.sampling.max_tokens)))


async def _steps(question: Question, site: Site, record: Record) -> AsyncGenerator[Step, None]:
    """The answer's tokens, once the context's KV is there: from memory, from the cloud, or computed here."""
    known = question.known
    if known is None:
        await make_room(question, site)
    elif await resident(question, known, site):
        record.note(way="resident", cache_n=question.reuse)
    else:
        way = _way(question, known, site)
        if isinstance(way, Stream):
            loaded = Loaded()
            try:
                async with aclosing(streamed(question, known, way.spec, site, loaded)) as steps:
                    async for step in steps:
                        record.note_load(question, way.spec, loaded)
                        yield step
                return
            except NotStreamed as error:
                way = Compute(str(error))
        record.note(way="computed", reason=way.reason)
        _log.info("context %r is computed here: %s", known.entry.name, way.reason)
        started = time.monotonic()
        question = await computed(question, known, site)
        record.note(context_ms=(time.monotonic() - started) * 1e3)
    async with aclosing(generated(question, site)) as steps:
        async for step in steps:
            yield step


def _way(question: Question, known: Known, site: Site) -> Stream | Compute:
    """What to stream, or why to compute. For a context that nobody named there is only what is here."""
    entry, spec = known.entry, site.engine.spec
    if question.ask.local:
        return Compute("it was to be computed here")
    if site.engine.no_injection:
        return Compute(site.engine.no_injection)
    if entry.fingerprint != spec.fingerprint:
        return Compute(
            f"it was published for {entry.model}, and {spec.name} of this edge has other weights or settings"
        )
    away = "this edge has no cloud" if site.link is None else site.contexts.unreachable
    prompt_s = site.beliefs.prompt_s(question.reuse, len(question.prompt))
    try:
        rung = chosen(known, site.terms(prompt_s), here=not question.named)
    except PrereadError as error:
        return Compute(away or str(error))
    if away and not site.sources.without_cloud(rung.places):
        return Compute(away)
    return Stream(load_spec(rung, known.tokens, site.preparations))
