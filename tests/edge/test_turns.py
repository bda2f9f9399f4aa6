"""One request at a time has its turn, whoever comes, ends, or goes away in whatever order."""

import asyncio
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from preread.edge.turns import Turns

ACTIONS = st.lists(st.tuples(st.sampled_from(["come", "end", "leave", "run"]), st.integers(0, 3)), max_size=40)


def test_who_ends_does_not_meet_the_one_who_gave_up_at_that_moment() -> None:
    async def story() -> list[str]:
        turns, served, release = Turns(), [], asyncio.Event()

        async def has(name: str, until: asyncio.Event | None = None) -> None:
            async with turns.turn(name):
                served.append(name)
                if until is not None:
                    await until.wait()

        first = asyncio.create_task(has("first", release))
        await asyncio.sleep(0)
        gone, third = asyncio.create_task(has("gone")), asyncio.create_task(has("third"))
        await asyncio.sleep(0)
        release.set()
        gone.cancel()  # `first` goes on before it hears
        await asyncio.wait([first, gone, third], timeout=60)
        assert first.exception() is None and third.exception() is None and gone.cancelled()
        return served

    assert asyncio.run(story()) == ["first", "third"]


@settings(max_examples=300)
@given(ACTIONS)
@example([("come", 0), ("come", 1), ("end", 0), ("leave", 1)])
def test_nobody_is_lost_or_served_beside_another(actions: Sequence[tuple[str, int]]) -> None:
    async def story() -> None:
        turns, inside, ends = Turns(), 0, []
        tasks: list[asyncio.Task[None]] = []

        async def has(caller: str, end: asyncio.Event) -> None:
            nonlocal inside
            async with turns.turn(caller):
                inside += 1
                assert inside == 1
                try:
                    await end.wait()
                finally:
                    inside -= 1

        for action, which in actions:
            if action == "come":
                ends.append(asyncio.Event())
                tasks.append(asyncio.create_task(has("abc"[which % 3], ends[-1])))
                await asyncio.sleep(0)
            elif action == "run":
                await asyncio.sleep(0)
            elif tasks and action == "end":
                ends[which % len(ends)].set()
            elif tasks:
                tasks[which % len(tasks)].cancel()
        for end in ends:
            end.set()
        if tasks:
            await asyncio.wait(tasks, timeout=60)
        assert all(task.done() for task in tasks), "somebody waits for ever"
        for task in tasks:
            assert task.cancelled() or task.exception() is None

    asyncio.run(story())
