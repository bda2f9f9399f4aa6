"""The line of those who wait: one at a time, in order, whoever leaves."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from preread.cloud.turns import Turns


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=12))
def test_turns_are_taken_one_at_a_time_in_order_whoever_leaves(steps: list[tuple[bool, int]]) -> None:
    """A step is somebody who comes (True), or one of those in the line who leaves or ends."""

    async def main() -> None:
        turns, inside, began, ended = Turns(), list[int](), list[int](), list[int]()
        places: dict[int, list[int]] = {}
        line: list[tuple[int, asyncio.Task[None]]] = []

        async def work(me: int) -> None:
            async with turns.turn(str(me), 1, places.setdefault(me, []).append):
                assert not inside
                inside.append(me)
                began.append(me)
                try:
                    await asyncio.Event().wait()
                finally:
                    inside.remove(me)
                    ended.append(me)

        for come, which in steps:
            if come:
                line.append((len(places), asyncio.create_task(work(len(places)))))
            elif line:
                _, task = line.pop(which % len(line))
                task.cancel()
                await asyncio.wait([task])
            for _ in range(3):
                await asyncio.sleep(0)
            assert inside == [me for me, _ in line[:1]]
            assert all(places[me][-1] == ahead for ahead, (me, _) in enumerate(line) if places[me])
        assert began == sorted(began)
        for _, task in reversed(line):
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(main())
