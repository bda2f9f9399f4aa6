import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.match import PrefixIndex, prefix_index
from preread.values import ContextId

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
