"""What both servers check before they listen to a request: who asks, and how much comes."""

import hmac
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.store.routes import error_response

_TYPE: Final = "application/json"


class Keys:
    """ASGI middleware: who has one of the keys is let in; anybody may ask for /health. `server` is its name."""

    def __init__(self, app: ASGIApp, api_keys: frozenset[str], server: str) -> None:
        self._app, self._server = app, server
        self._expected = [f"Bearer {key}".encode() for key in sorted(api_keys)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health" or self._admits(scope):
            await self._app(scope, receive, send)
            return
        message = f"this {self._server} needs an API key: send Authorization: Bearer KEY"
        refusal = error_response(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return any([hmac.compare_digest(given, expected) for expected in self._expected])


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request that says that it is JSON: other types a web page may send to localhost without asking.

    Raises:
        HTTPException: 415, another type; 413, over `most_bytes`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _TYPE:
        raise HTTPException(415, f"Unsupported Media Type: send Content-Type: {_TYPE}")
    too_long = HTTPException(413, f"Content Too Large: at most {most_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most_bytes:
        raise too_long
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise too_long
    return bytes(body)
