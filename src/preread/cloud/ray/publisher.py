"""The publisher of a cloud whose models run in replicas elsewhere: one of them makes a context, the cloud names it.

It tries again where a replica ended; what that one had stored is not made again (`preread.cloud.resume`). What becomes
of an attempt is decided in `decide.py`.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable

import msgspec

from preread.cloud.events import Progress, Published, Request
from preread.cloud.publish import Owner, Report
from preread.cloud.ray.decide import Busy, Course, Ended, GiveUp, Lost, Outcome, Removed, Taken, decide
from preread.errors import PrereadError, Unavailable
from preread.store.claims import Claimed
from preread.store.objects import Objects


class ReplicaEnded(PrereadError):
    """The replica's process ended while it worked."""


class ReplicaLost(PrereadError):
    """The replica cannot be reached; it may live."""


class ReplicasBusy(PrereadError):
    """No replica takes more work."""


Call = Callable[[bytes, Owner], AsyncGenerator[Progress | Published, None]]
"""Has a replica make what a request says.

Raises:
    ReplicaEnded, ReplicaLost, ReplicasBusy: it was not made.
    PrereadError: the replica says that it cannot be made.
"""


class ReplicaPublisher:
    """Publishes with replicas of one model, as `preread.cloud.app.Publisher` wants it; several documents at a time."""

    def __init__(self, store: Objects, call: Call) -> None:
        self._store, self._call = store, call

    async def __call__(self, ask: Request, progress: Report) -> Published:
        """Publish a document. A cancelled call has its replica give up.

        Raises:
            Overloaded: no replica takes it.
            EngineError: replica after replica ended with it.
            PrereadError: a replica refused it, or the store failed.
        """
        asked, course = msgspec.json.encode(ask), Course()
        while True:
            attempt = _Attempt(self._store, self._call, progress, Owner(secrets.token_hex(8), course.gone))
            outcome = await attempt.run(asked)
            if isinstance(outcome, Published):
                return outcome
            step = decide(course, outcome)
            if isinstance(step, GiveUp):
                raise step.error
            course = step.course
            if step.after_s:
                progress("wait", 0, 1)
                await asyncio.sleep(step.after_s)


class _Attempt:
    """One replica's try."""

    def __init__(self, store: Objects, call: Call, progress: Report, owner: Owner) -> None:
        self._store, self._call, self._progress, self._owner = store, call, progress, owner
        self._done = 0

    async def run(self, ask: bytes) -> Published | Outcome:
        try:
            made = await self._made(ask)
        except ReplicaEnded:
            return Ended(self._owner.name, self._done)
        except ReplicaLost:
            return Lost(self._done)
        except ReplicasBusy:
            return Busy()
        except Claimed:
            return Taken()
        try:
            await self._store.put_name(made.entry)
        except Unavailable as error:
            return Removed(error)
        return made

    async def _made(self, ask: bytes) -> Published:
        told = self._call(ask, self._owner)
        try:
            async for event in told:
                if isinstance(event, Published):
                    return event
                if event.stage == "encode":
                    self._done = event.done
                self._progress(event.stage, event.done, event.total)
        finally:
            await told.aclose()
        raise ReplicaLost("a replica ended its stream without a last word")
