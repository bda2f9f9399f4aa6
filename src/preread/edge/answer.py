"""The edge's story: a private question, a shared context, an answer.

understand → have the context brought into the cache, if it is not there → generate, in steps that all requests share →
say what came from where. Whatever goes wrong with streaming a context ends in computing it here.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from preread.edge.at_hand import usable
from preread.edge.calls import Calls
from preread.edge.coming import Asking
from preread.edge.core import Generation
from preread.edge.node import Node
from preread.edge.progress import UnderWay
from preread.edge.record import Record
from preread.edge.request import Ask, Done, Piece, Timings
from preread.edge.residents import Residents
from preread.edge.spans import past, span
from preread.edge.text import Echo, Writer
from preread.edge.understand import Question, understand
from preread.engine.calls import CallFormat
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.sampling import Sampled
from preread.errors import EngineError, UsageError
from preread.plan.legality import goes_on
from preread.plan.step import Request


async def answer(ask: Ask, residents: Residents) -> AsyncGenerator[Piece | Done, None]:
    """Understand a question, and answer it.

    Raises:
        UsageError, EngineError, Overloaded: as `understand` and `answered` do.
    """
    question = await understand(ask, residents.node)
    async with aclosing(answered(question, residents)) as items:
        async for item in items:
            yield item


async def gathered(items: AsyncGenerator[Piece | Done, None]) -> tuple[list[Piece], Done]:
    """All pieces of an answer, and its end. Raises what the generator raises, and closes it."""
    pieces: list[Piece] = []
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Done):
                return pieces, item
            pieces.append(item)
    raise EngineError("the answer ended without an end: this is a bug in preread")


async def answered(
    question: Question, residents: Residents, caller: str = "", under_way: UnderWay | None = None
) -> AsyncGenerator[Piece | Done, None]:
    """Answer a question: pieces of text as they are generated, then `Done`.

    Close the generator to cancel; nothing more is computed for it after the step that is under way.

    Args:
        question: what is asked.
        residents: the edge's contexts.
        caller: whose question it is: callers are served alike.
        under_way: is told what can be asked how far the prompt is.

    Raises:
        EngineError: the local engine failed.
        Overloaded: it had to wait too long.
    """
    node, record, ask = residents.node, Record(question.arrived_s), question.ask
    # One token is generated even where none is wanted: that the context has come shows with it.
    wanted, question = ask.sampling.max_tokens, replace(question, ask=_of_one_token_at_least(ask))
    format = node.engine.chat.call_format if ask.tools is not None and node.engine.chat is not None else None
    calls = Calls(format, ask.tools.allowed if ask.tools else ())
    writer = Writer(node.engine, ask.stop, _shown(format, node.engine))
    echo = Echo(ask, writer) if ask.echo else None
    async with aclosing(_sampled(question, residents, record, caller, under_way or UnderWay())) as steps:
        async for step in steps:
            if echo is not None and step.given:
                echo.take(step)
                continue
            if step.failure is not None:
                raise UsageError(f"the grammar of the answer takes too much: {step.failure}")
            record.token(step if wanted else replace(step, end=True))
            if echo is not None:
                yield echo.piece()
                echo = None
            if not wanted:
                break
            if (piece := writer.write(step)) and (piece := calls.read(piece)):
                yield piece
            if writer.finished:
                break
    if piece := calls.rest(writer.rest()):
        yield piece
    record.note_refinement(node.refinement, question)
    residents.metrics.answered(record.timings)
    finish = "tool_calls" if calls.count and writer.finished else writer.finish
    yield Done(finish, question.prompt_tokens, record.timings, writer.stop)


def _shown(format: CallFormat | None, engine: LlamaCpp) -> list[int]:
    """The control tokens that calls are made of."""
    if format is None:
        return []
    return [id for text in format.marks if (id := engine.control(text)) is not None]


async def read(question: Question, residents: Residents, caller: str, under_way: UnderWay) -> Timings:
    """Compute the prompt of a question. It is kept as a conversation is, so that answers to it go on from there.

    Returns:
        What came from where, and how long that took.

    Raises:
        EngineError, Overloaded: as `answered` does.
    """
    record = Record(question.arrived_s)
    async with aclosing(
        _sampled(replace(question, ask=_of_one_token_at_least(question.ask)), residents, record, caller, under_way)
    ) as steps:
        record.token(replace(await anext(steps), end=True))
    return record.timings


def _of_one_token_at_least(ask: Ask) -> Ask:
    return replace(ask, sampling=replace(ask.sampling, max_tokens=max(1, ask.sampling.max_tokens)))


async def _sampled(
    question: Question, residents: Residents, record: Record, caller: str, under_way: UnderWay
) -> AsyncGenerator[Sampled, None]:
    """The answer's tokens, once the context's KV is there."""
    node, begun, tokens = residents.node, False, 0
    await residents.begin()
    try:
        question = possible(question, node, record)
        with (
            residents.asking(question) as asking,
            residents.history.answering(caller, asking, record),
            span("generate") as generating,
        ):
            prompt, beginning, sampling = question.prompt, begun_with(question), question.ask.sampling
            request = request_of(question, node, caller)
            async with node.core.generation(request, prompt, beginning, sampling) as generation:
                under_way.asking, under_way.generation = asking, generation
                while (steps := await generation.steps.get()) is not None:
                    if isinstance(steps, BaseException):
                        raise steps
                    tokens += len(steps)
                    generating.note(tokens=tokens)
                    if not begun:
                        begun = True
                        residents.begun()
                        note_way(question, asking, generation, record)
                    for step in steps:
                        yield step
    finally:
        if not begun:
            residents.begun()


def possible(question: Question, node: Node, record: Record) -> Question:
    """The question as it can be answered now: without its context where that cannot be shared, or has gone."""
    record.begin(question)
    if question.known is None:
        return question
    if node.engine.no_injection:
        record.note(way="computed", reason=node.engine.no_injection)
        return question.alone()
    if not goes_on(question.reuse, len(question.known.tokens), node.engine.spec.sight):
        # Of what is before the end too little is kept: the prompt goes on there, or is all of the context.
        what = "is recurrent" if node.engine.spec.recurrent else "has windows"
        record.note(way="computed", reason=f"the model {what}, and the prompt goes on before the context's end")
        return question.alone()
    if question.named or usable(question.known, node):
        return question
    record.begin(alone := question.alone())  # what it begins with was displaced meanwhile
    return alone


def request_of(question: Question, node: Node, caller: str) -> Request:
    """What the schedule has to know of a question."""
    known, sampling = question.known, question.ask.sampling
    echo = sampling.prompt_logprobs and sampling.top_logprobs is not None
    request = Request(0, caller, len(question.prompt), sampling.max_tokens, echo=echo)
    if known is None:
        return request
    tokens = len(known.tokens)
    return replace(
        request,
        context=known.entry.context,
        context_tokens=tokens,
        reuse_tokens=question.reuse,
        cost_s=node.beliefs.prefill.seconds(0, tokens),
        guest=not question.named,
        pinned=known.entry.name in node.pins,
    )


def begun_with(question: Question) -> Tokens:
    """The context's tokens that the prompt goes on from."""
    return question.prompt[:0] if question.known is None else question.known.tokens[: question.reuse]


def note_way(question: Question, asking: Asking, generation: Generation, record: Record) -> None:
    """Note how the context came, now that the first token is there."""
    coming, begun_s = asking.coming, generation.begun_s
    record.begun(begun_s if coming is None else min(coming.began_s, begun_s or coming.began_s))
    if generation.alone:
        record.begin(question.alone())
    elif question.known is not None and coming is None:
        record.note(way="resident", cache_n=question.reuse)
    elif question.known is not None and coming is not None:
        record.note_coming(question, coming)
    record.note(cache_n=record.timings.cache_n + generation.resumed_tokens)
    if begun_s is not None:
        past("prefill", begun_s, tokens=len(question.prompt) - generation.resumed_tokens)
