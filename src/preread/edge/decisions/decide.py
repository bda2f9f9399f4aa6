"""The story of one inquiry: a state that many short questions share, one token of each, probabilities.

prepare: the stem that all questions begin with, and what each of them has of its own → read the stem once, behind the
context that is brought as for any question → all questions at once, each a sequence that goes on from the stem → from
the log-probabilities of their labels to probabilities. Nothing is decoded, and nothing of it is kept.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

import numpy as np

from preread.edge.answer import begun_with, note_way, possible, request_of
from preread.edge.bounds import too_long
from preread.edge.coming import Asking
from preread.edge.core import Generation
from preread.edge.decisions.labels import tokens_of
from preread.edge.decisions.odds import averaged, joined
from preread.edge.decisions.question import (
    INSTRUCTION,
    Inquiry,
    Question,
    labelled,
    labels_of,
    orders_of,
    text_of,
)
from preread.edge.decisions.reply import Decided
from preread.edge.known import Known
from preread.edge.node import Node
from preread.edge.record import Record
from preread.edge.request import Ask
from preread.edge.residents import Residents
from preread.edge.spans import span
from preread.edge.understand import Question as Stem
from preread.edge.understand import chat_tokens, check_length, find_context, understand
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.marks import Prompt
from preread.engine.sampling import Sampled, Sampling
from preread.errors import EngineError, UsageError
from preread.fit.calibration import Calibration, scaled

_HERE: Final = "\ue000 the question stands here \ue001"
_ANSWER: Final = "Answer:"
"""What the answer begins with: a small model is then likelier to go on with a label than with anything else."""

_families: Final = count(1)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands around each question: tokens before it, behind the context if there is one; text and tokens after."""

    before: Tokens
    after_text: str
    after: Tokens


@dataclass(frozen=True, slots=True)
class _Reading:
    """One question in one order: its own tokens, and of each option the tokens that say it."""

    tokens: Tokens
    options: tuple[tuple[int, ...], ...]

    @property
    def reported(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(id for option in self.options for id in option))


async def decide(
    inquiry: Inquiry, residents: Residents, calibration: Calibration, caller: str = "", at_once: int = 64
) -> Decided:
    """Answer all questions of an inquiry, at most `at_once` of its prompts at a time.

    Raises:
        UsageError: it cannot be asked so, or not of this model; TooLong: it does not fit the window.
        UnknownContext, Unavailable, EngineError, Overloaded: as for other questions.
    """
    node, family = residents.node, f"decisions {next(_families)}"
    stem, readings = await _prepared(inquiry, node, caller)
    record = Record(stem.arrived_s)
    await residents.begin()
    try:
        stem = possible(stem, node, record)
        with node.core.family(family), residents.asking(stem) as asking:
            if node.engine.in_part:  # else nothing can go on from a middle
                stem = await _read_stem(stem, asking, record, node, caller, family)
            every = [reading for of_one in readings for reading in of_one]
            with span("decide", prompts=len(every)):
                tokens = await _read(every, stem, node, caller, family, at_once)
    finally:
        residents.begun()
    record.token(replace(tokens[-1], end=True))  # the last of them is here, and none is part of an answer
    own = sum(len(reading.tokens) for reading in every)
    record.note(prompt_n=record.timings.prompt_n + own)
    residents.metrics.answered(record.timings)
    logs = iter([_logs(reading, token) for reading, token in zip(every, tokens, strict=True)])
    rows = tuple(tuple(next(logs) for _ in of_one) for of_one in readings)
    return Decided(
        node.engine.spec.name,
        tuple(
            (question, scaled(averaged(of_one), calibration.scale(question.kind)))
            for question, of_one in zip(inquiry.questions, rows, strict=True)
        ),
        rows,
        stem.prompt_tokens + own,
        record.timings.cache_n,
        len(every),
        calibration,
        min(float(np.exp(joined(row))) for of_one in rows for row in of_one),
        record.timings,
    )


async def _prepared(inquiry: Inquiry, node: Node, caller: str) -> tuple[Stem, list[list[_Reading]]]:
    """What all questions begin with, and each one's own in every order."""
    name, engine = inquiry.context, node.engine
    known = None if name is None else await find_context(name, node)
    said = Ask(prompt=inquiry.state, context=name, template=dict(inquiry.template))
    frame = await node.readers.run(said, caller, lambda: _framed(inquiry, known, engine))
    stem = await understand(Ask(prompt=tuple(frame.before.tolist()), context=name), node, caller)
    texts = "".join(question.text for question in inquiry.questions)
    readings = await node.readers.run(replace(said, prompt=texts), caller, lambda: _readings(inquiry, frame, engine))
    longest = stem.prompt_tokens + max(len(reading.tokens) for of_one in readings for reading in of_one)
    if longest >= engine.spec.window_tokens:
        raise too_long(engine.spec.window_tokens, f"{longest} tokens")
    return stem, readings


