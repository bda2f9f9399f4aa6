"""A thread of its own for work that blocks, and how the event loop speaks with it.

llama.cpp blocks for as long as it computes and wants to be called by one thread at a time. Texts are tokenised in
another such thread, and it must have ended before the model is freed: a thread of asyncio's pool cannot be waited for.
"""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Final, TypeVar

from preread.errors import EngineError

T = TypeVar("T")

LOW: Final = 10
"""Niceness of a thread that computes when processors have little else to do (Linux)."""

_ASK_AGAIN_S = 0.05


class _End:
    """Marks the end of a stream, with the exception that ended it, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Worker:
    """Runs calls one after the other in its own thread; `name` and `niceness` are the thread's.

    Attributes:
        threads: so many it has; one, but where calls may be run at once.
    """

    def __init__(self, name: str = "engine", niceness: int = 0, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=lambda: _be_nice(niceness))
        self.threads, self._closing = threads, False

    async def run(self, call: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
        """The result of `call()`.

        When the caller gives up waiting, a call that has not begun never does; otherwise `stop()` is called, and the
        call's end awaited.

        Raises:
            EngineError: the worker was closed before the call began.
        """

        def begun() -> T:
            if self._closing:
                raise _closed()
            return call()

        job = self._submit(begun)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancel() and not job.done():
                await _end(asyncio.wrap_future(job), stop)
            raise

    def soon(self, call: Callable[[], None]) -> None:
        """Run `call()`, which must not raise, when the thread is free; nobody waits for it."""
        self._submit(call)

    async def stream(self, make: Callable[[], Iterator[T]], stop: Callable[[], None]) -> AsyncGenerator[T, None]:
        """The items of the iterator that `make()` returns, made and advanced in the thread, as they come.

        When the consumer closes the stream early, `stop()` is called (in the event loop; it should make a long step end
        soon), no further item is asked for, and closing returns when the thread is free again.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T | _End] = asyncio.Queue()
        closed = False

        def hand_over(item: T | _End) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        def produce() -> None:
            try:
                for item in make():
                    if closed:
                        break
                    hand_over(item)
            except BaseException as error:  # it is raised again where the stream is consumed
                hand_over(_End(error))
            else:
                hand_over(_End(None))

        producing = asyncio.wrap_future(self._submit(produce))
        try:
            while True:
                item = await items.get()
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            closed = True
            await _end(producing, stop)

    def close(self) -> None:
        """Wait for the thread to end. Calls of `run` that have not begun fail."""
        self._closing = True
        self._pool.shutdown()

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        if self._closing:
            raise _closed()
        return self._pool.submit(call)


@asynccontextmanager
async def within(worker: Worker, opening: AbstractContextManager[T]) -> AsyncGenerator[T, None]:
    """What a context manager gives; it is entered and left in the worker's thread."""
    opened = await worker.run(opening.__enter__)
    try:
        yield opened
    finally:
        await worker.run(lambda: opening.__exit__(None, None, None))


def _be_nice(niceness: int) -> None:
    if niceness and sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _closed() -> EngineError:
    return EngineError("the engine is being closed")


async def _end(future: asyncio.Future[T], stop: Callable[[], None] | None) -> None:
    """Wait for a call to end, asking it to, however often this is cancelled; that is raised then.

    A call that has only just begun may not hear the first time.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        if stop is not None:
            stop()
        try:
            await asyncio.wait([future], timeout=_ASK_AGAIN_S)
        except asyncio.CancelledError as error:
            cancelled = error
    if not future.cancelled():
        future.exception()  # taken, so that asyncio does not report it
    if cancelled is not None:
        raise cancelled
