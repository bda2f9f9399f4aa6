"""Who makes something just now, so that nobody else makes the same: a record that only one can create.

Claims on one thing are numbered. Whoever finds that the newest one is over creates the next: of several that try, one
succeeds, and who held it before sees that there is a newer one. Claims are for thrift, not for safety: what is made
twice is the same bytes under the same names.
"""

from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from preread.wire import canonical
from preread.wire.fields import Line, Record

MAX_CLAIM_BYTES: Final = 2048
LEASE_MS: Final = 30_000
"""A claim that is not renewed is over after so long; clocks must agree within some seconds."""


class Claim(Record, frozen=True):
    """Who makes it.

    Attributes:
        owner: a name that nobody else has.
        place, pid: the machine's boot and the PID namespace, and the process in it.
        until_ms: when it is over unless it is renewed, in milliseconds since 1970.
    """

    owner: Line
    place: Line
    pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    until_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


def next_number(newest: tuple[int, Claim | None] | None, now_ms: int, gone: Callable[[Claim], bool]) -> int | None:
    """The number of the claim to create; None: somebody makes it, and it is to be waited for.

    Args:
        newest: the claim with the highest number, and that; its value is None where it cannot be understood, and all of
            it where there is no claim.
        now_ms: milliseconds since 1970.
        gone: whether its owner is known to be gone.
    """
    if newest is None:
        return 0
    number, claim = newest
    if claim is None or claim.until_ms <= now_ms or gone(claim):
        return number + 1
    if claim.until_ms > now_ms + 2 * LEASE_MS:  # by a clock that is far ahead: it would stand for ever
        return number + 1
    return None


def dumps(claim: Claim) -> bytes:
    """Write a claim."""
    return canonical.dumps(claim)


def loads(data: bytes) -> Claim:
    """Read a claim.

    Raises:
        CorruptData: "length", "json" or "schema".
    """
    return canonical.loads(data, Claim, MAX_CLAIM_BYTES)
