"""Who may fetch segments from this edge where the site has a key: whoever proves it. See `wire/neighbour.py`."""

import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.store.egress import INTRODUCTION
from preread.store.routes import error_response
from preread.wire.neighbour import NONCE_BYTES, SCHEME, Claim, Introduction, SiteKey, address, same

RENEWED_S: Final = 300.0
"""A nonce is replaced after so long, and good for as long again. Neighbours ask for it every few seconds."""

_PRINTED: Final = 512


class Prover:
    """This edge's side of the proofs: what it answers who asks who it is, and whether another's proof is right.

    Args:
        key: of the site.
        me: who this edge is.
        clock: seconds that only grow.
    """

    def __init__(self, key: SiteKey, me: Introduction, clock: Callable[[], float] = time.monotonic) -> None:
        self._key, self._me, self._clock = key, me, clock
        self._nonces, self._made_s = (secrets.token_hex(NONCE_BYTES),) * 2, clock()

    def introduce(self, authorization: str, address: str) -> Introduction:
        """Who this edge is; with a proof that it has the key, for whoever says who asks."""
        asker = Claim.parse(authorization)
        said = msgspec.structs.replace(self._me, nonce=self._current()[0])
        return said if asker is None else msgspec.structs.replace(said, proof=self._key.answer(asker, said, address))

    def admits(self, authorization: str, address: str, target: str) -> bool:
        """Whether the asker has proved, for this target at this address and not long ago, that it has the key."""
        asker = Claim.parse(authorization)
        if asker is None or not asker.proof:
            return False
        expected = [self._key.request(asker, self._me.edge, nonce, address, target) for nonce in self._current()]
        return any([same(asker.proof, proof) for proof in expected])

    def _current(self) -> tuple[str, str]:
        """The nonce that is given out, and the one before it."""
        now_s = self._clock()
        if now_s - self._made_s >= RENEWED_S:
            fresh, last = secrets.token_hex(NONCE_BYTES), self._nonces[0]
            if now_s - self._made_s >= 2 * RENEWED_S:
                last = fresh
            self._nonces, self._made_s = (fresh, last), now_s
        return self._nonces


class Proven:
    """ASGI middleware: anybody may ask who this edge is; for the rest, who asks must prove to have the site's key."""

    def __init__(self, app: ASGIApp, prover: Prover) -> None:
        self._app, self._prover = app, prover

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == INTRODUCTION:
            await self._app(scope, receive, send)
            return
        target = scope["raw_path"].decode("latin-1")
        if self._prover.admits(authorization(scope), local_address(scope), target):
            await self._app(scope, receive, send)
            return
        message = "this edge serves those who prove to have its site's key: give this edge the same --site-key"
        refusal = error_response(401, message, "not_proven", headers={"WWW-Authenticate": SCHEME})
        await refusal(scope, receive, send)


def authorization(scope: Scope) -> str:
    """What a request's Authorization header says, as far as it can be of use here; "" where there is none."""
    found = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return str(found[:_PRINTED].decode("latin-1"))


def local_address(scope: Scope) -> str:
    """Where a request came in: the address that the asker has dialled, unless something translates addresses."""
    host, port = scope.get("server") or ("", 0)
    return address(host, port or 0)
