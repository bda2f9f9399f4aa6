"""How large a question can be: known before it is rendered or tokenised, which takes the longer the larger it is.

Pure. A token stands for at most so many characters of text, and each message of a chat costs at least a token.
"""

from typing import Final

from preread.edge.request import Ask
from preread.errors import TooLong, UsageError

MOST_STOP_CHARACTERS: Final = 1000
"""Of one stop text. After each token, the answer's end is compared with each beginning of each of them."""

_ESCAPED_BYTES: Final = 6  # of a character in JSON: \u0430
_MESSAGE_BYTES: Final = 64
_OTHER_BYTES: Final = 1 << 20


def check_size(ask: Ask, window_tokens: int, token_characters: int) -> None:
    """Refuse what cannot fit, whatever its tokens are.

    Raises:
        TooLong: the prompt.
        UsageError: a stop text.
    """
    if any(len(text) > MOST_STOP_CHARACTERS for text in ask.stop):
        raise UsageError(f"a stop text has at most {MOST_STOP_CHARACTERS} characters")
    if ask.messages is not None:
        check_messages(len(ask.messages), window_tokens)
    if isinstance(ask.prompt, tuple) and len(ask.prompt) >= window_tokens:
        raise too_long(window_tokens, f"{len(ask.prompt)} tokens")
    texts = [ask.prompt] if ask.messages is None else [message.get("content") for message in ask.messages]
    around = () if ask.gap is None else ask.gap.texts
    characters = sum(map(len, around)) + sum(len(text) for text in texts if isinstance(text, str))
    if characters > window_tokens * token_characters:
        raise too_long(window_tokens, f"{characters} characters")


def check_messages(count: int, window_tokens: int) -> None:
    """Refuse a chat of so many messages, each of which costs at least a token.

    Raises:
        TooLong: they cannot fit.
    """
    if count >= window_tokens:
        raise too_long(window_tokens, f"{count} messages")


def most_body_bytes(window_tokens: int, token_characters: int) -> int:
    """Bytes of JSON beyond which no request's prompt fits, with room for all else that a request has."""
    return window_tokens * (token_characters * _ESCAPED_BYTES + _MESSAGE_BYTES) + _OTHER_BYTES


def too_long(window_tokens: int, what: str) -> TooLong:
    """The error for a prompt of `what`, for example "9000 tokens". OpenAI's words: clients look for them."""
    return TooLong(
        f"This model's maximum context length is {window_tokens} tokens. However, your prompt has {what}, and an "
        "answer needs room too: shorten it, or start the edge with a larger --ctx-size"
    )
