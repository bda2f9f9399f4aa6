"""Where segments can be had besides the cloud: a bucket or a cache in front of it, as a cloud names it to its edges.

An origin is an address below which objects lie as in a store: `ADDRESS/segments/ab/abcd…`. Where a cloud signs
addresses, that is only how these begin. What comes from there is checked by its digest, as from anywhere.

Pure. An edge decides here which of the addresses it goes to: a cloud must not have it look around in its own network.
"""

import ipaddress
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from preread.wire import canonical
from preread.wire.fields import Line, Record

PATH: Final = "/v1/origins"
REDIRECT: Final = "Preread-Redirect"
"""Who sends this header with a request for a segment takes 307 with a signed address for an answer."""

FORMAT: Final = "preread-origins"
VERSION: Final = 1
MAX_ORIGINS_BYTES: Final = 4096
MOST: Final = 4


class Origins(Record, frozen=True):
    """Addresses, the first one to be asked first. `signed`: the cloud is asked for each segment's address."""

    origins: Annotated[tuple[Line, ...], msgspec.Meta(max_length=MOST)] = ()
    signed: bool = False
    format: Literal["preread-origins"] = msgspec.field(default_factory=lambda: FORMAT)
    version: Literal[1] = msgspec.field(default_factory=lambda: VERSION)


NONE: Final = Origins()


def dumps(origins: Origins) -> bytes:
    """Write what `loads` reads."""
    return canonical.dumps(origins)


def loads(data: bytes) -> Origins:
    """Read what a cloud names.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length".
    """
    canonical.check_stamp(data, FORMAT, VERSION, MAX_ORIGINS_BYTES)
    return canonical.loads(data, Origins, MAX_ORIGINS_BYTES)


def why_not(address: str, *, near: bool) -> str | None:
    """Why an edge does not go to an address that its cloud names; None: it does.

    It goes to HTTPS servers of the network at large. A server there must prove that it is called so, which what is in
    an edge's own network cannot for a stranger. Only a cloud that is `near`, on the edge's own machine, may also name
    an HTTP server that is.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "it is no address"
    if not host or parts.username is not None or parts.query or parts.fragment or not address.isascii():
        return "it is not the beginning of addresses"
    if port is not None and not 0 < port < 2**16:
        return "it has no port"
    try:
        at_large, loopback = ipaddress.ip_address(host).is_global, ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or host.endswith(".localhost")
        at_large = not loopback
    if loopback:
        return None if near and parts.scheme in ("http", "https") else "it is on this very machine"
    if parts.scheme != "https":
        return "it is not HTTPS"
    return None if at_large else "it is an address of a private network"


def segment_path(id: str) -> str:
    """Where a segment is below an origin."""
    return f"/segments/{id[:2]}/{id}"


def within(location: str, origins: Origins) -> bool:
    """Whether a signed address begins as the cloud said that they would."""
    return any(location.startswith(f"{one.rstrip('/')}/") for one in origins.origins) and "\\" not in location
