"""Tokens of two tokenizers on one text, matched by the bytes that they stand for."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def matched(small: Sequence[int], large: Sequence[int]) -> npt.NDArray[np.intp]:
    """For each token of one reading, the last token of another that has read no further; the first, if all have.

    So nothing of what follows a token is in what it is matched with. Tokens that stand for no bytes (those of a chat's
    frame, the beginning of a text) are matched like the token before them.

    Args:
        small, large: how many bytes each token stands for, of the same bytes in all; at least one token in `large`.
    """
    ends, others = np.cumsum(small), np.cumsum(large)
    return np.maximum(np.searchsorted(others, ends, side="right") - 1, 0)
