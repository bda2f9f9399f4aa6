"""Tokens of two tokenizers, matched by bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.align.spans import matched

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


def test_the_last_token_that_has_read_no_further() -> None:
    #          a|bcd|ef|g        ab|c|d|efg
    assert matched([1, 3, 2, 1], [2, 1, 1, 3]).tolist() == [0, 2, 2, 3]
    # A beginning without bytes on either side; a frame of a chat, whose tokens the other text lacks.
    assert matched([0, 2, 2], [0, 4]).tolist() == [0, 0, 1]
    assert matched([0, 0, 4, 0], [4]).tolist() == [0, 0, 0, 0]


@given(LENGTHS, LENGTHS)
def test_matches_never_look_ahead_and_never_go_back(small: list[int], large: list[int]) -> None:
    found = matched(small, large)
    ends, others = np.cumsum(small), np.cumsum(large)
    assert len(found) == len(small) and (np.diff(found) >= 0).all()
    for at, match in zip(ends, found, strict=True):
        assert others[match] <= at or match == 0
        assert match == len(large) - 1 or others[match + 1] > at


@given(LENGTHS)
def test_one_tokenizer_matches_itself_up_to_empty_tokens(lengths: list[int]) -> None:
    found = matched(lengths, lengths)
    assert np.array_equal(np.cumsum(lengths)[found], np.cumsum(lengths)) or min(lengths) == 0
