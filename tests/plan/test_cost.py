from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.plan.cost import Coming, Link, Need, break_even_bytes_s, floor_in_order_s, floor_s, load_s, local_s

NEEDS = st.builds(
    Need,
    context_tokens=st.integers(0, 10_000),
    context_bytes=st.integers(0, 10**9),
    prefill_tokens_s=st.floats(1, 1e5),
    prompt_s=st.floats(0, 10),
)
LINKS = st.builds(Link, bytes_s=st.floats(0, 1e9), rtt_s=st.floats(0, 2))


def by_trying(need: Need, link: Link, heads: int) -> float:
    """The floor's definition in design: the least over heads of computing the head or loading the rest."""
    if link.bytes_s <= 0:
        return local_s(need)
    tried = [local_s(need)]
    for i in range(heads + 1):
        head = need.context_tokens * i / heads
        rest = (need.context_tokens - head) / need.context_tokens * need.context_bytes if need.context_tokens else 0
        tried.append(max(head / need.prefill_tokens_s + need.prompt_s, link.rtt_s + rest / link.bytes_s))
    return min(tried)


@given(NEEDS, LINKS)
def test_floor_is_what_trying_every_head_finds(need: Need, link: Link) -> None:
    floor, tried = floor_s(need, link), by_trying(need, link, 500)
    assert floor <= tried * (1 + 1e-9) + 1e-12
    if need.context_tokens:
        step_s = need.context_tokens / 500 / need.prefill_tokens_s
        step_s += need.context_bytes / 500 / link.bytes_s if link.bytes_s else 0
        assert tried <= floor + step_s + 1e-9


@given(NEEDS, LINKS)
def test_floor_is_below_every_way_there_is(need: Need, link: Link) -> None:
    floor = floor_s(need, link)
    assert floor <= local_s(need) * (1 + 1e-9)
    if need.context_tokens:
        assert floor <= max(need.prompt_s, load_s(need, link)) * (1 + 1e-9)


@given(NEEDS, LINKS)
def test_floor_in_order_lets_no_layer_go_before_what_it_reads(need: Need, link: Link) -> None:
    ordered = floor_in_order_s(need, link)
    assert floor_s(need, link) * (1 - 1e-9) <= ordered <= local_s(need) * (1 + 1e-9)
    if ordered < local_s(need):  # something is loaded
        assert ordered >= link.rtt_s + need.prompt_s


def test_figures_of_a_link_that_is_known() -> None:
    # 1,000 tokens at 3,400 bytes over 100 Mbit/s and 20 ms; 250 tokens/s here; prompt 0.13 s
    need, link = Need(1000, 3_400_000, 250.0, 0.13), Link(12.5e6, 0.02)
    assert local_s(need) == pytest.approx(4.13)
    assert load_s(need, link) == pytest.approx(0.292)
    assert floor_s(need, link) == pytest.approx(0.2817, abs=1e-3)
    assert floor_in_order_s(need, link) == floor_s(need, link)  # the load takes longer than the prompt
    assert floor_in_order_s(need, Link(125e6, 0.08)) == pytest.approx(0.21)


def test_nothing_can_be_loaded_from_a_dead_link() -> None:
    need = Need(1000, 1000, 100.0, 0.5)
    assert load_s(need, Link(0, 0.02)) == float("inf")
    assert floor_s(need, Link(0, 0.02)) == local_s(need)
    assert floor_s(Need(0, 0, 100.0, 0.5), Link(0, 0)) == 0.5


def test_break_even() -> None:
    assert break_even_bytes_s(250, 12_288) == 3_072_000


def test_what_comes_is_as_late_as_the_wire_or_the_decoder_whichever_takes_longer() -> None:
    coming = Coming(bytes_s=1e6, first_s=0.1, partly_bytes=100_000, decode_bytes_s=1e7, cell_bytes=20_000)
    assert coming.seconds(1_100_000, 1_100_000) == pytest.approx(0.1 + 1.0 + 0.002)
    assert coming.seconds(20_000_000, 50_000) == pytest.approx(2.0), "most of it is here, and waits to be decoded"
    assert coming.seconds(20_000_000, 0) == pytest.approx(2.0)
    dead = replace(coming, bytes_s=0.0)
    assert dead.seconds(1000, 1) == float("inf") and dead.seconds(1000, 0) == pytest.approx(1e-4)
