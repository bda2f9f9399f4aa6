"""The constrained fields that manifests and catalogues share, and the sizes that bound every document."""

from typing import Annotated

import msgspec

from preread.values import ContextId, Fingerprint, ObjectId

MAX_TOKENS = 2**24
MAX_MANIFEST_BYTES = 2**24
MAX_CATALOGUE_BYTES = 2**24
MAX_SEGMENT_BYTES = 2**28
MAX_PROFILE_BYTES = 2**26

_ID = msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")

ObjectIdField = Annotated[ObjectId, _ID]
ContextIdField = Annotated[ContextId, _ID]
FingerprintField = Annotated[Fingerprint, _ID]
TokenCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z")]
"""One line of text for people: 1 to 256 characters, without control characters."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen struct that refuses fields it does not know."""


class SizedId(Record, frozen=True, rename={"size_bytes": "bytes"}):
    """An immutable object's name and exact size; `{"bytes": …, "id": …}` on the wire."""

    id: ObjectIdField
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEGMENT_BYTES)]
