"""One request for one object at a time: whoever asks for what is under way waits for the same answer.

It knows who waits; it must not know where objects come from or what they are.
"""

import asyncio

from preread.store.fetch import Source
from preread.values import ObjectRef


class Collapsed:
    """A source that is asked once however many ask. A request is given up when nobody waits for it any more."""

    def __init__(self, source: Source[ObjectRef, bytes]) -> None:
        self._source = source
        self._under_way: dict[ObjectRef, asyncio.Task[bytes]] = {}
        self._waiting: dict[asyncio.Task[bytes], int] = {}

    async def get(self, ref: ObjectRef) -> bytes:
        """As the source's `get`; a failure is that of everybody who waits."""
        task = self._under_way.get(ref)
        if task is None:
            task = self._under_way[ref] = asyncio.create_task(self._source.get(ref))
            task.add_done_callback(lambda done: self._landed(ref, done))
            self._waiting[task] = 0
        self._waiting[task] += 1
        try:
            await asyncio.wait([task])  # which leaves the task alone when this waiter is cancelled
            return task.result()
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                if not task.done():
                    del self._under_way[ref]
                    task.cancel()

    def _landed(self, ref: ObjectRef, task: asyncio.Task[bytes]) -> None:
        if self._under_way.get(ref) is task:
            del self._under_way[ref]
        if not task.cancelled():
            task.exception()  # taken, so that asyncio does not report one that nobody waits for
