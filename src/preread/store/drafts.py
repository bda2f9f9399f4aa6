"""How far publications have come: one small record for each, under a digest of what it makes (`wire/draft.py`).

Records are notes: while a publication is under way, a power cut may take one, or what it names.
"""

from preread.store.blobs import Blobs
from preread.values import ObjectId


class Drafts:
    """Records of publications in one store. Every method raises RemoteError where the store itself fails.

    Anybody may write one, whoever holds the store: it changes nothing that is published.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def read(self, id: ObjectId) -> bytes | None:
        """A record as it was written; None if there is none."""
        return await self._blobs.read(_key(id))

    async def note(self, id: ObjectId, data: bytes) -> None:
        """Write how far a publication has come."""
        await self._blobs.put_note(_key(id), data)

    async def finish(self, id: ObjectId, data: bytes) -> None:
        """Write that a publication is whole: in a folder, when all that this process put before is on the disk."""
        await self._blobs.put_pointer(_key(id), data)


def _key(id: ObjectId) -> str:
    return f"drafts/{id}.json"
