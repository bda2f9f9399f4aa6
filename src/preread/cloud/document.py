"""What a document is as tokens, and whether these can be published with a model."""

from functools import partial

import numpy as np
import numpy.typing as npt

from preread.engine import length
from preread.engine.llamacpp import LlamaCpp
from preread.errors import TooLong, UsageError
from preread.values import Form
from preread.wire.names import why_unfit

Tokens = npt.NDArray[np.int32]

SMALLEST_ROOM_TOKENS = 64
"""A context must leave at least so many tokens of the window for a prompt and its answer."""


def read_document(engine: LlamaCpp, text: str | None, tokens: Tokens | None, form: str) -> tuple[Tokens, Form]:
    """Token ids of a document as prompts will begin with them.

    Args:
        engine: whose tokenizer and chat template to use.
        text: the document; or `tokens`: its ids, taken as they are.
        form: "chat" makes the text the system prompt of a chat, "text" takes it as it is; "auto" is "chat" for models
            with a chat template.

    Raises:
        UsageError: the document is empty, or its ids are not this model's, or the model cannot do `form`.
        TooLong: it is so much too long that this was seen from its size or its beginning.
    """
    if tokens is not None:
        _check_room(engine, len(tokens))
    if text is not None and (least := least_tokens(engine, text)) is not None:
        _check_room(engine, least, "at least ")
    return as_tokens(engine, text, tokens, form)


def as_tokens(engine: LlamaCpp, text: str | None, tokens: Tokens | None, form: str) -> tuple[Tokens, Form]:
    """The same of a document of any length.

    Raises:
        UsageError: the document is empty, or its ids are not this model's, or the model cannot do `form`.
    """
    if (text is None) == (tokens is None):
        raise UsageError("a document is either text or token ids")
    if tokens is not None:
        if not len(tokens):
            raise UsageError("the document is empty")
        engine.check_tokens(tokens)
        return tokens, "chat" if form == "chat" else "text"
    if not text or not text.strip():
        raise UsageError("the document is empty")
    if form == "text" or (form == "auto" and engine.chat is None):
        return engine.tokenize(text, special=False, start=True), "text"
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: publish the document as text")
    return engine.tokenize_prompt(engine.chat.system_prefix(text)), "chat"


def check(engine: LlamaCpp, name: str, tokens: int) -> None:
    """Refuse, before any work is done, a context of so many tokens that cannot be published under `name`.

    Raises:
        UsageError: the name is not one, the model's KV cannot be streamed, or the document does not fit its window.
    """
    if unfit := why_unfit(name):
        raise UsageError(f"{name!r} cannot name a context: {unfit}")
    if engine.no_injection:
        raise UsageError(f"KV of {engine.spec.name} cannot be streamed: {engine.no_injection}")
    _check_room(engine, tokens)


def least_tokens(engine: LlamaCpp, text: str) -> int | None:
    """A number of tokens above the window that a text surely has; None if it may have fewer. Not all of it is read."""
    window, widest = engine.spec.window_tokens, engine.spec.token_characters
    if len(text) > window * widest:
        return -(-len(text) // widest)
    return length.at_least(text, window, partial(engine.tokenize, special=False))


def _check_room(engine: LlamaCpp, tokens: int, about: str = "") -> None:
    over = tokens + SMALLEST_ROOM_TOKENS - engine.spec.window_tokens
    if over > 0:
        raise TooLong(
            f"the document has {about}{tokens} tokens, {over} too many: the window of {engine.spec.name} is "
            f"{engine.spec.window_tokens} tokens, of which {SMALLEST_ROOM_TOKENS} stay free for a prompt"
        )
