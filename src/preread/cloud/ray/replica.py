"""One process of a cloud that has many: a model, and the store that it makes contexts in.

It makes one context at a time, and tells how far it is; putting names is the cloud's. It must not know Ray, which
starts it and calls it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

import msgspec

from preread.cloud.app import Counter
from preread.cloud.events import Progress, Published, Request
from preread.cloud.publish import Owner, Report
from preread.cloud.ray import messages
from preread.errors import PrereadError
from preread.store.objects import Objects, open_store
from preread.values import Fingerprint

_log = logging.getLogger(__name__)


Make = Callable[[Request, Report, Owner], Coroutine[None, None, Published]]
"""Stores all that a name is to lead to, as `preread.cloud.publish.make` does."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is loaded: what makes and counts with it, its fingerprint, and how it is closed."""

    make: Make
    count: Counter
    fingerprint: Fingerprint
    close: Callable[[], None]


class Model(Protocol):
    """Says which model a replica loads; it is sent to where the replica is."""

    def open(self, store: Objects) -> Opened:
        """Load it; what it makes goes to the store."""


class Replica:
    """`model` in this process, making contexts in the store at an address."""

    def __init__(self, model: Model, store: str) -> None:
        self._opened = model.open(open_store(store))
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """Free the model."""
        self._opened.close()

    async def fingerprint(self) -> str:
        """Of the model, once it is loaded."""
        return self._opened.fingerprint

    async def make(self, ask: bytes, owner: str, gone: tuple[str, ...]) -> AsyncGenerator[bytes, None]:
        """Make a context, telling Progress, and at last Published or why not. Who closes the stream gives it up."""
        told: asyncio.Queue[messages.Message] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def progress(stage: str, done: int, total: int) -> None:
            loop.call_soon_threadsafe(told.put_nowait, Progress(stage, done, total))

        making = asyncio.create_task(self._make(ask, Owner(owner, frozenset(gone)), progress))
        making.add_done_callback(lambda task: task.cancelled() or loop.call_soon(told.put_nowait, task.result()))
        try:
            message: messages.Message = await told.get()
            while isinstance(message, Progress):
                yield messages.dumps(message)
                message = await told.get()
            yield messages.dumps(message)
        finally:
            making.cancel()
            await asyncio.wait([making])

    async def count(self, ask: bytes) -> bytes:
        """Count a document."""
        try:
            counted = await self._opened.count(msgspec.json.decode(ask, type=Request))
            return messages.dumps(messages.Count(counted))
        except PrereadError as error:
            return messages.dumps(messages.refused(error))

    async def _make(self, ask: bytes, owner: Owner, progress: Report) -> messages.Message:
        try:
            of = msgspec.json.decode(ask, type=Request)
            async with self._turn:
                return await self._opened.make(of, progress, owner)
        except PrereadError as error:
            return messages.refused(error)
        except Exception:
            _log.exception("publishing failed")
            return messages.Refused("PrereadError", "publishing failed in a way that nobody foresaw: see Ray's logs")
