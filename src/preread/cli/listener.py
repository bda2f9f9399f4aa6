"""Where a server listens, whether it speaks TLS there, and to whom it listens, as the command line says it."""

import logging
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preread import tls
from preread.cli import listen, unix
from preread.errors import UsageError
from preread.store import hosts
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.tls import Identity

DEFAULT_HOSTS: Final = ("localhost",)
"""Both loopbacks, where there are both: what runs on this machine may try either first."""

_SOCKET: Final = re.compile(r"unix:(?://)?(?P<path>.+)|(?P<plain>.*/.*|.+\.sock)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen.

    Attributes:
        hosts: addresses, and paths of unix sockets as llama-server writes them; None: localhost, unless there is `uds`.
        port: of all addresses; 0: any free one.
        uds: path of a unix socket.
        uds_mode: mode of such files, octal.
        cert, key: of the certificate that is shown at addresses, if TLS is spoken there.
        client_ca: authorities of clients' certificates, if those are asked for.
    """

    hosts: list[str] | None
    port: int
    uds: Path | None
    uds_mode: str
    cert: Path | None
    key: Path | None
    client_ca: Path | None

    @property
    def paths(self) -> list[Path]:
        """Of unix sockets."""
        found = [_SOCKET.fullmatch(host) for host in self.hosts or ()]
        named = [Path(one["path"] or one["plain"]) for one in found if one]
        return named if self.uds is None else [self.uds, *named]

    @property
    def addresses(self) -> list[str]:
        """Of the network."""
        if self.hosts is None:
            return [] if self.uds else list(DEFAULT_HOSTS)
        return [host for host in self.hosts if not _SOCKET.fullmatch(host)]


@dataclass(frozen=True, slots=True)
class Listener:
    """Bound sockets, what is spoken there, and whom the server listens to.

    `secured` is for addresses: a unix socket does not leave the machine.
    """

    sockets: list[socket.socket]
    secured: ssl.SSLContext | None
    access: Access

    @property
    def urls(self) -> str:
        """Where it is reached."""
        return listen.urls(self.sockets, tls=self.secured is not None)


@contextmanager
def listening(
    place: Place, clients: Keys | None, allow_host: str | None, allow_origin: str | None, *, insecure: bool
) -> Iterator[Listener]:
    """Take all addresses before the slow work begins; nobody can connect yet.

    Raises:
        UsageError: one is taken, or none; a certificate cannot be used; or it would be open to others, and nobody said
            that it may; or a name or an origin is none.
    """
    secured = _secured(place)
    with ExitStack() as stack:
        mode = _mode(place.uds_mode)
        sockets = [stack.enter_context(unix.bound(path, mode)) for path in place.paths]
        if place.addresses:
            sockets += [stack.enter_context(sock) for sock in listen.bind_all(place.addresses, place.port)]
        access = _access(
            sockets, clients, allow_host, allow_origin, insecure=insecure, known=place.client_ca is not None
        )
        yield Listener(sockets, secured, access)


def _secured(place: Place) -> ssl.SSLContext | None:
    if place.cert is None:
        for option, file in (("--key", place.key), ("--client-ca", place.client_ca)):
            if file is not None:
                raise UsageError(f"{option} is for TLS: give the server's certificate with --cert")
        return None
    if not place.addresses:
        raise UsageError("--cert is for TLS on the network, which a unix socket is not: name an address with --host")
    return tls.server_context(Identity(place.cert, place.key), place.client_ca)


def _mode(given: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", given):
        raise UsageError(f"--uds-mode is three octal digits such as 660, not {given!r}")
    return int(given, 8)


def _access(
    sockets: list[socket.socket],
    clients: Keys | None,
    allow_host: str | None,
    allow_origin: str | None,
    *,
    insecure: bool,
    known: bool,
) -> Access:
    """Whom a server listens to. Where it is reached from elsewhere without keys, it is by names that it cannot know.

    `known`: whoever comes has shown a certificate.
    """
    if clients is None and not insecure and not known:
        listen.check_closed(sockets, "keys with --api-key-file or PREREAD_API_KEYS")
    near = listen.closed(sockets)
    if clients is None and not near and not known:
        _log.warning("everybody who reaches %s may use it: --insecure says so", listen.urls(sockets))
    open_names = frozenset() if near else frozenset({hosts.ANY})
    names = open_names if allow_host is None else hosts.hosts(allow_host)
    return Access(clients, names, hosts.origins(allow_origin))
