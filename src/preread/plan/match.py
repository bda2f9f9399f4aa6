"""Which published context does a prompt begin with? Decided here, so that nobody has to be asked."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from preread.values import ContextId

Tokens = npt.NDArray[np.int32]


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


def prefix_index(contexts: Iterable[tuple[ContextId, Tokens]]) -> PrefixIndex:
    """Index contexts; empty ones never match."""
    by_digest = {(len(tokens), _digest(tokens)): (id, tokens) for id, tokens in contexts if len(tokens)}
    return PrefixIndex(tuple(sorted({length for length, _ in by_digest}, reverse=True)), by_digest)


def _digest(tokens: Tokens) -> bytes:
    return blake2b(np.ascontiguousarray(tokens, "<i4").tobytes(), digest_size=16).digest()
