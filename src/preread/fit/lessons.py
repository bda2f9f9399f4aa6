"""What a guide learns from: documents, and what follows them: their own text, and questions with the right answers.

Of any text, windows: what precedes each of some stretches is a context that predicts it. Of Python source also shorter
stretches in a chat, asked about what their syntax tree says. Nothing here is written by a model.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import numpy as np

from preread.align.exchanges import Exchange
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.questions import Document, stretches
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS
from preread.fit.text import Text

STRETCH_TOKENS: Final = 80
CHARACTERS: Final = (800, 2400)
QUESTIONS: Final = (2, 12)
_ROWS: Final = 300
"""Of questions and answers behind one document, in tokens."""
_TURN: Final = 5
"""Of so many lessons one asks. From questions a guide learns how answers are worded, from text what the large model
reads."""

_MOST_TOKENS: Final = WINDOW_TOKENS + TAIL_TOKENS
_CHARACTERS: Final = 4 * _MOST_TOKENS
"""Of a window: more than its tokens need, except in plain prose."""

_HELD_OUT_PARTS: Final = 12
_LEAST: Final = 4
_SEED: Final = 0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A document as the small model's tokens, and what follows it; `asked`: questions, not its own text."""

    tokens: Tokens
    exchanges: tuple[Exchange, ...]
    asked: bool


def apart(text: Text) -> tuple[Text, Text]:
    """Documents to learn from, and whole other ones to measure with: each twelfth, and at least one.

    Raises:
        UsageError: there are not two.
    """
    if len(text.parts) < 2:
        raise UsageError(
            f"a guide is measured on documents that nothing was learnt from, and {text.label} is a single one: "
            "give two files at least"
        )
    measured = text.parts[::_HELD_OUT_PARTS]
    learnt = [part for number, part in enumerate(text.parts) if number % _HELD_OUT_PARTS]
    return Text(text.label, tuple(learnt)), Text(text.label, measured)


def lessons(engine: LlamaCpp, text: Text, count: int, seed: int = _SEED) -> list[Lesson]:
    """At most so many, of all documents evenly; every fifth is asked about, as long as the text has such.

    With a larger count the same ones come first.

    Raises:
        UsageError: the text is too short.
    """
    source = random.Random(seed)
    asked: list[list[Document]] = []
    if engine.chat is not None:
        asked = [list(stretches(part, "a module", source, CHARACTERS, QUESTIONS)) for part in text.parts]
    cut = [[part[at : at + _CHARACTERS] for at in range(0, len(part), _CHARACTERS)] for part in text.parts]
    for pieces in cut:
        source.shuffle(pieces)  # files often begin alike: with a licence, with imports
    questions = _worth(about(engine, one) for one in _in_turn(asked, source))
    texts = (engine.tokenize(piece, special=False, start=True) for piece in _in_turn(cut, source))
    plain = _worth(of_text(tokens[:_MOST_TOKENS]) for tokens in texts)
    found = list(islice(_mixed(plain, questions), count))
    if len(found) < min(count, _LEAST):
        raise UsageError(f"the text is too short to learn from: {len(found)} lessons, {_LEAST} are needed")
    return found


def _worth(some: Iterator[Lesson]) -> Iterator[Lesson]:
    """Those of which there is something to learn."""
    return (one for one in some if one.exchanges)


def _mixed(plain: Iterator[Lesson], questions: Iterator[Lesson]) -> Iterator[Lesson]:
    """Of each turn the first asks, until there is no more text."""
    while turn := list(islice(plain, _TURN - 1)):
        yield from islice(questions, 1)
        yield from turn


def _in_turn(piles: list[list[_T]], source: random.Random) -> Iterator[_T]:
    """Of each pile one, in any order, before any gives a second."""
    order = source.sample(piles, len(piles))
    for turn in range(max(map(len, order), default=0)):
        yield from (pile[turn] for pile in order if turn < len(pile))


def of_text(tokens: Tokens) -> Lesson:
    """A window's text, stretches of which are predicted from all that precedes them."""
    starts = range(STRETCH_TOKENS, len(tokens) - STRETCH_TOKENS + 1, STRETCH_TOKENS)
    return Lesson(
        tokens, tuple(_certain(tokens[at : at + 1], tokens[at + 1 : at + STRETCH_TOKENS], at) for at in starts), False
    )


def about(engine: LlamaCpp, document: Document) -> Lesson:
    """A chat about a document: questions, and the right answers.

    Raises:
        UsageError: the model has no chat template.
    """
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: nothing can be asked")
    begun = engine.tokenize_prompt(engine.chat.system_prefix(document.titled))
    found: list[Exchange] = []
    for one in document.questions:
        prompt = engine.tokenize_prompt(engine.chat.after_system([{"role": "user", "content": one.text}]), start=False)
        answer = np.concatenate([engine.tokenize(one.answer, special=False), engine.tokenize(engine.chat.eos)])
        if sum(map(len, found)) + len(prompt) + len(answer) <= _ROWS and len(prompt) + len(answer) <= TAIL_TOKENS:
            found.append(_certain(prompt, answer, None))
    return Lesson(begun, tuple(found), True)


def _certain(prompt: Tokens, answer: Tokens, behind: int | None) -> Exchange:
    rows = np.zeros((len(answer), 1), np.float32)
    return Exchange(prompt, answer, answer[:, None], rows, rows[:, 0], behind)
