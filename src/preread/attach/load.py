"""A context's KV on its way into a slot file: fetched, verified and decoded as an edge does, and computed by nobody.

Chunk after chunk, so that what has come when a link breaks is a beginning, which the server goes on from.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from anyio import to_thread

from preread.attach.pace import Progress, worth_waiting
from preread.attach.slot_file import Bytes, Form
from preread.edge.load import LoadSpec, Segments, decoded
from preread.edge.sources import Sources
from preread.errors import PrereadError
from preread.wire.manifest import SegmentPlace

_IN_FLIGHT: Final = 16
_LOOK_S: Final = 0.05
_log = logging.getLogger(__name__)


class Load:
    """One load.

    Args:
        what: the segments.
        sources: where they come from.
        form: of the server's slot files.
        file: the frame of one for all of the context's tokens; its rows are written.
        decoders: so many segments may be decoded at once, of all loads.
        compute_s: what the server takes for a number of tokens.

    Attributes:
        failure: why it ended before all was there; None: it did not.
        came_bytes, took_s: what came from outside, and how long that took.
    """

    def __init__(
        self,
        what: LoadSpec,
        sources: Sources,
        form: Form,
        file: Bytes,
        decoders: asyncio.Semaphore,
        compute_s: Callable[[int], float],
    ) -> None:
        self._what, self._sources, self._form, self._file = what, sources, form, file
        self._decoders, self._compute_s = decoders, compute_s
        self._count = what.manifest.tokens.count
        self._left = sorted(what.places, key=lambda place: (-place.chunk, -place.group))  # taken from the end
        self._missing = Counter(place.chunk for place in what.places)
        self.failure: str | None = None
        self.came_bytes, self.took_s = 0, 0.0

    async def run(self) -> int:
        """Bring as much as is worth waiting for; how many tokens of the context's beginning are whole.

        Raises:
            PrereadError: the profile that decoding takes cannot be made ready.
        """
        began_s, supplies = time.monotonic(), self._sources.supplies()
        before = [supply.received_bytes for supply in supplies]
        workers = [asyncio.create_task(self._work()) for _ in range(min(_IN_FLIGHT, len(self._left)))]
        ready = asyncio.create_task(to_thread.run_sync(self._what.codec.ready))
        tasks = [*workers, ready]
        try:
            while (pending := [task for task in tasks if not task.done()]) and self.failure is None:
                await asyncio.wait(pending, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                self.took_s = time.monotonic() - began_s
                self.came_bytes = sum(supply.received_bytes - was for supply, was in zip(supplies, before, strict=True))
                missing_s = self._compute_s(self._count - self.whole_tokens)
                progress = Progress(self.took_s, self.came_bytes, self._what.size_bytes, missing_s)
                if self.whole_tokens < self._count and not worth_waiting(progress):
                    self.failure = f"the server computes it sooner than it comes ({self.came_bytes} bytes came)"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if ready.done() and not ready.cancelled():
            ready.result()
        return self.whole_tokens

    @property
    def whole_tokens(self) -> int:
        """Of the context's beginning, as many as have all their rows."""
        chunks = self._what.manifest.chunks
        return next((start for chunk, (start, _) in enumerate(chunks) if self._missing[chunk]), self._count)

    async def _work(self) -> None:
        segments = Segments(self._sources)
        while self._left and self.failure is None:
            place = self._left.pop()
            try:
                frames = await segments.get(place)
                async with self._decoders:
                    await to_thread.run_sync(self._put, place, frames)
            except PrereadError as error:
                self.failure = str(error)
                return
            except Exception as error:
                _log.exception("a segment failed in a way that nobody foresaw")
                self.failure = str(error)
                return
            self._missing[place.chunk] -= 1

    def _put(self, place: SegmentPlace, frames: list[bytes]) -> None:
        self._form.put(self._file, self._count, decoded(self._what, place, frames))
