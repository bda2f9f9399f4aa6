"""A context that an edge knows, and what the objects that it is made of must say. Pure: bytes in, values out."""

from collections.abc import Sequence
from dataclasses import dataclass

from preread.edge.published import OwnModel
from preread.edge.rungs import Streamable
from preread.errors import CorruptData, UsageError
from preread.plan.match import Tokens
from preread.values import Layer, ObjectRef
from preread.wire import manifest as manifests
from preread.wire import parts
from preread.wire import tokens as token_objects
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Known:
    """A context with what is needed to compute it, and to stream it.

    Attributes:
        entry, tokens: what is published, and its token ids.
        manifest: what its segments are; None: it cannot be streamed, and `why`.
        rungs: those of the manifest, best quality first.
    """

    entry: Entry
    tokens: Tokens
    manifest: Manifest | None
    why: str = "its manifest is not here yet"
    rungs: tuple[Streamable, ...] = ()

    def streamable(self) -> tuple[Streamable, ...]:
        """The rungs.

        Raises:
            CorruptData: "manifest": there is none, and why.
        """
        if self.manifest is None:
            raise CorruptData("manifest", self.why)
        return self.rungs

    def rung(self, name: str) -> Streamable:
        """The rung of this name.

        Raises:
            CorruptData: as `streamable` does.
            UsageError: the context lacks it.
        """
        rungs = self.streamable()
        for rung in rungs:
            if rung.name == name:
                return rung
        known = ", ".join(rung.name for rung in rungs)
        raise UsageError(f"context {self.entry.context[:12]} has no rung {name!r}; it has: {known}")


def tokens_of(entry: Entry, data: bytes, own: OwnModel) -> Tokens:
    """A context's token ids.

    Raises:
        CorruptData: they are not those of its context id, or too many for this edge's model.
    """
    ids = token_objects.unpack(data, min(entry.token_count, own.window_tokens))
    if len(ids) != entry.token_count or context_id(entry.fingerprint, ids) != entry.context:
        raise CorruptData("context", "its token ids are not those of its context id")
    return ids


def manifest_of(entry: Entry, data: bytes, own: OwnModel) -> Manifest:
    """A context's manifest.

    Raises:
        CorruptData: it is none, of another context, or of KV that does not fit this edge's model: the sizes of all
            that is decoded follow from it.
    """
    read = manifests.loads(data)
    same = read.context == entry.context and read.model.fingerprint == entry.fingerprint
    if not same or read.tokens.count != entry.token_count:
        raise CorruptData("context", "its manifest is of another context")
    _check_fits(read, own.layers)
    return read


def _check_fits(read: Manifest, own: Sequence[Layer]) -> None:
    theirs = read.model.layers
    if len(theirs) != len(own):
        raise CorruptData("shape", f"its manifest states {len(theirs)} layers, and the model has {len(own)}")
    for number, (layer, mine) in enumerate(zip(theirs, own, strict=True)):
        if (layer.rows, layer.state) != (mine.rows, mine.state):
            raise CorruptData("shape", f"its manifest states {layer} for layer {number}, and the model has {mine}")
    if parts.lacking(own, read.groups, read.chunks, read.parts):
        raise CorruptData("shape", "its manifest lacks rows that this model looks at")


def lack(ref: ObjectRef, entry: Entry | None) -> str:
    """What an edge lacks without an object, for the log; `entry`: what it is of, None for a profile."""
    if entry is None:
        return f"rungs that need profile {ref.id[:12]}… cannot be streamed"
    return f"context {entry.name!r} cannot be {'used' if ref.kind == 'tokens' else 'streamed'}"
