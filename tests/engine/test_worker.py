"""Threads of their own: what is asked for ends before whoever asked goes on, cancelled or not."""

import asyncio
import threading
from contextlib import closing

import pytest

from preread.engine.worker import Worker
from preread.errors import EngineError


class Call:
    """A call that says when it has begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), False

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(20)
        self.ended = True
        return "done"


async def begun(*calls: Call) -> None:
    for call in calls:
        assert await asyncio.to_thread(call.begun.wait, 20)


def test_a_thread_does_one_call_after_the_other_and_two_do_two_at_once() -> None:
    async def run() -> None:
        first, second, third = Call(), Call(), Call()
        with closing(Worker("test", threads=2)) as worker:
            tasks = [asyncio.create_task(worker.run(call)) for call in (first, second, third)]
            await begun(first, second)
            assert not third.begun.is_set() and worker.threads == 2
            for call in (first, second, third):
                call.go_on.set()
            assert await asyncio.gather(*tasks) == ["done"] * 3

    asyncio.run(run())


def test_what_was_not_begun_when_nobody_wants_it_any_more_never_is() -> None:
    async def run() -> None:
        first, second = Call(), Call()
        with closing(Worker()) as worker:
            tasks = [asyncio.create_task(worker.run(call)) for call in (first, second)]
            await begun(first)
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            first.go_on.set()
            assert await tasks[0] == "done"
            assert await worker.run(lambda: second.begun.is_set()) is False

    asyncio.run(run())


def test_who_gives_up_waiting_goes_on_when_the_call_has_ended() -> None:
    async def run() -> None:
        call = Call()
        with closing(Worker()) as worker:
            task = asyncio.create_task(worker.run(call, call.go_on.set))
            await begun(call)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert call.ended

    asyncio.run(run())


def test_who_gives_up_twice_waits_all_the_same() -> None:
    async def run() -> None:
        call = Call()
        with closing(Worker()) as worker:
            task = asyncio.create_task(worker.run(call))
            await begun(call)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            call.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert call.ended

    asyncio.run(run())


def test_an_error_is_raised_where_the_call_is_waited_for() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async def run() -> None:
        worker = Worker()
        with pytest.raises(ZeroDivisionError):
            await worker.run(fail)
        worker.close()
        with pytest.raises(EngineError, match="closed"):
            await worker.run(lambda: None)

    asyncio.run(run())
