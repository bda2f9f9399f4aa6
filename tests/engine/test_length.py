from hypothesis import given
from hypothesis import strategies as st

from preread.engine.length import at_least


@given(st.integers(0, 4000), st.integers(1, 100), st.integers(1, 9))
def test_only_what_is_too_long_is_said_to_be_and_no_more_is_read_than_tells_it(
    characters: int, most: int, per_token: int
) -> None:
    read: list[int] = []

    def tokenize(text: str) -> range:
        read.append(len(text))
        return range(-(-len(text) // per_token))

    found, tokens = at_least("x" * characters, most, tokenize), -(-characters // per_token)
    assert found is None or most < found <= tokens
    assert found is not None or tokens <= 4 * most + 1 or not read or max(read) >= characters // 2
    assert sum(read) <= 2 * characters and sum(read) <= 8 * most * (per_token + 4)


def test_a_text_that_fits_is_not_read_at_all() -> None:
    assert at_least("a" * 400, 100, lambda _: 1 / 0) is None  # type: ignore[arg-type, return-value]
