"""What is asked under load: documents of an exact number of tokens, and questions of about as many as people ask with.

They are pieces of one text, none of them twice, and follow from a seed: all systems get the same.
"""

import random
from bisect import bisect_left
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preread.bench.ttft import text
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError

_LEAST_WINDOW_TOKENS: Final = 512
_QUESTION: Final = "Say more about this: "
_NEAR_LETTERS: Final = 64
_LETTERS_PER_TOKEN: Final = 8
"""More than any tokenizer here takes for one of English prose, so that a piece is long enough."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """`documents` are system prompts that have exactly so many tokens as a context; `questions` are what users ask."""

    documents: tuple[str, ...]
    questions: tuple[str, ...]


def name(document: int) -> str:
    """What a document is published as."""
    return f"document{document}"


def draw(model: Path, seed: int, documents: int, context_tokens: int, questions: int, question_tokens: int) -> Corpus:
    """Draw them for this model's tokenizer and chat template.

    Raises:
        UsageError: the model has no chats with system prompts, the text is too short for so much, or documents of so
            many tokens cannot be made.
        PrereadError: as loading the model does.
    """
    with closing(LlamaCpp.open(model, window_tokens=_LEAST_WINDOW_TOKENS)) as engine:
        chat = engine.chat
        if chat is None:
            raise UsageError(f"{model.name} has no chat template: choose another --model")

        def tokens(system: str) -> int:
            return len(engine.tokenize_prompt(chat.system_prefix(system)))

        def letters(count: int) -> int:
            return count * _LETTERS_PER_TOKEN

        source, chance = text(), random.Random(seed)
        length, asked = letters(context_tokens), letters(question_tokens)
        pieces = [source[start : start + length].strip() for start in range(0, len(source) - length, length)]
        if len(pieces) < documents:
            raise UsageError(
                f"{documents} documents of {context_tokens} tokens are more than the benchmark's text: "
                f"it has {len(pieces)}; lower --contexts or --context-tokens"
            )
        starts = range(0, len(source) - asked)
        if len(starts) < questions:
            raise UsageError(f"{questions} questions are more than the benchmark's text: lower --requests")
        most = max(1, question_tokens - len(engine.tokenize(_QUESTION, special=False)))
        return Corpus(
            tuple(cut(piece, tokens, context_tokens) for piece in chance.sample(pieces, documents)),
            tuple(_asked(engine, source[at : at + asked], most) for at in chance.sample(starts, questions)),
        )


def cut(text: str, tokens: Callable[[str], int], wanted: int) -> str:
    """A beginning of a text that has exactly `wanted` tokens, as `tokens` counts them.

    Raises:
        UsageError: there is none.
    """
    near = bisect_left(range(len(text)), wanted, key=lambda letters: tokens(text[:letters]))
    # Letters more may be tokens fewer, so that what is found is near, and not always there.
    for letters in sorted(range(near - _NEAR_LETTERS, near + _NEAR_LETTERS + 1), key=lambda at: abs(at - near)):
        if 0 <= letters <= len(text) and tokens(text[:letters]) == wanted:
            return text[:letters]
    raise UsageError(f"no document of exactly {wanted} tokens can be made of the benchmark's text: try another number")


def _asked(engine: LlamaCpp, piece: str, tokens: int) -> str:
    ids = engine.tokenize(piece, special=False)[:tokens]
    return _QUESTION + b"".join(engine.piece(int(token)) for token in ids).decode(errors="ignore").strip()
