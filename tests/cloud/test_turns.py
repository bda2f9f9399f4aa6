"""The line of those who wait: one at a time, in order, whoever leaves."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from preread.cloud.events import Priority
from preread.cloud.turns import Turns, place


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


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["interactive", "background"]), st.integers(0, 7)), max_size=14),
    st.integers(1, 4),
)
def test_so_many_have_their_turn_at_once_and_nobody_waits_behind_the_background(
    steps: list[tuple[bool, Priority, int]], width: int
) -> None:
    async def main() -> None:
        turns, inside, coming = Turns(width=width), list[int](), dict[int, tuple[Priority, asyncio.Task[None]]]()
        places: dict[int, list[int]] = {}

        async def work(me: int, priority: Priority) -> None:
            async with turns.turn(str(me), 1, places.setdefault(me, []).append, priority):
                waiting = [who for who, (urgency, _) in coming.items() if who not in inside and who != me]
                assert priority == "interactive" or all(coming[who][0] == "background" for who in waiting)
                inside.append(me)
                try:
                    await asyncio.Event().wait()
                finally:
                    inside.remove(me)

        for come, priority, which in steps:
            if come:
                me = len(places)
                places[me] = []
                coming[me] = priority, asyncio.create_task(work(me, priority))
            elif coming:
                me = list(coming)[which % len(coming)]
                task = coming.pop(me)[1]
                task.cancel()
                await asyncio.wait([task])
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(inside) == min(width, len(coming))
            waiting = sorted(
                (who for who in coming if who not in inside), key=lambda who: (coming[who][0] == "background", who)
            )
            assert [places[who][-1] for who in waiting] == list(range(1, len(waiting) + 1))
        for _, task in coming.values():
            task.cancel()
        await asyncio.gather(*[task for _, task in coming.values()], return_exceptions=True)

    asyncio.run(main())


@given(st.lists(st.sampled_from(["interactive", "background"])), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_a_place_is_behind_what_has_begun_and_all_that_is_as_urgent(
    begun: list[Priority], urgent: int, others: int, background: bool
) -> None:
    line: list[Priority] = [*begun, *(["interactive"] * urgent), *(["background"] * others)]  # type: ignore[list-item]
    at = place(line, len(begun), "background" if background else "interactive")
    assert at == len(begun) + urgent + (others if background else 0)
