"""The list of fits in a store: one small file for each, `fits/<id>.json`, beside the objects that they are."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Final

import msgspec

from preread.errors import CorruptData
from preread.store.blobs import Blobs
from preread.values import ObjectId
from preread.wire import fits
from preread.wire.fits import Fit, Fits

_AT_ONCE: Final = 64
_log = logging.getLogger(__name__)


class FitList:
    """What is listed. Files never change, so each is read once; other processes may add and remove some."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._known: dict[str, Fit] = {}

    async def put(self, fit: Fit) -> None:
        """List one, unless it is listed."""
        if await self._blobs.size(_key(fit.id)) is None:
            await self._blobs.put_pointer(_key(fit.id), fits.dumps(Fits((fit,))))

    async def all(self) -> list[Fit]:
        """Those that are listed, with when they were. A file that cannot be understood is left out."""
        there = await self._blobs.keys_in("fits")
        self._known = {key: self._known[key] for key in there if key in self._known}
        keys = [key for key in there if key not in self._known]
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            for key, fit in zip(some, await asyncio.gather(*map(self._read, some)), strict=True):
                if fit is not None:
                    self._known[key] = fit
        return list(self._known.values())

    async def remove(self, id: ObjectId) -> bool:
        """List one no more; whether it was."""
        if await self._blobs.size(_key(id)) is None:
            return False
        await self._blobs.delete_pointer(_key(id))
        self._known.pop(_key(id), None)
        return True

    async def _read(self, key: str) -> Fit | None:
        data, at = await self._blobs.read(key), await self._blobs.changed(key)
        if data is None or at is None:
            return None
        try:
            (fit,) = fits.loads(data).fits
        except (CorruptData, ValueError) as error:
            _log.warning("store %s: %s is left out of the fits: %s", self._blobs.where, key, error)
            return None
        return msgspec.structs.replace(fit, created=utc(at))


def utc(at: datetime) -> str:
    """As it is told (RFC 3339)."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _key(id: ObjectId) -> str:
    return f"fits/{id}.json"
