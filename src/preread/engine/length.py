"""How long a text is at least, in tokens, without reading all of it: tokenising takes the longer the longer it is."""

from collections.abc import Callable, Sized
from typing import Final

_CHARACTERS: Final = 4
"""A token of most texts has more."""

_SURELY: Final = 2
"""Where a text is cut, a few tokens come out otherwise, but not so many."""


def at_least(text: str, most_tokens: int, tokenize: Callable[[str], Sized]) -> int | None:
    """A number of tokens above `most_tokens` that `text` surely has; None if it may have fewer.

    Ever longer beginnings of it are tokenised: never more than all of it twice, and of what is far too long no more
    than a few times `most_tokens`.
    """
    size = most_tokens * _CHARACTERS
    while size < len(text):
        count = len(tokenize(text[:size])) // _SURELY
        if count > most_tokens:
            return count
        size *= 2
    return None
