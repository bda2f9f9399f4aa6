"""Opening a connection: over TCP, with TLS or without, over a unix socket, or through an HTTP proxy.

It knows how to get to a server; it must not know what is said there.
"""

import asyncio
import os
import socket
import ssl
from typing import Final

import h11

from preread.errors import PrereadError, RemoteError, TransportError, UsageError
from preread.store.origin import Route
from preread.via import Proxy

READ_BYTES: Final = 256 * 1024
_HEAD_BYTES: Final = 16 * 1024

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(route: Route, context: ssl.SSLContext | None) -> Stream:
    """Open a connection; with `context` it is TLS, from end to end through a proxy too.

    Raises:
        OSError: there is none, ssl.SSLError included.
        TransportError, RemoteError, UsageError: the proxy cannot be reached, or does not connect; the message says so.
    """
    origin, proxy = route.origin, route.proxy
    if origin.socket is not None:
        return await asyncio.open_unix_connection(origin.socket, limit=READ_BYTES)
    if proxy is None:
        # No happy eyeballs: where they are cancelled, Python 3.11 leaks the socket that was about to win.
        return await asyncio.open_connection(origin.host, origin.port, ssl=context, limit=READ_BYTES)
    try:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=READ_BYTES)
    except OSError as error:
        raise TransportError(f"the proxy {proxy} cannot be reached: {cause(error)}; see --proxy") from error
    if context is not None:
        try:
            await _tunnel(proxy, origin.authority, reader, writer)
            await writer.start_tls(context, server_hostname=origin.host)
        except BaseException:
            writer.transport.abort()
            raise
    return reader, writer


def credentials_refused(proxy: Proxy) -> UsageError:
    """A proxy answered 407 (RFC 9110, 15.5.8)."""
    if proxy.authorization is None:
        return UsageError(f"the proxy {proxy} asks for a user (407): write --proxy http://USER:PASSWORD@HOST:PORT")
    return UsageError(f"the proxy {proxy} does not take this user and password (407): see --proxy")


def cause(error: OSError) -> str:
    """What went wrong, in the system's words, without the address that the message around it already has."""
    if isinstance(error, ssl.SSLError | socket.gaierror) or not error.errno:
        return str(error.strerror or error)
    return os.strerror(error.errno).lower()


async def _tunnel(proxy: Proxy, authority: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Have the proxy connect to `authority` (RFC 9110, 9.3.6). What comes next on this connection is its."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    headers = [("Host", authority), ("User-Agent", "preread")]
    if proxy.authorization is not None:
        headers.append(("Proxy-Authorization", proxy.authorization))
    writer.write(http.send(h11.Request(method="CONNECT", target=authority, headers=headers)) or b"")
    try:
        http.receive_data(await reader.readuntil(b"\r\n\r\n"))
        answer = http.next_event()
    except (asyncio.IncompleteReadError, OSError) as error:
        raise TransportError(f"the proxy {proxy} closed the connection without an answer") from error
    except (asyncio.LimitOverrunError, h11.RemoteProtocolError) as error:
        raise RemoteError(f"the proxy {proxy} does not speak proper HTTP/1.1: see --proxy") from error
    if not (isinstance(answer, h11.Response) and 200 <= answer.status_code < 300):
        raise _refused(proxy, authority, answer)


def _refused(proxy: Proxy, authority: str, answer: object) -> PrereadError:
    if not isinstance(answer, h11.Response):
        return RemoteError(f"the proxy {proxy} does not answer as a proxy does: see --proxy")
    if answer.status_code == 407:
        return credentials_refused(proxy)
    return TransportError(f"the proxy {proxy} does not connect to {authority}: it answers {answer.status_code}")
