"""With which profile the contexts of each model are published: one small file for each, `fitted/<fingerprint>.json`."""

import logging
from typing import Final

from preread.errors import CorruptData
from preread.store.blobs import Blobs
from preread.store.fit_list import utc
from preread.values import Fingerprint, ObjectRef
from preread.wire import canonical
from preread.wire.fields import SizedId

_FOLDER: Final = "fitted"
_SLOT_BYTES: Final = 256
_log = logging.getLogger(__name__)


class Slots:
    """The file of each model. That the profiles themselves are there is for others to see to."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def of(self, fingerprint: Fingerprint) -> ObjectRef | None:
        """The profile of a model; None if there is none, or its file is broken."""
        data = await self._blobs.read(_key(fingerprint))
        if data is None:
            return None
        try:
            slot = canonical.loads(data, SizedId, _SLOT_BYTES)
        except CorruptData as error:
            where = self._blobs.where
            _log.warning("store %s: the profile of model %s… is forgotten: %s", where, fingerprint[:12], error)
            return None
        return ObjectRef("profiles", slot.id, slot.size_bytes)

    async def put(self, fingerprint: Fingerprint, ref: ObjectRef) -> None:
        """Remember a profile for a model, instead of the one before."""
        await self._blobs.put_pointer(_key(fingerprint), canonical.dumps(SizedId(ref.id, ref.size_bytes)))

    async def all(self) -> list[tuple[Fingerprint, ObjectRef, str]]:
        """Models, their profiles, and since when (UTC, RFC 3339)."""
        found = []
        for key in await self._blobs.keys_in(_FOLDER):
            of = Fingerprint(key.rpartition("/")[2].removesuffix(".json"))
            ref, at = await self.of(of), await self._blobs.changed(key)
            if ref is not None and at is not None:
                found.append((of, ref, utc(at)))
        return found


def _key(fingerprint: Fingerprint) -> str:
    return f"{_FOLDER}/{fingerprint}.json"
