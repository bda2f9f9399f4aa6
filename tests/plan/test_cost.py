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


@given(NEEDS, LINKS, st.lists(st.integers(0, 10**8), min_size=1, max_size=8))
def test_floor_is_what_trying_every_head_of_every_number_of_layers_finds(
    need: Need, link: Link, group_bytes: list[int]
) -> None:
    need = replace(need, context_bytes=sum(group_bytes))
    whole, floor = floor_s(need, link), floor_s(replace(need, group_bytes=tuple(group_bytes)), link)
    tried = [by_trying(need, link, 200)]
    for count in range(1, len(group_bytes)):
        share = count / len(group_bytes)
        for i in range(201) if link.bytes_s > 0 else ():
            done = share + (1 - share) * i / 200
            rest_bytes = sum(group_bytes[count:]) * (1 - i / 200)
            compute_s = done * need.context_tokens / need.prefill_tokens_s
            tried.append(max(compute_s + need.prompt_s, link.rtt_s + rest_bytes / link.bytes_s))
    assert floor <= whole * (1 + 1e-9)
    if need.context_tokens:
        assert floor <= min(tried) * (1 + 1e-9) + 1e-12
        step_s = need.context_tokens / 200 / need.prefill_tokens_s
        step_s += need.context_bytes / 200 / link.bytes_s if link.bytes_s else 0
        assert min(tried) <= floor + step_s + 1e-9


def test_layers_that_have_the_same_bytes_lower_no_floor() -> None:
    need, link = Need(1000, 4_000_000, 250.0, 0.13), Link(1.25e6, 0.02)
    alike = replace(need, group_bytes=(1_000_000,) * 4)
    heavy, light = (
        replace(need, group_bytes=(3_000_000, *(333_333,) * 3)),
        replace(need, group_bytes=(0, 0, 0, 4_000_000)),
    )
    assert floor_s(alike, link) == pytest.approx(floor_s(need, link)) == floor_s(light, link)
    assert floor_s(heavy, link) == pytest.approx(1.13, abs=0.01)


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
