"""Where edges get segments besides this cloud: what it names, and addresses in the bucket that it signs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from preread.errors import UsageError
from preread.store.objects import Objects
from preread.wire import origins as wire
from preread.wire.digest import is_id
from preread.wire.origins import Origins

LONGEST_S: Final = 7 * 24 * 3600
"""No service signs for longer."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a cloud names. `sign`: makes the address of a segment that needs no key for a while."""

    origins: Origins = wire.NONE
    sign: Callable[[str], Awaitable[str]] | None = None


NOWHERE: Final = Named()


async def named(store: Objects, public: tuple[str, ...], signed_s: int | None) -> Named:
    """What an operator wants to be named.

    Args:
        store: whose segments they are.
        public: addresses below which its objects can be read by everybody.
        signed_s: for how long signed addresses are good; None: none are signed.

    Raises:
        UsageError: an address cannot be one that edges go to, there are too many, or the store cannot sign.
    """
    if public and signed_s is not None:
        raise UsageError("edges get segments either from a public origin or from signed addresses: not both")
    if len(public) > wire.MOST:
        raise UsageError(f"at most {wire.MOST} origins can be named, not {len(public)}")
    for address in public:
        if why := wire.why_not(address, near=True):
            raise UsageError(f"origin {address} cannot be named: no edge goes there, since {why}")
    if signed_s is None:
        return Named(Origins(tuple(one.rstrip("/") for one in public)))
    if not 1 <= signed_s <= LONGEST_S:
        raise UsageError(f"addresses are signed for 1 to {LONGEST_S} seconds, not {signed_s}")

    async def sign(key: str) -> str:
        return await store.blobs.signed(key, signed_s)

    probe = wire.segment_path("0" * 64)
    beginning = (await sign(probe.removeprefix("/"))).partition(probe)[0]
    if why := wire.why_not(beginning, near=True):
        raise UsageError(f"the bucket's own address {beginning} cannot be named: no edge goes there, since {why}")
    return Named(Origins((beginning,), signed=True), sign)


def origin_route(said: Named) -> Route:
    """GET and HEAD of /v1/origins."""

    async def answer(request: Request) -> Response:
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(wire.dumps(said.origins), headers=headers, media_type="application/json")

    return Route(wire.PATH, answer, methods=["GET"])


def redirected(route: Route, said: Named) -> Route:
    """The route of segments, which sends who asks for that to the bucket."""
    sign = said.sign
    if sign is None:
        return route

    async def answer(request: Request) -> Response:
        id = request.path_params["id"]
        if request.method != "GET" or wire.REDIRECT.lower() not in request.headers or not is_id(id):
            there: Response = await route.endpoint(request)
            return there
        location = await sign(wire.segment_path(id).removeprefix("/"))
        return Response(status_code=307, headers={"Location": location, "Cache-Control": "no-store"})

    return Route(route.path, answer, methods=["GET"])
