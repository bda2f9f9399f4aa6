"""Pages that are to be published, fetched by the machine that publishes them; an edge never does.

Nothing is sent but the address: no keys, no certificate of our own, no cookies, no password in an address; and no proxy
is used but the one that was named.
"""

import ipaddress
import socket
import time
from typing import BinaryIO, Final
from urllib.parse import urljoin, urlsplit

import httpx2

from preread import tls
from preread.errors import RemoteError, TransportError, UsageError
from preread.store.hosts import is_loopback
from preread.via import Proxy

_MOST_REDIRECTS: Final = 5
_WHOLE_S: Final = 120.0
_QUIET_S: Final = 30.0
_CONNECT_S: Final = 10.0


def fetch(url: str, into: BinaryIO, most_bytes: int, proxy: Proxy | None = None) -> tuple[str, str]:
    """Write what is at an address of http or https, and tell its media type and its charset, "" where it has none.

    `proxy` is used for all but this machine.

    Raises:
        UsageError: it is no such address, holds a password, or what is there is too large.
        RemoteError: the server answers with an error, or leads elsewhere too often, or where it must not.
        TransportError: it cannot be reached, or takes too long.
    """
    until, at = time.monotonic() + _WHOLE_S, url
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            _check(at)
            with (
                _client(at, proxy) as client,
                client.stream("GET", at, headers={"User-Agent": "preread", "Accept": "text/html,*/*"}) as response,
            ):
                if not response.has_redirect_location:
                    return _taken(response, url, into, most_bytes, until)
                at = _onward(at, response.headers["location"])
    except httpx2.InvalidURL as error:
        raise UsageError(f"{url} is no address of a page: {error}") from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise TransportError(f"{url} cannot be reached: {tls.cause(error) or error}") from error
    except httpx2.TransportError as error:
        raise TransportError(f"{url} broke off: {error or type(error).__name__}") from error
    except httpx2.HTTPError as error:
        raise RemoteError(f"{url} sends what cannot be read: {error or type(error).__name__}") from error
    raise RemoteError(f"{url} leads elsewhere more than {_MOST_REDIRECTS} times")


def _taken(response: httpx2.Response, url: str, into: BinaryIO, most_bytes: int, until: float) -> tuple[str, str]:
    if response.status_code != 200:
        raise RemoteError(f"{url} answers with {response.status_code} {response.reason_phrase}: check the address")
    count = 0
    for piece in response.iter_bytes():  # unpacked as it comes, so that little that unpacks to much is noticed
        count += len(piece)
        if count > most_bytes:
            raise UsageError(f"{url} has more than {most_bytes >> 20} MiB: publish it in parts")
        if time.monotonic() > until:
            raise TransportError(f"{url} takes longer than {_WHOLE_S:.0f} s")
        into.write(piece)
    into.flush()
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type, response.charset_encoding or ""


def _client(url: str, proxy: Proxy | None) -> httpx2.Client:
    used = None if proxy is None or is_loopback(urlsplit(url).hostname or "") else proxy.url
    timeout = httpx2.Timeout(_QUIET_S, connect=_CONNECT_S)
    return httpx2.Client(proxy=used, trust_env=False, timeout=timeout, verify=tls.context())


def _check(url: str) -> None:
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UsageError(f"{url} is no address of a page: only http and https are fetched")
    if address.username or address.password:
        raise UsageError(f"{address.hostname}: an address with a password in it is not fetched")


def _onward(at: str, location: str) -> str:
    """Where a page leads. It must not be into what only this machine can reach, or out of TLS.

    Raises:
        RemoteError: it is, or it is no address.
    """
    try:
        onward = urljoin(at, location)
        here, there = urlsplit(at), urlsplit(onward)
    except ValueError as error:
        raise RemoteError(f"{at} leads to what is no address: {error}") from error
    if here.scheme == "https" and there.scheme != "https":
        raise RemoteError(f"{at} leads out of https, to {onward}: it is not followed")
    if here.hostname != there.hostname and _is_public(here.hostname) and not _is_public(there.hostname):
        raise RemoteError(f"{at} leads to {onward}, which is not on the internet: it is not followed")
    return onward


def _is_public(host: str | None) -> bool:
    try:
        found = socket.getaddrinfo(host or "", None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_global for address in found)
