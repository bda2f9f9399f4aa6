"""The answers to one request: to several prompts, and several choices for each. They are made at once, as far as the
request may, and told as they come.

Choices of one prompt share it: it is computed once and kept, as a conversation is, and each of them goes on from there
after one token of its own. An edge that keeps no conversations computes it for each.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import islice

from preread.edge.answer import answered, read
from preread.edge.node import Node
from preread.edge.openai import Call
from preread.edge.progress import UnderWay
from preread.edge.request import Done, Piece, Timings
from preread.edge.residents import Residents
from preread.edge.understand import Question, understand
from preread.plan.schedule import LEAST_KEPT_TOKENS

Item = tuple[int, Piece | Done]
"""What comes next of the answer to the question of this number."""


@dataclass(slots=True)
class Prompt:
    """One prompt of a request.

    Attributes:
        questions: the same one for each choice, with how its answer is drawn.
        reading: held while it is computed for all of them.
        read: what that took; None: it was not.
        under_way: how far it is, of its first choice.
    """

    questions: tuple[Question, ...]
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    read: Timings | None = None
    under_way: UnderWay = field(default_factory=UnderWay)


async def understood(call: Call, node: Node, caller: str) -> list[Prompt]:
    """The prompts of a request in tokens.

    Raises:
        UsageError, Unavailable: as `understand` does.
    """
    asks, prompts = iter(call.asks), list[Prompt]()
    while of_one := tuple(islice(asks, len(call.asks) // call.prompts)):
        question = await understand(of_one[0], node, caller)
        prompts.append(Prompt(tuple(_drawn(question, ask.sampling.seed) for ask in of_one)))
    return prompts


def _drawn(question: Question, seed: int) -> Question:
    """The same question for another choice."""
    return replace(question, ask=replace(question.ask, sampling=replace(question.ask.sampling, seed=seed)))


async def answers(
    prompts: Sequence[Prompt], residents: Residents, caller: str, at_once: int
) -> AsyncGenerator[Item, None]:
    """All answers, at most `at_once` of them at a time, each one's pieces in their order.

    Close the generator to cancel.

    Raises:
        EngineError, Overloaded: as `answered` does, of the first that fails; the others are given up.
    """
    each = [(prompt, question) for prompt in prompts for question in prompt.questions]
    waiting, items = iter(enumerate(each)), asyncio.Queue[Item | BaseException | None]()
    tasks = [
        asyncio.create_task(_answer_all(waiting, residents, caller, items)) for _ in range(min(at_once, len(each)))
    ]
    try:
        working = len(tasks)
        while working:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                working -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _answer_all(
    waiting: Iterator[tuple[int, tuple[Prompt, Question]]],
    residents: Residents,
    caller: str,
    items: asyncio.Queue[Item | BaseException | None],
) -> None:
    """Answer one question after the other as long as any waits."""
    try:
        for number, (prompt, question) in waiting:
            await _read_once(prompt, residents, caller)
            under_way = prompt.under_way if question is prompt.questions[0] else None
            async with aclosing(answered(question, residents, caller, under_way)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Done) and prompt.read is not None and question is prompt.questions[0]:
                        piece = replace(piece, timings=_with_reading(piece.timings, prompt.read))
                    items.put_nowait((number, piece))
    except Exception as error:
        items.put_nowait(error)
    else:
        items.put_nowait(None)


async def _read_once(prompt: Prompt, residents: Residents, caller: str) -> None:
    """See that the prompt is computed, if choices share it."""
    if len(prompt.questions) == 1 or not _shares(prompt.questions[0], residents.node):
        return
    async with prompt.reading:
        if prompt.read is None:
            prompt.read = await read(prompt.questions[0], residents, caller, prompt.under_way)


def _shares(question: Question, node: Node) -> bool:
    """Whether another question with this prompt could go on from it: what is kept has no odds of its tokens."""
    sampling = question.ask.sampling
    scored = sampling.prompt_logprobs and sampling.top_logprobs is not None
    return node.core.keeps and len(question.prompt) > LEAST_KEPT_TOKENS and not scored


def _with_reading(answer: Timings, reading: Timings) -> Timings:
    """The timings of the first choice, whose prompt was read before it began."""
    return replace(
        reading,
        prompt_n=reading.prompt_n + answer.prompt_n,
        predicted_n=answer.predicted_n,
        ttft_ms=answer.ttft_ms,
        predicted_ms=answer.predicted_ms,
        refined_to=answer.refined_to,
        refined_share=answer.refined_share,
    )
