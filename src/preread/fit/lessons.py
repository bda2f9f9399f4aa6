"""What a guide learns from: documents, and what follows them: their own text, and questions with the right answers.

Of any text, windows: what precedes each of some stretches is a context that predicts it. Of Python source also shorter
stretches in a chat, asked about what their syntax tree says. Nothing here is written by a model.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from preread.align.exchanges import Exchange
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.questions import Document, stretches
from preread.fit.sample import TAIL_TOKENS, windows
from preread.fit.text import Text

STRETCH_TOKENS: Final = 80
_FIRST_BEHIND, _APART = 128, 150
CHARACTERS: Final = (1000, 2400)
QUESTIONS: Final = (5, 12)
_ROWS: Final = 300
"""Of questions and answers behind one document, in tokens."""
_ASKED_SHARE: Final = 0.7
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Lesson:
    """A document as the small model's tokens, and what follows it; `asked`: questions, not its own text."""

    tokens: Tokens
    exchanges: tuple[Exchange, ...]
    asked: bool


def lessons(engine: LlamaCpp, text: Text, count: int, seed: int = _SEED) -> list[Lesson]:
    """At most so many, mixed; seven of ten are asked about, if the text has so many.

    Raises:
        UsageError: the text is too short.
    """
    source = random.Random(seed)
    asked: list[Lesson] = []
    most = round(count * _ASKED_SHARE) if engine.chat is not None else 0
    documents = (
        [list(stretches(part, "a module", source, CHARACTERS, QUESTIONS)) for part in text.parts] if most else []
    )
    source.shuffle(documents)
    for turn in range(max(map(len, documents), default=0)):  # of each part one, before any gives a second
        for each in documents:
            if turn < len(each) and len(asked) < most:
                asked.append(about(engine, each[turn]))
    plain = [of_text(np.concatenate(one)) for one in windows(engine, text, max(4, count - len(asked)))]
    found = [one for one in (*asked, *plain) if one.exchanges]
    source.shuffle(found)
    return found


def of_text(tokens: Tokens) -> Lesson:
    """A window's text, stretches of which are predicted from all that precedes them."""
    starts = range(_FIRST_BEHIND, len(tokens) - STRETCH_TOKENS + 1, _APART)
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
        prompt = engine.tokenize(engine.chat.after_system([{"role": "user", "content": one.text}]))
        answer = np.concatenate([engine.tokenize(one.answer, special=False), engine.tokenize(engine.chat.eos)])
        if sum(map(len, found)) + len(prompt) + len(answer) <= _ROWS and len(prompt) + len(answer) <= TAIL_TOKENS:
            found.append(_certain(prompt, answer, None))
    return Lesson(begun, tuple(found), True)


def _certain(prompt: Tokens, answer: Tokens, behind: int | None) -> Exchange:
    rows = np.zeros((len(answer), 1), np.float32)
    return Exchange(prompt, answer, answer[:, None], rows, rows[:, 0], behind)


def split(found: Sequence[Lesson], held_out: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn from, and so many to measure with, evenly of both kinds."""
    measured: list[Lesson] = []
    for kind in (True, False):
        its = [one for one in found if one.asked == kind]
        measured += its[: round(held_out * len(its) / len(found))]
    return [one for one in found if not any(one is other for other in measured)], measured
