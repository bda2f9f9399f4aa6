"""Who makes what just now (`wire/claim.py`), in the store: `claims/<digest>.<number>.json`."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from preread.errors import CorruptData, PrereadError, RemoteError, Unavailable
from preread.store.blobs import Blobs
from preread.values import ObjectId
from preread.wire import claim as claims
from preread.wire.claim import LEASE_MS, Claim

_RENEW_S: Final = LEASE_MS / 3000
_log = logging.getLogger(__name__)


class Claimed(Unavailable):
    """Somebody else makes it just now: wait, and look again."""


class Claims:
    """Claims in one store. Every method raises RemoteError where the store itself fails."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    @asynccontextmanager
    async def held(self, id: ObjectId, owner: str = "", gone: Collection[str] = ()) -> AsyncGenerator[None, None]:
        """Make what has this digest, alone for as long as the context is open.

        Args:
            id: digest of what is made.
            owner: a name that nobody else has; a new one by default.
            gone: owners that are known to have ended.

        Raises:
            Claimed: somebody else makes it.
        """
        me = Claim(owner or secrets.token_hex(16), _place(), os.getpid(), 0)
        key = await self._create(id, me, gone)
        renewing = asyncio.create_task(self._renew(key, me))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            with suppress(PrereadError):
                await self._blobs.delete_objects([key])

    async def _create(self, id: ObjectId, me: Claim, gone: Collection[str]) -> str:
        newest = await self._newest(id)
        number = claims.next_number(newest, _now_ms(), lambda claim: claim.owner in gone or _ended(claim))
        if number is not None and await self._blobs.create_note(key := _key(id, number), _written(me)):
            if newest is not None:
                with suppress(PrereadError):
                    await self._blobs.delete_objects([_key(id, newest[0])])
            return key
        raise Claimed("somebody else publishes the same just now: wait until that has ended")

    async def _newest(self, id: ObjectId) -> tuple[int, Claim | None] | None:
        names = [key.rpartition("/")[2].split(".") for key in await self._blobs.keys_in("claims")]
        mine = [name[1] for name in names if name[0] == id and len(name) == 3]
        numbers = [int(number) for number in mine if number.isdecimal() and len(number) < 10]
        if not numbers:
            return None
        data = await self._blobs.read(_key(id, max(numbers)))
        try:
            return max(numbers), claims.loads(data or b"")
        except CorruptData:
            return max(numbers), None

    async def _renew(self, key: str, me: Claim) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._blobs.put_note(key, _written(me))
            except RemoteError as error:
                _log.warning("a claim could not be renewed yet: %s", error)


def _key(id: ObjectId, number: int) -> str:
    return f"claims/{id}.{number}.json"


def _written(claim: Claim) -> bytes:
    return claims.dumps(Claim(claim.owner, claim.place, claim.pid, _now_ms() + LEASE_MS))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _ended(claim: Claim) -> bool:
    """Whether the process is known to have ended, which can be told in the same place."""
    if claim.place != _place():
        return False
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _place() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return secrets.token_hex(8)
