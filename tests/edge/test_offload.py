import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.edge.shelf import Shelf
from preread.values import ContextId, KVBlock, Span


def block(tokens: int) -> KVBlock:
    rows = np.zeros((1, 1, tokens, 1), np.float16)  # 4 bytes a token, K and V together
    return KVBlock(Span(0, tokens), Span(0, 1), rows, rows)


A, B, C = (ContextId(name) for name in "abc")


def test_the_least_recently_used_makes_room() -> None:
    shelf = Shelf(40)
    shelf.put(A, block(4))
    shelf.put(B, block(4))
    taken = shelf.take(A)
    assert taken is not None
    shelf.put(A, taken)
    shelf.put(C, block(4))
    assert [name in shelf for name in (A, B, C)] == [True, False, True]


def test_taking_down_removes() -> None:
    shelf = Shelf(40)
    shelf.put(A, block(4))
    assert shelf.take(A) is not None
    assert A not in shelf and shelf.take(A) is None


def test_what_is_larger_than_the_shelf_is_not_put_up() -> None:
    shelf = Shelf(10)
    assert not shelf.takes(12)
    shelf.put(A, block(3))
    assert A not in shelf


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 12), st.booleans())))
def test_never_holds_more_than_there_is_room_for(steps: list[tuple[ContextId, int, bool]]) -> None:
    shelf, held = Shelf(40), dict[ContextId, int]()
    for name, tokens, put in steps:
        if put:
            shelf.put(name, block(tokens))
            held[name] = 4 * tokens
        else:
            shelf.take(name)
        held = {name: size for name, size in held.items() if name in shelf}
        assert sum(held.values()) == shelf._used_bytes <= 40
