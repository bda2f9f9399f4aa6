"""Clients of the HTTP library, for what is no hot path: one way to reach a server, and one way to say why it failed."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from preread import tls
from preread.errors import TransportError
from preread.store.dial import credentials_refused
from preread.store.origin import Route, parse_origin
from preread.via import DIRECT, Via


@contextmanager
def client(who: str, url: str, quiet_s: float, via: Via = DIRECT) -> Iterator[httpx2.Client]:
    """A client whose requests name paths below `url`; its exceptions are translated, also those while it reads.

    Args:
        who: the program that is there, "cloud" or "edge", for messages.
        url: as `parse_origin` takes it.
        quiet_s: how long it may say nothing.
        via: how it is reached.

    Raises:
        UsageError: `url` is no address, or the proxy asks for other credentials.
        TransportError: it cannot be reached, or the connection broke.
    """
    route = Route.to(parse_origin(url), via)
    whom = f"{who} {url}" if route.proxy is None else f"{who} {url} through the proxy {route.proxy}"
    if route.origin.socket is not None and not Path(route.origin.socket).is_socket():
        raise TransportError(f"{whom} cannot be reached: no socket is there; is `preread {who}` running?")
    try:
        with _opened(route, quiet_s, via) as opened:
            yield opened
    except httpx2.ProxyError as error:
        assert route.proxy is not None
        if "407" in str(error):
            raise credentials_refused(route.proxy) from error
        raise TransportError(
            f"the proxy {route.proxy} does not connect to {route.origin.authority}: it answers {error}"
        ) from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        there = f"is `preread {who}` running there?" if route.proxy is None else "is the proxy right?"
        why = tls.cause(error) or f"{error}; {there}"
        raise TransportError(f"{whom} cannot be reached: {why}") from error
    except httpx2.TransportError as error:
        why = tls.cause(error) or (str(error) or type(error).__name__).rstrip(".")
        if route.origin.scheme == "https" and isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
            why += tls.silence(via.identity)
        raise TransportError(f"connection to {whom} broke: {why}") from error


def _opened(route: Route, quiet_s: float, via: Via) -> httpx2.Client:
    def check(response: httpx2.Response) -> None:
        if response.status_code == 407 and route.proxy is not None:
            raise credentials_refused(route.proxy)

    origin = route.origin
    # reading a system's authorities takes many times as long as a request; without TLS nobody's certificate is seen
    context = tls.context(via.identity) if origin.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx2.Client(
        base_url=f"{origin.scheme}://{origin.authority}{origin.prefix}",
        transport=None if origin.socket is None else httpx2.HTTPTransport(uds=origin.socket, verify=context),
        proxy=None if route.proxy is None else route.proxy.url,
        trust_env=False,
        timeout=httpx2.Timeout(quiet_s, connect=5.0),
        verify=context,
        event_hooks={"response": [check]},
    )
