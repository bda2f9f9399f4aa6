"""The tokens that stand for labels where a model's answer begins.

A label counts only as one token: then all of what the model thinks of it is in that token's probability. Whether it is
one is found by tokenising it in its place, after what the prompt ends with.
"""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.errors import UsageError

Tokens = npt.NDArray[np.int32]
Tokenize = Callable[[str], Tokens]

_FORMS: Final[tuple[Callable[[str], str], ...]] = (
    str,
    lambda label: f" {label}",
    str.lower,
    lambda label: f" {label.lower()}",
)


def tokens_of(labels: Iterable[str], end: str, tokenize: Tokenize) -> dict[str, tuple[int, ...]]:
    """Of each label the tokens that it may come as, after a prompt that ends with `end`: with a space and without, and
    a word also in small letters.

    Raises:
        UsageError: a label is no single token of this model.
    """
    before = tokenize(end)
    found = {}
    for label in labels:
        forms = _FORMS if len(label) > 1 else _FORMS[:2]
        ids = dict.fromkeys(id for form in forms if (id := _single(before, tokenize(end + form(label)))) is not None)
        if not ids:
            raise UsageError(f"decisions cannot be made with this model: {label!r} is not one token of its vocabulary")
        found[label] = tuple(ids)
    return found


def _single(before: Tokens, after: Tokens) -> int | None:
    """The one token that comes after those before; None: it is not one, or changes them."""
    if len(after) != len(before) + 1 or not np.array_equal(after[:-1], before):
        return None
    return int(after[-1])
