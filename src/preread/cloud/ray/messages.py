"""What a replica tells its cloud: one message of bytes each, so that both sides may be of different releases.

Errors go as the words that are told to people, and the class that says whose fault it is.
"""

from typing import Final, TypeVar

import msgspec

from preread.cloud.events import Counted, Progress, Published
from preread.errors import (
    CorruptData,
    EngineError,
    Full,
    PrereadError,
    RemoteError,
    TooLong,
    TransportError,
    Unavailable,
    UsageError,
)
from preread.store.claims import Claimed

T = TypeVar("T")
_CLASSES: Final[dict[str, type[PrereadError]]] = {
    kind.__name__: kind
    for kind in (
        UsageError,
        TooLong,
        Full,
        RemoteError,
        TransportError,
        Claimed,
        Unavailable,
        EngineError,
        PrereadError,
    )
}


class Refused(msgspec.Struct, frozen=True, tag_field="event", tag="refused"):
    """Why nothing was made: the nearest class of `preread.errors` that is known here, and its words."""

    kind: str
    message: str


class Count(msgspec.Struct, frozen=True, tag_field="event", tag="counted"):
    """What a document would be."""

    counted: Counted


Message = Progress | Published | Refused
_messages: Final = msgspec.json.Decoder(Message)
_counts: Final = msgspec.json.Decoder(Count | Refused)


def dumps(message: Message | Count) -> bytes:
    """Write a message."""
    return msgspec.json.encode(message)


def loads(data: bytes) -> Progress | Published:
    """Read what `make` of a replica tells.

    Raises:
        PrereadError: the replica says so.
        CorruptData: it is no message; the replica is of another release.
    """
    message: Message = _decoded(_messages, data)
    if isinstance(message, Refused):
        raise _error(message)
    return message


def loads_count(data: bytes) -> Counted:
    """Read what `count` of a replica tells; errors as for `loads`."""
    message: Count | Refused = _decoded(_counts, data)
    if isinstance(message, Refused):
        raise _error(message)
    return message.counted


def refused(error: PrereadError) -> Refused:
    """An error, to be told."""
    kind = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _CLASSES), "PrereadError")
    return Refused(kind, str(error))


def _decoded(decoder: "msgspec.json.Decoder[T]", data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptData(
            "schema", f"a replica of another release? what it tells is not understood: {error}"
        ) from error


def _error(refused: Refused) -> PrereadError:
    return _CLASSES.get(refused.kind, PrereadError)(refused.message)