def _framed(inquiry: Inquiry, known: Known | None, engine: LlamaCpp) -> _Frame:
    """The prompt around a question, rendered once for all of them."""
    shared = f"{inquiry.state}\n\n{INSTRUCTION}\n\n" if inquiry.state else f"{INSTRUCTION}\n\n"
    if engine.chat is None:
        text = f"{inquiry.system}\n\n{shared}" if inquiry.system else shared
        check_length(text, engine)
        end = f"\n{_ANSWER}"
        return _Frame(engine.tokenize(text, special=False, start=known is None), end, engine.tokenize(end))
    messages = [{"role": "user", "content": shared + _HERE}]
    if inquiry.system:
        messages.insert(0, {"role": "system", "content": inquiry.system})
    template = {"enable_thinking": False, **dict(inquiry.template)}
    continued = known is not None and known.entry.form == "chat"
    render = engine.chat.after_system if continued else engine.chat.render
    rendered = render(messages, template)
    before, here, after = rendered.text.partition(_HERE)
    if not here or _HERE in after:
        raise UsageError("the model's chat template does not say a message once, as it is: no question can be put in")
    tokens = chat_tokens(Prompt(before, rendered.mark), engine, start=not continued)
    end = after + _ANSWER
    return _Frame(tokens, end, engine.tokenize_prompt(Prompt(end, rendered.mark), start=False))


def _readings(inquiry: Inquiry, frame: _Frame, engine: LlamaCpp) -> list[list[_Reading]]:
    """Each question in every order, in tokens."""
    wanted = dict.fromkeys(label for question in inquiry.questions for label in labels_of(question))
    labels = tokens_of(wanted, frame.after_text, engine.tokenize)

    def reading(question: Question, order: tuple[int, ...]) -> _Reading:
        text = text_of(question, order)
        check_length(text, engine, control=False)
        tokens = np.concatenate([engine.tokenize(text, special=False), frame.after])
        return _Reading(tokens, tuple(labels[label] for label in labelled(question, order)))

    return [
        [reading(question, order) for order in orders_of(question, inquiry.orders)] for question in inquiry.questions
    ]


async def _read_stem(stem: Stem, asking: Asking, record: Record, node: Node, caller: str, family: str) -> Stem:
    """Compute what all questions begin with, and have it kept for them; as what it could be computed."""
    request = replace(request_of(stem, node, caller), family=family, stem=True)
    with span("stem", tokens=len(stem.prompt)):
        async with node.core.generation(request, stem.prompt, begun_with(stem), Sampling(max_tokens=1)) as generation:
            await _token(generation)
            note_way(stem, asking, generation, record)
    return stem.alone() if generation.alone else stem


async def _read(
    readings: Sequence[_Reading], stem: Stem, node: Node, caller: str, family: str, at_once: int
) -> list[Sampled]:
    """The token after each reading, all of a wave in the same steps."""
    tokens: list[Sampled] = []
    for start in range(0, len(readings), at_once):
        async with AsyncExitStack() as asked:
            generations = list[Generation]()
            with node.core.together():
                for one in readings[start : start + at_once]:
                    prompt = np.concatenate([stem.prompt, one.tokens]).astype(np.int32)
                    request = replace(
                        request_of(replace(stem, prompt=prompt), node, caller), family=family, most_tokens=1
                    )
                    sampling = Sampling(max_tokens=1, reported=one.reported)
                    generation = node.core.generation(request, prompt, begun_with(stem), sampling)
                    generations.append(await asked.enter_async_context(generation))
            tokens += [await _token(generation) for generation in generations]
    return tokens


async def _token(generation: Generation) -> Sampled:
    """The one that comes; before it, steps may compute parts of the prompt."""
    while (steps := await generation.steps.get()) is not None:
        if isinstance(steps, BaseException):
            raise steps
        if steps:
            return steps[0]
    raise EngineError("an answer ended without a token: this is a bug in preread")


def _logs(reading: _Reading, token: Sampled) -> tuple[float, ...]:
    """The log-probability of each option."""
    told = dict(token.top)
    return tuple(joined([told[id] for id in option]) for option in reading.options)
