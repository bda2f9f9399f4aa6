"""What both servers check before they listen to a request: where it was sent to, who asks, and how much comes."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.store import auth, hosts, readiness
from preread.store.auth import Keys, Principal
from preread.store.routes import error_response

_COMPRESSED: Final = ("gzip", "deflate")
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS  # told apart by how they begin
_TYPE: Final = "application/json"
_SAFE: Final = frozenset({"GET", "HEAD"})
_METHODS: Final = ("GET", "POST", "DELETE")
_PRINCIPAL: Final = "preread.principal"


@dataclass(frozen=True, slots=True)
class Access:
    """Whom a server listens to.

    Attributes:
        keys: of its clients. Without any, everybody may do everything who names this machine by a known name.
        hosts: those names besides localhost, in small letters; `*`: every one.
        origins: web pages from these may ask, as `preread.store.hosts.origins` gives them; `*`: from everywhere.
    """

    keys: Keys | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def middleware(
        self, server: str, *, reads: auth.Scope, writes: auth.Scope, open: frozenset[str] = frozenset()
    ) -> list[Middleware]:
        """What decides, outermost first.

        Args:
            server: its name, for messages.
            reads: the scope of a key that GET and HEAD need.
            writes: the scope that every other method needs.
            open: paths besides /health and /readyz that nobody needs a key for.
        """
        if self.keys is None:
            layers = [Middleware(KnownHosts, allowed=self.hosts)]
        else:
            layers = [Middleware(KeyHolders, keys=self.keys, server=server, reads=reads, writes=writes, open=open)]
        if self.origins:
            # A preflight comes without a key; what the page then asks for needs one, as any request does.
            # Pages from the internet that ask this machine say so, and want to be told that they may.
            pages = Middleware(
                CORSMiddleware,
                allow_origins=self.origins,
                allow_methods=_METHODS,
                allow_headers=("*",),
                expose_headers=("Retry-After",),
                allow_private_network=True,
            )
            layers.insert(0, pages)
        return layers


LOOPBACK: Final = Access()
"""Everybody who names this machine as localhost or by a loopback address."""


class KeyHolders:
    """ASGI middleware: who has a key for what is asked is let in; anybody may ask for /health and /readyz, and `open`.

    It decides before any route does, so that a new route is closed until somebody has a key for it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        server: str,
        reads: auth.Scope,
        writes: auth.Scope,
        open: frozenset[str] = frozenset(),
    ) -> None:
        self._app, self._keys, self._server = app, keys, server
        self._reads, self._writes, self._open = reads, writes, open | {"/health", "/v1/health", readiness.PATH}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        principal = self._keys.identify(_given(scope))
        needed = self._reads if scope["method"] in _SAFE else self._writes
        if principal is None:
            message = f"this {self._server} needs an API key: send Authorization: Bearer KEY"
            challenge = {"WWW-Authenticate": "Bearer"}
            refusal = error_response(401, message, "invalid_api_key", headers=challenge)
            await refusal(scope, receive, send)
        elif needed not in principal.scopes:
            has = ", ".join(sorted(principal.scopes))
            message = f"this key has the scope {has}; this needs {needed}: ask the {self._server}'s operator for it"
            challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'}  # RFC 6750, 3.1
            refusal = error_response(403, message, "insufficient_scope", headers=challenge)
            await refusal(scope, receive, send)
        else:
            await self._app({**scope, _PRINCIPAL: principal}, receive, send)


def _given(scope: Scope) -> bytes:
    """The key that came, as an Authorization header has it. Clients of Anthropic's API send theirs as X-Api-Key."""
    headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
    other = headers.get(b"x-api-key")
    return headers.get(b"authorization") or (b"" if other is None else b"Bearer " + other)


class KnownHosts:
    """ASGI middleware: only who names this machine by a known name is listened to.

    A web page whose name its owner lets point here (DNS rebinding) would else be read to as one of this machine's own.
    Known are localhost, loopback addresses, and `allowed`; `*` allows all. No page reaches a unix socket: clients call
    what is there as they like.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._allowed or _by_socket(scope) or self._knows(scope):
            await self._app(scope, receive, send)
            return
        message = (
            "this server is not known by the name that was asked for, and has no keys: call it localhost, or start it "
            "with --allow-host NAME or with keys"
        )
        await error_response(421, message, "unknown_host")(scope, receive, send)  # RFC 9110, 15.5.20

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"host"]
        name = hosts.host_name(given[0].decode("latin-1")) if len(given) == 1 else None
        return name is not None and (hosts.is_loopback(name) or name in self._allowed)


def _by_socket(scope: Scope) -> bool:
    """Whether a request came over a unix socket: its path stands where an address would (ASGI, "server")."""
    server = scope.get("server")
    return server is not None and str(server[0]).startswith("/")


def caller(scope: Scope) -> str:
    """Who asks, for limits that are to be fair: the name of the key; without keys the address, or a socket's user."""
    principal: Principal | None = scope.get(_PRINCIPAL)
    if principal is not None:
        return principal.name
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def read_body(
    request: Request,
    most_bytes: int,
    *,
    media: str = _TYPE,
    too_long: Exception | None = None,
    account: Callable[[int], None] = lambda size_bytes: None,
) -> bytes:
    """The body of a request that says that it is JSON, or `media`: some types a web page may send to localhost without
    asking.

    Args:
        request: whose body it is; gzip and deflate (RFC 9110, 8.4.1) are undone.
        most_bytes: of the body, and of what it holds when it is compressed.
        media: what it must say that it is: no type that browsers let pages send anywhere (Fetch standard, 2.2.2).
        too_long: raised where there is more, instead of 413.
        account: called with the size of each part, before it is kept; may raise.

    Raises:
        HTTPException: 415, another type or encoding; 413, over `most_bytes`; 400, it is not compressed as it says.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media:
        raise HTTPException(415, f"Unsupported Media Type: send Content-Type: {media}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_COMPRESSED):
        accepted = ", ".join(_COMPRESSED)
        raise HTTPException(
            415, f"Unsupported Media Type: send {accepted} or plain JSON", {"Accept-Encoding": accepted}
        )
    too_long = too_long or HTTPException(413, f"Content Too Large: at most {most_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most_bytes:
        raise too_long
    expander = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
    body, came_bytes = bytearray(), 0
    async for piece in request.stream():
        came_bytes += len(piece)
        part = piece if expander is None else _expanded(expander, piece, most_bytes + 1 - len(body))
        if max(came_bytes, len(body) + len(part)) > most_bytes:
            raise too_long
        account(len(part))
        body += part
    if expander is not None and not expander.eof:
        raise HTTPException(400, f"Bad Request: the body is not whole {encoding}")
    return bytes(body)


def _expanded(expander: "zlib._Decompress", piece: bytes, most_bytes: int) -> bytes:
    try:
        return expander.decompress(piece, most_bytes)
    except zlib.error as error:
        raise HTTPException(400, f"Bad Request: the body cannot be decompressed: {error}") from error
