"""Names made from content: object ids and context ids. It knows BLAKE3 and nothing of what the bytes mean."""

import re
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from preread.values import ContextId, Fingerprint, ObjectId

_CONTEXT_DOMAIN = b"preread context 1\n"
_ID = re.compile(r"[0-9a-f]{64}")


def object_id(data: bytes) -> ObjectId:
    """Name of an immutable object: BLAKE3 of its bytes, 64 lower-case hex digits."""
    return ObjectId(blake3(data).hexdigest())


def context_id(fingerprint: Fingerprint, tokens: npt.NDArray[np.int32]) -> ContextId:
    """Name of a context: BLAKE3 of a domain line, the fingerprint line, and `tokens` as little-endian int32."""
    digest = blake3(_CONTEXT_DOMAIN)
    digest.update(fingerprint.encode("ascii") + b"\n")
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
    return ContextId(digest.hexdigest())


def is_id(text: object) -> TypeGuard[str]:
    """Whether `text` is written as every id of this project is: 64 lower-case hex digits."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None
