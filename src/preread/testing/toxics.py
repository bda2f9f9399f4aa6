"""The values of the fault proxy: a link, the faults on it, and what passed; with their JSON form. Pure.

The vocabulary is toxiproxy's: bandwidth and latency and jitter (`Link`), reset_peer (`Reset`), limit_data (`Truncate`),
timeout (`Blackout`), slicer (`Slicer`); `Corrupt`, `Refuse` and `HalfOpen` are added. "Down" is target to client, "up"
is client to target. Byte offsets count the down bytes of one connection, from its beginning or from the moment the
faults were set, whichever is later; a fault stays in force for every later connection until it is cleared.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto

from preread.errors import UsageError


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


@dataclass(frozen=True, slots=True)
class Link:
    """One link between all clients and the target. Raises UsageError for values that no link can have.

    Attributes:
        mbps: 10^6 bits of payload a second, each direction by itself, shared by all connections. None: unlimited;
            0: nothing passes.
        rtt_ms: round trip without queueing, half of it each way. A new connection waits one more for its handshake.
        jitter_ms: each chunk is delayed by up to this much more, uniformly; bytes of a connection never overtake.
        buffer_bytes: what one connection may have queued before the bottleneck, besides what is in flight; also how
            long a queue can build up ahead of others. Raised to 10 ms of `mbps` where that is more (over 210 Mbit/s).
    """

    mbps: float | None = None
    rtt_ms: float = 0
    jitter_ms: float = 0
    buffer_bytes: int = 262_144

    def __post_init__(self) -> None:
        _require(self.mbps is None or _amount(self.mbps), f"mbps must be None or a number >= 0, not {self.mbps!r}")
        _require(_amount(self.rtt_ms), f"rtt_ms must be a number >= 0, not {self.rtt_ms!r}")
        _require(_amount(self.jitter_ms), f"jitter_ms must be a number >= 0, not {self.jitter_ms!r}")
        _require(_whole(self.buffer_bytes, 1), f"buffer_bytes must be an integer >= 1, not {self.buffer_bytes!r}")


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (TCP RST) once `after_bytes` bytes have come down; 0: at the first byte.

    A client that reads slowly may see fewer: a reset discards what waits in the kernel.
    """

    after_bytes: int

    def __post_init__(self) -> None:
        _require(_whole(self.after_bytes, 0), f"after_bytes must be an integer >= 0, not {self.after_bytes!r}")


@dataclass(frozen=True, slots=True)
class Truncate:
    """The connection is closed in order (TCP FIN) once `after_bytes` bytes have come down; 0: at the first byte."""

    after_bytes: int

    def __post_init__(self) -> None:
        _require(_whole(self.after_bytes, 0), f"after_bytes must be an integer >= 0, not {self.after_bytes!r}")


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Byte `at_byte` of what comes down is xored with `mask`; then each `every_bytes`-th after it, unless None."""

    at_byte: int
    mask: int = 0xFF
    every_bytes: int | None = None

    def __post_init__(self) -> None:
        _require(_whole(self.at_byte, 0), f"at_byte must be an integer >= 0, not {self.at_byte!r}")
        _require(_whole(self.mask, 1) and self.mask <= 0xFF, f"mask must be an integer in 1..255, not {self.mask!r}")
        every = self.every_bytes
        _require(every is None or _whole(every, 1), f"every_bytes must be None or an integer >= 1, not {every!r}")


@dataclass(frozen=True, slots=True)
class Blackout:
    """Connections stay open and nothing passes, for `for_s` seconds from when it was set; None: until cleared."""

    for_s: float | None = None

    def __post_init__(self) -> None:
        _require(self.for_s is None or _amount(self.for_s), f"for_s must be None or a number >= 0, not {self.for_s!r}")


@dataclass(frozen=True, slots=True)
class Refuse:
    """New connections are reset at once, which a client sees when it connects or first reads; open ones go on."""


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """New connections are accepted and never answered, also after the fault was cleared; open ones go on."""


@dataclass(frozen=True, slots=True)
class Slicer:
    """What comes down drips: at most `bytes` bytes of a connection in every `delay_ms`."""

    bytes: int
    delay_ms: float

    def __post_init__(self) -> None:
        _require(_whole(self.bytes, 1), f"bytes must be an integer >= 1, not {self.bytes!r}")
        _require(_amount(self.delay_ms), f"delay_ms must be a number >= 0, not {self.delay_ms!r}")


Fault = Reset | Truncate | Corrupt | Blackout | Refuse | HalfOpen | Slicer


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals since the proxy started: connections accepted, refused ones too; bytes delivered to target and clients."""

    connections: int
    bytes_up: int
    bytes_down: int


class Ending(Enum):
    """How a stream of bytes ends: half-closed (FIN, the other direction goes on), closed, or reset (RST)."""

    HALF_CLOSE = auto()
    CLOSE = auto()
    RESET = auto()


def bite(faults: Sequence[Fault], offset: int, data: bytes) -> tuple[bytes, Ending | None]:
    """What is left of `data`, whose first byte has this offset, and how the connection then ends (None: it goes on)."""
    ending: Ending | None = None
    for fault in faults:
        match fault:
            case Reset(after) | Truncate(after) if offset + len(data) >= after:
                data = data[: max(0, after - offset)]
                ending = Ending.RESET if isinstance(fault, Reset) else Ending.CLOSE
            case Corrupt():
                data = _corrupt(fault, offset, data)
    return data, ending


def _corrupt(fault: Corrupt, offset: int, data: bytes) -> bytes:
    step = fault.every_bytes
    skipped = max(0, -(-(offset - fault.at_byte) // step)) if step else 0
    first = fault.at_byte + skipped * (step or 0) - offset
    if not 0 <= first < len(data):
        return data
    spoiled = bytearray(data)
    for index in range(first, len(spoiled), step or len(spoiled)):
        spoiled[index] ^= fault.mask
    return bytes(spoiled)


_FAULTS: dict[str, type[Fault]] = {
    "reset": Reset,
    "truncate": Truncate,
    "corrupt": Corrupt,
    "blackout": Blackout,
    "refuse": Refuse,
    "half-open": HalfOpen,
    "slicer": Slicer,
}


def fault_to_json(fault: Fault) -> dict[str, object]:
    """For example `{"type": "reset", "after_bytes": 1000}`."""
    return {"type": next(name for name, kind in _FAULTS.items() if kind is type(fault)), **asdict(fault)}


def fault_from_json(value: object) -> Fault:
    """Inverse of `fault_to_json`; fields with a default may be left out. Raises UsageError."""
    if not isinstance(value, dict) or value.get("type") not in tuple(_FAULTS):
        raise UsageError(f'a fault is an object with "type" one of {", ".join(_FAULTS)}, not {value!r}')
    fields = {name: field for name, field in value.items() if name != "type"}
    try:
        return _FAULTS[value["type"]](**fields)
    except TypeError as error:
        raise UsageError(f"fault {value!r}: {error}") from None


def link_from_json(value: object) -> Link:
    """Inverse of `dataclasses.asdict`; fields left out have their defaults. Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"a link is an object with any of mbps, rtt_ms, jitter_ms, buffer_bytes, not {value!r}")
    try:
        return Link(**value)
    except TypeError as error:
        raise UsageError(f"link {value!r}: {error}") from None
