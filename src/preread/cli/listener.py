"""Bound sockets, the TLS that is spoken there, and whom a server listens to: what its `Endpoint` says, made."""

import logging
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from preread import tls
from preread.cli import keys, listen, unix
from preread.cli.endpoint import Endpoint
from preread.errors import UsageError
from preread.store import hosts
from preread.store.auth import Keys, Scope
from preread.store.guard import Access
from preread.tls import Identity

_log = logging.getLogger(__name__)


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
def listening(endpoint: Endpoint, unnamed: Scope) -> Iterator[Listener]:
    """Take all addresses before the slow work begins; nobody can connect yet.

    `unnamed`: the scope of clients' keys that name none.

    Raises:
        UsageError: one is taken, or none; keys or a certificate cannot be used; or it would be open to others, and
            nobody said that it may; or a name or an origin is none.
    """
    clients, secured = keys.of_clients(endpoint.api_key, endpoint.api_key_file, unnamed), _secured(endpoint)
    with ExitStack() as stack:
        mode = _mode(endpoint.uds_mode)
        sockets = [stack.enter_context(unix.bound(path, mode)) for path in endpoint.paths]
        if endpoint.addresses:
            sockets += [stack.enter_context(sock) for sock in listen.bind_all(endpoint.addresses, endpoint.port)]
        yield Listener(sockets, secured, _access(sockets, clients, endpoint))


def _secured(endpoint: Endpoint) -> ssl.SSLContext | None:
    if endpoint.cert is None:
        for option, file in (("--key", endpoint.key), ("--client-ca", endpoint.client_ca)):
            if file is not None:
                raise UsageError(f"{option} is for TLS: give the server's certificate with --cert")
        return None
    if not endpoint.addresses:
        raise UsageError("--cert is for TLS on the network, which a unix socket is not: name an address with --host")
    return tls.server_context(Identity(endpoint.cert, endpoint.key), endpoint.client_ca)


def _mode(given: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", given):
        raise UsageError(f"--uds-mode is three octal digits such as 660, not {given!r}")
    return int(given, 8)


def _access(sockets: list[socket.socket], clients: Keys | None, endpoint: Endpoint) -> Access:
    """Whom a server listens to. Where it is reached from elsewhere without keys, it is by names that it cannot know."""
    known = endpoint.client_ca is not None  # whoever comes has shown a certificate
    if clients is None and not endpoint.insecure and not known:
        listen.check_closed(sockets, "keys with --api-key-file or PREREAD_API_KEYS")
    near = listen.closed(sockets)
    if clients is None and not near and not known:
        _log.warning("everybody who reaches %s may use it: --insecure says so", listen.urls(sockets))
    open_names = frozenset() if near else frozenset({hosts.ANY})
    names = open_names if endpoint.allow_host is None else hosts.hosts(endpoint.allow_host)
    return Access(clients, names, hosts.origins(endpoint.allow_origin))
