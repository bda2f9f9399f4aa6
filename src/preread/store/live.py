"""What the names of a store lead to. It reads manifests; it must not know who asks, or what is deleted for it."""

from collections.abc import Iterable
from typing import Protocol

from preread.errors import CorruptData
from preread.values import ContextId, Kind, ObjectId, ObjectRef
from preread.wire import manifest
from preread.wire.catalogue import Entry, manifest_ref, tokens_ref

Key = tuple[Kind, ObjectId]


class Reads(Protocol):
    """Reads objects by name; None where one is absent."""

    async def read(self, kind: Kind, id: ObjectId) -> bytes | None: ...


async def refs(store: Reads, entry: Entry) -> list[ObjectRef]:
    """All objects that an entry leads to, with their sizes; some may be there twice.

    Raises:
        CorruptData: its manifest is missing, or cannot be understood.
    """
    data = await store.read("manifests", entry.manifest.id)
    if data is None:
        raise CorruptData("length", f"the manifest of {entry.name!r} is missing")
    found = [manifest_ref(entry), tokens_ref(entry)]
    for rung in manifest.loads(data).rungs:
        found += [ObjectRef("segments", cell.id, cell.size_bytes) for cell in rung.segments]
        if rung.profile is not None:
            found.append(ObjectRef("profiles", rung.profile.id, rung.profile.size_bytes))
    return found


async def needs(store: Reads, entry: Entry) -> set[Key]:
    """All objects that an entry leads to.

    Raises:
        CorruptData: as `refs` does.
    """
    return {(ref.kind, ref.id) for ref in await refs(store, entry)}


async def unneeded(
    store: Reads, doomed: set[Key], names: Iterable[Entry], kept: set[Key], context: ContextId | None
) -> set[Key]:
    """Those of `doomed` that no name leads to, and that are not `kept` for another reason.

    Segments name the `context` that they are of, so that only its own names can need them; but for a profile that is no
    model's any more every manifest is read.

    Raises:
        CorruptData: as `refs` does: nobody knows what is needed.
    """
    by_manifest = {entry.manifest.id: entry for entry in names}  # one document may have thousands of names
    doomed = doomed - kept
    for entry in by_manifest.values():
        doomed -= {("manifests", entry.manifest.id), ("tokens", entry.tokens.id)}
    any_context = any(kind == "profiles" for kind, _ in doomed)
    for entry in by_manifest.values():
        if doomed and (any_context or entry.context == context):
            doomed -= await needs(store, entry)
    return doomed
