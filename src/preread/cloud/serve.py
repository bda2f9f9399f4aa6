"""The publisher of a running cloud: one engine, one store, the rungs to publish in."""

import asyncio
import threading
from contextlib import suppress
from typing import Literal

import numpy as np

from preread.cloud.events import Published
from preread.cloud.publish import Report, publish, read_document
from preread.engine.llamacpp import LlamaCpp
from preread.errors import Cancelled
from preread.store.objects import Objects
from preread.values import Form

_ASK_AGAIN_S = 0.05


class EnginePublisher:
    """Publishes documents one at a time, as `preread.cloud.app.Publisher` wants it."""

    def __init__(self, engine: LlamaCpp, store: Objects, rungs: tuple[str, ...]) -> None:
        self._engine, self._store, self._rungs = engine, store, rungs

    async def __call__(
        self,
        name: str,
        text: str | None,
        tokens: list[int] | None,
        form: Form | Literal["auto"],
        progress: Report,
    ) -> Published:
        """Publish a document. A cancelled call ends when the engine has, and then nothing was published.

        Raises:
            UsageError, EngineError, RemoteError: as `read_document` and `publish` do.
        """
        given_up = threading.Event()

        def report(stage: str, done: int, total: int) -> None:
            if given_up.is_set():
                raise Cancelled(f"publishing {name!r} was given up")
            progress(stage, done, total)

        publishing = asyncio.ensure_future(self._publish(name, text, tokens, form, report))
        try:
            return await asyncio.shield(publishing)
        except asyncio.CancelledError:
            given_up.set()
            await self._end(publishing)
            raise

    async def _publish(
        self, name: str, text: str | None, tokens: list[int] | None, form: Form | Literal["auto"], report: Report
    ) -> Published:
        ids = None if tokens is None else np.array(tokens, np.int32)
        read, form = await asyncio.to_thread(read_document, self._engine, text, ids, form)
        return await publish(self._store, self._engine, name, read, form, self._rungs, report)

    async def _end(self, publishing: asyncio.Future[Published]) -> None:
        """Wait until the engine is free, asking it to be; it may not hear before it has begun."""
        while not publishing.done():
            self._engine.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([publishing], timeout=_ASK_AGAIN_S)
        publishing.exception()  # taken, so that asyncio does not report it
