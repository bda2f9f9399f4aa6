"""Which published context does a prompt begin with, or nearly so? Decided here, so that nobody has to be asked."""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.values import ContextId

Tokens = npt.NDArray[np.int32]

LEAST_SHARE: Final = 0.75
"""So much of a context a prompt has in common with it to be answered from it. Where the context is not in memory, all
of it has to be got, which then costs at most a third more than what that saves."""

NEAR_SHARE: Final = 0.25
"""With so much in common, somebody may have meant that context: less have chats whose templates begin alike."""


@dataclass(frozen=True, slots=True)
class Match:
    """A prompt and a context have their first `shared` tokens in common; `whole`: these are all of the context's."""

    context: ContextId
    shared: int
    whole: bool

    def serves(self, context_tokens: int, prompt_tokens: int, window_tokens: int) -> bool:
        """Whether a prompt is answered from the context: all of it is held, with what the prompt has besides."""
        fits = context_tokens + prompt_tokens - self.shared < window_tokens
        return self.whole or (fits and self.shared >= LEAST_SHARE * context_tokens)

    def near(self, context_tokens: int) -> bool:
        """Whether it is worth telling that they do not have more in common."""
        return self.shared >= NEAR_SHARE * context_tokens


@dataclass(frozen=True, slots=True)
class PrefixIndex:
    """Contexts by length and digest. A digest finds a candidate; comparing the tokens proves it."""

    lengths: tuple[int, ...]
    by_digest: dict[tuple[int, bytes], tuple[ContextId, Tokens]]

    def longest(self, prompt: Tokens) -> ContextId | None:
        """The longest context whose tokens the prompt begins with; of equal length there can be only one."""
        for length in self.lengths:
            if length > len(prompt):
                continue
            head = prompt[:length]
            found = self.by_digest.get((length, _digest(head)))
            if found is not None and np.array_equal(found[1], head):
                return found[0]
        return None

    def nearest(self, prompt: Tokens, usable: Container[ContextId]) -> Match | None:
        """Of the usable contexts the one that has most tokens in common with the prompt's beginning, if any has one.

        Of several, one that is whole there; then the shortest, since all of it has to be at hand.
        """
        best: tuple[int, int, ContextId] | None = None
        for id, tokens in self.by_digest.values():
            if id in usable and (shared := shared_tokens(tokens, prompt)):
                best = max(best or (0, 0, id), (shared, -len(tokens), id))
        return None if best is None else Match(best[2], best[0], best[0] == -best[1])


def shared_tokens(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def as_said(prompt: Tokens, said: Tokens, piece: Callable[[int], bytes]) -> Tokens:
    """The prompt, with the tokens that `said` has for the bytes that both begin with, as far as both end a token there.

    An answer was not generated in the tokens that its text is read in: of those there are many ways to write a word.

    Args:
        prompt: as it was read.
        said: what was computed before.
        piece: a token's bytes. A control token has none, and is like no other.
    """
    start = shared_tokens(prompt, said)
    while (lengths := _same_bytes(prompt[start:], said[start:], piece)) is not None:
        read, written = lengths
        prompt = np.concatenate([prompt[:start], said[start : start + written], prompt[start + read :]])
        start += written
        start += shared_tokens(prompt[start:], said[start:])
    return prompt


def _same_bytes(one: Tokens, other: Tokens, piece: Callable[[int], bytes]) -> tuple[int, int] | None:
    """How many tokens of both begin with the same bytes, the fewest; None: they differ before both end a token."""
    first, second = bytearray(), bytearray()
    i = j = 0
    while not (i and len(first) == len(second)):
        tokens, at, grown = (one, i, first) if len(first) <= len(second) else (other, j, second)
        more = piece(int(tokens[at])) if at < len(tokens) else b""
        if not more:
            return None
        grown += more
        i, j = (i + 1, j) if grown is first else (i, j + 1)
        shorter = min(len(first), len(second))
        if first[:shorter] != second[:shorter]:
            return None
    return i, j


def prefix_index(contexts: Iterable[tuple[ContextId, Tokens]]) -> PrefixIndex:
    """Index contexts; empty ones never match."""
    by_digest = {(len(tokens), _digest(tokens)): (id, tokens) for id, tokens in contexts if len(tokens)}
    return PrefixIndex(tuple(sorted({length for length, _ in by_digest}, reverse=True)), by_digest)


def _digest(tokens: Tokens) -> bytes:
    return blake2b(np.ascontiguousarray(tokens, "<i4").tobytes(), digest_size=16).digest()
