"""Requests for one object are one request. Sources here are gated by events, not by time."""

import asyncio

import pytest

from preread.errors import RemoteError
from preread.store.collapse import Collapsed
from preread.values import ObjectRef
from preread.wire.digest import object_id

REF, OTHER = (ObjectRef("segments", object_id(name), 1) for name in (b"a", b"b"))


class Gated:
    def __init__(self) -> None:
        self.asked: list[ObjectRef] = []
        self.cancelled = 0
        self.door: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def get(self, ref: ObjectRef) -> bytes:
        self.asked.append(ref)
        try:
            return await asyncio.shield(self.door)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_request_for_many() -> None:
    async def main() -> None:
        source = Gated()
        collapsed = Collapsed(source)
        waiting = [asyncio.create_task(collapsed.get(ref)) for ref in (REF, REF, OTHER)]
        await turns()
        assert source.asked == [REF, OTHER]
        source.door.set_result(b"x")
        assert await asyncio.gather(*waiting) == [b"x"] * 3
        assert await collapsed.get(REF) == b"x" and len(source.asked) == 3

    asyncio.run(main())


def test_given_up_when_the_last_one_goes() -> None:
    async def main() -> None:
        source = Gated()
        collapsed = Collapsed(source)
        first, second = (asyncio.create_task(collapsed.get(REF)) for _ in "ab")
        await turns()
        first.cancel()
        await turns()
        assert source.cancelled == 0 and not second.done()
        second.cancel()
        await turns()
        assert source.cancelled == 1
        again = asyncio.create_task(collapsed.get(REF))
        await turns()
        source.door.set_result(b"x")
        assert await again == b"x"

    asyncio.run(main())


def test_a_failure_is_everybodys_and_is_not_remembered() -> None:
    async def main() -> None:
        source = Gated()
        collapsed = Collapsed(source)
        waiting = [asyncio.create_task(collapsed.get(REF)) for _ in "ab"]
        await turns()
        source.door.set_exception(RemoteError("gone"))
        assert [str(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == ["gone"] * 2
        with pytest.raises(RemoteError):
            await collapsed.get(REF)
        assert len(source.asked) == 2

    asyncio.run(main())
