"""Which published context does a prompt begin with, or nearly so? Decided here, so that nobody has to be asked."""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.plan.legality import Window, goes_on
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

    def serves(
        self, context_tokens: int, prompt_tokens: int, window_tokens: int, windows: Iterable[Window] = ()
    ) -> bool:
        """Whether a prompt is answered from the context: all of it is held, with what the prompt has besides.

        `windows`: of the model's layers.
        """
        fits = context_tokens + prompt_tokens - self.shared < window_tokens
        enough = self.shared >= LEAST_SHARE * context_tokens and goes_on(self.shared, context_tokens, windows)
        return self.whole or (fits and enough)

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
    """The prompt with the tokens of `said` for what both begin with, up to where both end a token last.

    An answer's text may be read in other tokens than it was generated in: there are many ways to write a word.

    Args:
        prompt: as it was read.
        said: what was computed before.
        piece: a token's bytes; a control token has none: it is like itself alone.
    """
    read = written = 0
    while True:
        same = shared_tokens(prompt[read:], said[written:])
        found = _of_same_bytes(prompt[read + same :], said[written + same :], piece)
        read, written = read + same, written + same
        if found is None:
            return np.concatenate([said[:written], prompt[read:]])
        read, written = read + found[0], written + found[1]


def _of_same_bytes(one: Tokens, other: Tokens, piece: Callable[[int], bytes]) -> tuple[int, int] | None:
    """How many of their first tokens have the same bytes, the fewest that do; None: none have."""
    counts, behind, ahead_by = [0, 0], 0, b""
    while ahead_by or not counts[0]:
        tokens, at = (one, other)[behind], counts[behind]
        data = piece(int(tokens[at])) if at < len(tokens) else b""
        if not data or not (data.startswith(ahead_by) or ahead_by.startswith(data)):
            return None
        counts[behind] += 1
        if len(data) > len(ahead_by):
            ahead_by, behind = data[len(ahead_by) :], 1 - behind
        else:
            ahead_by = ahead_by[len(data) :]
    return counts[0], counts[1]


def prefix_index(contexts: Iterable[tuple[ContextId, Tokens]]) -> PrefixIndex:
    """Index contexts; empty ones never match."""
    by_digest = {(len(tokens), _digest(tokens)): (id, tokens) for id, tokens in contexts if len(tokens)}
    return PrefixIndex(tuple(sorted({length for length, _ in by_digest}, reverse=True)), by_digest)


def _digest(tokens: Tokens) -> bytes:
    return blake2b(np.ascontiguousarray(tokens, "<i4").tobytes(), digest_size=16).digest()
