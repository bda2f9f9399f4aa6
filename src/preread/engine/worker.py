"""One thread in which the engine works, and how the event loop speaks with it.

llama.cpp blocks for as long as it computes and wants to be called by one thread at a time.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_ASK_AGAIN_S = 0.05


class _End:
    """Marks the end of a stream, with the exception that ended it, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Worker:
    """Runs calls one after the other in its own thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def run(self, call: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
        """The result of `call()`. When the caller gives up waiting, `stop()` is called, and the call's end awaited."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await _end(future, stop)
            raise

    def soon(self, call: Callable[[], None]) -> None:
        """Run `call()`, which must not raise, when the thread is free; nobody waits for it."""
        self._pool.submit(call)

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

        producing = loop.run_in_executor(self._pool, produce)
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
        """Wait for the thread to end."""
        self._pool.shutdown()


async def _end(future: asyncio.Future[T], stop: Callable[[], None] | None) -> None:
    """Wait for a call to end, asking it to. A call that has only just begun may not hear the first time."""
    while not future.done():
        if stop is not None:
            stop()
        await asyncio.wait([future], timeout=_ASK_AGAIN_S)
    if not future.cancelled():
        future.exception()  # taken, so that asyncio does not report it
