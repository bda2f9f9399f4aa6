"""The window of requests: order, bounds, failure and giving up. Sources here are gated by events, not by time."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData
from preread.store.fetch import fetch_all, in_flight_for
from preread.values import ObjectRef
from preread.wire.digest import object_id


def ref(index: int, size_bytes: int = 10) -> ObjectRef:
    return ObjectRef("segments", object_id(index.to_bytes(4, "big")), size_bytes)


class Gated:
    """Every request waits until it is let through; records what was asked for and what was cancelled."""

    def __init__(self) -> None:
        self.asked: list[ObjectRef] = []
        self.cancelled: list[ObjectRef] = []
        self.doors: dict[ObjectRef, asyncio.Future[bytes]] = {}

    async def get(self, ref: ObjectRef) -> bytes:
        self.asked.append(ref)
        self.doors[ref] = asyncio.get_running_loop().create_future()
        try:
            return await self.doors[ref]
        except asyncio.CancelledError:
            self.cancelled.append(ref)
            raise

    def open(self, ref: ObjectRef) -> None:
        self.doors[ref].set_result(bytes(ref.size_bytes))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    while not condition():
        await asyncio.sleep(0)


async def turns() -> None:
    """Let everything that could happen by now happen."""
    for _ in range(20):
        await asyncio.sleep(0)


class Instant:
    async def get(self, ref: ObjectRef) -> bytes:
        await asyncio.sleep(0)
        return ref.id.encode()


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9), st.integers(1, 200))
def test_everything_arrives_once(sizes: list[int], in_flight: int, in_flight_bytes: int) -> None:
    refs = [ref(index, size) for index, size in enumerate(sizes)]

    async def main() -> list[tuple[int, bytes]]:
        found = fetch_all(Instant(), refs, in_flight=in_flight, in_flight_bytes=in_flight_bytes)
        async with asyncio.timeout(5):
            return [pair async for pair in found]

    assert sorted(asyncio.run(main())) == [(index, one.id.encode()) for index, one in enumerate(refs)]


def test_requests_start_in_order_and_are_bounded_in_number() -> None:
    async def main() -> None:
        source, refs = Gated(), [ref(index) for index in range(5)]
        async with aclosing(fetch_all(source, refs, in_flight=2)) as found:
            first = asyncio.create_task(anext(found))
            await turns()
            assert source.asked == refs[:2]
            source.open(refs[1])
            assert (await first)[0] == 1
            await turns()
            assert source.asked == refs[:3]

    asyncio.run(main())


def test_bytes_that_nobody_took_count() -> None:
    async def main() -> None:
        source, refs = Gated(), [ref(index, 40) for index in range(4)]
        async with aclosing(fetch_all(source, refs, in_flight=4, in_flight_bytes=100)) as found:
            first = asyncio.create_task(anext(found))
            await turns()
            assert source.asked == refs[:2]
            source.open(refs[0])
            source.open(refs[1])
            assert (await first)[0] == 0
            await turns()
            assert source.asked == refs[:2], "80 bytes wait to be taken"
            second = asyncio.create_task(anext(found))
            assert (await second)[0] == 1
            await turns()
            assert source.asked == refs[:3], "taking the first made room for one more"

    asyncio.run(main())


def test_new_requests_start_while_the_consumer_is_busy() -> None:
    async def main() -> None:
        source, refs = Gated(), [ref(index) for index in range(4)]
        async with aclosing(fetch_all(source, refs, in_flight=1)) as found:
            first = asyncio.create_task(anext(found))
            await until(lambda: source.asked == refs[:1])
            source.open(refs[0])
            await first
            await until(lambda: source.asked == refs[:2])
            source.open(refs[1])
            await until(lambda: source.asked == refs[:3])
            assert source.asked == refs[:3], "nobody has taken the second one"

    asyncio.run(main())


def test_an_object_larger_than_the_window_goes_alone() -> None:
    async def main() -> None:
        source, refs = Gated(), [ref(0, 500), ref(1, 10)]
        async with aclosing(fetch_all(source, refs, in_flight_bytes=100)) as found:
            first = asyncio.create_task(anext(found))
            await turns()
            assert source.asked == refs[:1]
            source.open(refs[0])
            await first

    asyncio.run(main())


def test_the_first_failure_is_raised_before_what_waits_and_cancels_the_rest() -> None:
    async def main() -> None:
        source, refs = Gated(), [ref(index) for index in range(5)]
        found = fetch_all(source, refs, in_flight=4)
        first = asyncio.create_task(anext(found))
        await turns()
        source.open(refs[0])
        await first
        source.open(refs[1])
        source.doors[refs[2]].set_exception(CorruptData("digest", "bad"))
        await turns()
        source.doors[refs[3]].set_exception(CorruptData("length", "also bad, but later"))
        await turns()
        with pytest.raises(CorruptData, match="digest"):
            await anext(found)
        assert source.cancelled == [refs[4]]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_closing_cancels_everything_before_it_returns() -> None:
    async def main() -> None:
        source, refs = Gated(), [ref(index) for index in range(8)]
        found = fetch_all(source, refs, in_flight=3)
        first = asyncio.create_task(anext(found))
        await turns()
        source.open(refs[0])
        await first
        await turns()
        await found.aclose()
        assert set(source.cancelled) == set(refs[1:4])
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_window_covers_the_bandwidth_delay_product() -> None:
    assert in_flight_for(125e6, 0.08, 140e3) == 64
    assert in_flight_for(12.5e6, 0.08, 140e3) == 9
    assert in_flight_for(1e5, 0.001, 140e3) == 2
