import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preread.edge.offload import Offload
from preread.values import ContextId, KVBlock, Span


def block(tokens: int) -> KVBlock:
    rows = np.zeros((1, 1, tokens, 1), np.float16)  # 4 bytes a token, K and V together
    return KVBlock(Span(0, tokens), Span(0, 1), rows, rows)


A, B, C = (ContextId(name) for name in "abc")


def test_the_least_recently_used_makes_room() -> None:
    offload = Offload(40)
    offload.put(A, block(4))
    offload.put(B, block(4))
    taken = offload.take(A)
    assert len(taken) == 1
    offload.put(A, *taken)
    offload.put(C, block(4))
    assert [name in offload for name in (A, B, C)] == [True, False, True]


def test_taking_down_removes() -> None:
    offload = Offload(40)
    offload.put(A, block(4))
    assert offload.take(A)
    assert A not in offload and not offload.take(A)


def test_what_is_larger_than_the_room_is_not_kept() -> None:
    offload = Offload(10)
    assert not offload.takes(12)
    offload.put(A, block(3))
    assert A not in offload


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 12), st.booleans())))
def test_never_holds_more_than_there_is_room_for(steps: list[tuple[ContextId, int, bool]]) -> None:
    offload, held = Offload(40), dict[ContextId, int]()
    for name, tokens, put in steps:
        if put:
            offload.put(name, block(tokens))
            held[name] = 4 * tokens
        else:
            offload.take(name)
        held = {name: size for name, size in held.items() if name in offload}
        assert sum(held.values()) == offload._used_bytes <= 40
