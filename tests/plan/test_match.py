import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.match import Match, PrefixIndex, as_said, prefix_index, shared_tokens
from preread.values import ContextId

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aba", b""]
"""A small vocabulary: the first token and the last one are control tokens."""

LETTERS = [[0], [1], [2], [1, 2], [2, 1], [1, 2, 1], [6]]
"""The tokens in the shortest ones of the same bytes."""

READ = st.lists(st.integers(0, len(PIECES) - 1), max_size=12)
TOKENS = st.lists(st.integers(0, 3), max_size=8)


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


@given(st.lists(TOKENS, max_size=6), TOKENS)
def test_finds_the_longest_context_that_a_prompt_begins_with(contexts: list[list[int]], prompt: list[int]) -> None:
    named = {ContextId(str(tokens)): tokens for tokens in contexts}
    index = prefix_index((name, ids(tokens)) for name, tokens in named.items())
    fitting = [tokens for tokens in contexts if tokens and prompt[: len(tokens)] == tokens]
    assert index.longest(ids(prompt)) == (str(max(fitting, key=len)) if fitting else None)


def test_a_digest_only_finds_and_the_tokens_prove() -> None:
    honest = prefix_index([(ContextId("a"), ids([1, 2]))])
    [(key, _)] = honest.by_digest.items()
    lying = PrefixIndex(honest.lengths, {key: (ContextId("b"), ids([1, 3]))})
    assert lying.longest(ids([1, 2, 3])) is None


@given(st.lists(TOKENS, max_size=6), TOKENS, st.sets(st.integers(0, 5)))
def test_finds_the_usable_context_that_shares_most_with_a_prompt(
    contexts: list[list[int]], prompt: list[int], chosen: set[int]
) -> None:
    named = {ContextId(str(tokens)): tokens for tokens in contexts}
    usable = {ContextId(str(contexts[i])) for i in chosen if i < len(contexts)}

    def shared(tokens: list[int]) -> int:
        return next((n for n, (a, b) in enumerate(zip(tokens, prompt, strict=False)) if a != b),
                    min(len(tokens), len(prompt)))  # fmt: skip

    found = prefix_index((name, ids(tokens)) for name, tokens in named.items()).nearest(ids(prompt), usable)
    most = max((shared(named[name]) for name in usable), default=0)
    if found is None:
        assert most == 0
        return
    assert found.context in usable and found.shared == most == shared(named[found.context])
    assert found.whole == (most == len(named[found.context]))
    assert found.whole or not any(prompt[:most] == named[name] for name in usable), "a whole one goes first"


def test_a_context_that_differs_at_its_end_is_nearly_matched() -> None:
    index = prefix_index([(ContextId("manual"), ids([1, 2, 3, 4]))])
    assert index.nearest(ids([1, 2, 3, 9, 9]), {ContextId("manual")}) == Match(ContextId("manual"), 3, False)
    assert index.nearest(ids([1, 2, 3, 9, 9]), set()) is None


def test_a_context_serves_a_prompt_that_has_most_of_it_and_fits_beside_all_of_it() -> None:
    match = Match(ContextId("manual"), 80, False)
    assert match.serves(100, 90, 120) and not match.serves(100, 100, 120) and not match.serves(107, 90, 999)
    assert Match(ContextId("manual"), 100, True).serves(100, 119, 120)
    assert match.near(300) and not match.near(400)


def test_of_a_context_whose_beginning_windows_have_left_behind_all_is_used_or_nothing() -> None:
    for windows, serves in (((None, 101), True), ((None, 100), False), ((None, None), True)):
        assert Match(ContextId("manual"), 80, False).serves(100, 90, 120, windows) == serves
        assert Match(ContextId("manual"), 100, True).serves(100, 119, 120, windows)


# Other tokens of the same text


def text(tokens: np.ndarray) -> list[object]:
    """All bytes, and control tokens as what they are."""
    return [part for id in tokens for part in (PIECES[id] or [f"control {id}"])]


@given(READ, READ, READ)
def test_a_prompt_says_the_same_in_the_tokens_of_what_was_said(
    before: list[int], read: list[int], on: list[int]
) -> None:
    prompt, said = ids([*before, *read]), ids([*before, *on])
    found = as_said(prompt, said, PIECES.__getitem__)
    assert text(found) == text(prompt)
    assert shared_tokens(found, said) >= shared_tokens(prompt, said)


@given(READ, READ, st.randoms(use_true_random=False))
def test_what_a_prompt_begins_with_is_in_the_tokens_that_it_was_said_in(
    spelt: list[int], more: list[int], draw: random.Random
) -> None:
    def spelling() -> list[int]:
        return [part for id in spelt for part in (LETTERS[id] if draw.random() < 0.5 else [id])]

    said = ids(spelling())
    found = as_said(ids([*spelling(), *more]), said, PIECES.__getitem__)
    assert found.tolist()[: len(said)] == said.tolist()


def test_tokens_are_taken_up_to_where_both_texts_end_one() -> None:
    def taken(prompt: list[int], said: list[int]) -> list[int]:
        return as_said(ids(prompt), ids(said), PIECES.__getitem__).tolist()

    assert taken([3, 2, 1], [1, 2, 2, 2]) == [1, 2, 2, 1], "ab·b·a as a·b·b·a"
    assert taken([5, 1], [1, 2]) == [5, 1], "aba·a is not begun by a·b: it ends within a token"
    assert taken([3], [1]) == [3]
    assert taken([1, 2], [3]) == [3]


def test_a_control_token_is_like_itself_alone() -> None:
    assert as_said(ids([0, 1]), ids([6, 1]), PIECES.__getitem__).tolist() == [0, 1]
    assert as_said(ids([3, 0, 3]), ids([1, 2, 0, 1, 2]), PIECES.__getitem__).tolist() == [1, 2, 0, 1, 2]
    assert as_said(ids([3, 0, 3]), ids([1, 2, 1, 2]), PIECES.__getitem__).tolist() == [1, 2, 0, 3]
