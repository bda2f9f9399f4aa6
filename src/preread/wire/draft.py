"""How far a publication has come: what it makes, and which segments of it are stored. Canonical JSON.

The record's key is a digest of what is made, so whoever begins the same finds it. It is a note, no promise: who reads
it looks whether the objects are there, and whole. It must not know codecs, stores or engines.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from preread.errors import CorruptData, UsageError
from preread.values import Form, ObjectId, ObjectRef
from preread.wire import canonical
from preread.wire.digest import object_id
from preread.wire.fields import MAX_MANIFEST_BYTES, ContextIdField, ObjectIdField, Record, SizedId, TokenCount
from preread.wire.manifest import (
    Group,
    Manifest,
    Model,
    Origin,
    Pair,
    Part,
    RungName,
    model_form1,
    model_form2,
    parts_are_plain,
)

FORMAT: Final = "preread-draft"
VERSION: Final = 1
MAX_DRAFT_BYTES: Final = MAX_MANIFEST_BYTES

Cells = tuple[SizedId, ...]
"""Segments of one rung and chunk: [group], of those groups that have a part there."""

Row = tuple[Cells, ...]
"""Segments of one chunk: [rung][group]."""


class RungCodec(Record, frozen=True, omit_defaults=True):
    """A rung that is made: its name, codec chain and version, the object that the codec needs, what it refines.

    `states`: codec of its states.
    """

    name: RungName
    codec: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    profile: ObjectIdField | None = None
    base: RungName | None = None
    states: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None


class Work(Record, frozen=True):
    """All that what is made depends on. Two with the same digest make the same segments under the same names.

    `parts`: in the order of a manifest's.
    """

    context: ContextIdField
    form: Form
    model: Model
    token_count: TokenCount
    chunks: tuple[Pair, ...]
    groups: tuple[Group, ...]
    parts: tuple[Part, ...]
    rungs: Annotated[tuple[RungCodec, ...], msgspec.Meta(min_length=1, max_length=64)]
    origin: Origin

    def groups_at(self, chunk: int) -> list[int]:
        """The groups that have a part at a chunk, in order."""
        return [group for group, at in self.parts if at == chunk]


class Draft(Record, frozen=True, omit_defaults=True):
    """How far `work` has come.

    Attributes:
        work: digest of what is made; the record's own key.
        context: that it is of.
        rows: segments of the first chunks, [chunk][rung][group]; none when it is whole.
        manifest: of what is whole.
    """

    work: ObjectIdField
    context: ContextIdField
    rows: tuple[Row, ...] = ()
    manifest: SizedId | None = None
    format: Literal["preread-draft"] = msgspec.field(default_factory=lambda: FORMAT)
    version: Literal[1] = msgspec.field(default_factory=lambda: VERSION)


def digest(of: Work) -> ObjectId:
    """The key of the record of what is made."""
    told: dict[str, object] = {
        "context": of.context,
        "form": of.form,
        "model": model_form2(of.model),
        "token_count": of.token_count,
        "chunks": of.chunks,
        "groups": of.groups,
        "parts": of.parts,
        "rungs": of.rungs,
        "origin": of.origin,
    }
    if parts_are_plain(of.model, of.groups, of.parts, len(of.chunks)):  # what former releases began is taken up
        told |= {"model": model_form1(of.model), "groups": [group.layers for group in of.groups]}
        del told["parts"]
    return object_id(canonical.dumps(told))


def work(manifest: Manifest) -> Work:
    """What a manifest is of."""
    rungs = [
        RungCodec(one.name, one.codec, None if one.profile is None else one.profile.id, one.base, one.states)
        for one in manifest.rungs
    ]
    return Work(
        manifest.context,
        manifest.form,
        manifest.model,
        manifest.tokens.count,
        manifest.chunks,
        manifest.groups,
        manifest.parts,
        tuple(rungs),
        manifest.origin,
    )


def rows(manifest: Manifest) -> tuple[Row, ...]:
    """Its segments, [chunk][rung][group]."""
    found: list[list[list[SizedId]]] = [[[] for _ in manifest.rungs] for _ in manifest.chunks]
    for at, rung in enumerate(manifest.rungs):
        for one, (_, chunk) in zip(rung.segments, manifest.parts, strict=True):
            found[chunk][at].append(one)
    return tuple(tuple(map(tuple, row)) for row in found)


def flat(of: Work, noted: Sequence[Row], rung: int) -> Cells:
    """The segments of one rung in a manifest's order, of rows of all chunks."""
    left = [iter(row[rung]) for row in noted]
    return tuple(next(left[chunk]) for _, chunk in of.parts)  # groups ascend, in a manifest as in a row


def dumps(draft: Draft) -> bytes:
    """Write a record.

    Raises:
        UsageError: it is larger than `loads` reads.
    """
    data = canonical.dumps(draft)
    if len(data) > MAX_DRAFT_BYTES:
        raise UsageError(f"the record of a publication would have {len(data)} bytes: at most {MAX_DRAFT_BYTES} may be")
    return data


def loads(data: bytes, of: Work) -> Draft:
    """Read the record of what is made.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length"; "digest": it is the record of something else;
            "shape": its rows are not of the chunks, rungs and groups of `of`.
    """
    draft = read(data)
    if (draft.work, draft.context) != (digest(of), of.context):
        raise CorruptData("digest", "the record of a publication is that of another one")
    if len(draft.rows) > len(of.chunks):
        raise CorruptData("shape", f"{len(draft.rows)} chunks are noted of {len(of.chunks)}")
    parts_at = Counter(chunk for _, chunk in of.parts)
    for chunk, row in enumerate(draft.rows):
        if len(row) != len(of.rungs) or any(len(cells) != parts_at[chunk] for cells in row):
            raise CorruptData("shape", "a noted chunk does not have a segment for each rung and group")
    return draft


def read(data: bytes) -> Draft:
    """Read a record without knowing what is made, as who collects garbage does.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length".
    """
    canonical.check_stamp(data, FORMAT, VERSION, MAX_DRAFT_BYTES)
    return canonical.loads(data, Draft, MAX_DRAFT_BYTES)


def segments(draft: Draft) -> list[ObjectRef]:
    """All segments that are noted."""
    return [ObjectRef("segments", cell.id, cell.size_bytes) for row in draft.rows for cells in row for cell in cells]
