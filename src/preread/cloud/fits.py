"""What was learnt of models, as a cloud lists it, takes it and gives it to others.

A profile that is pushed becomes that of its model, as if it had been fitted here; the others are kept side by side.
It knows which are there and what is checked; what is in them is the parsers' of `preread.fit.fits`.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preread.cloud.turns import Turns
from preread.errors import CorruptData, Full, Overloaded, UsageError
from preread.fit.fits import described
from preread.store import guard, routes
from preread.store.objects import Objects
from preread.values import Fingerprint, Kind, ObjectId, ObjectRef
from preread.wire import fits as wire
from preread.wire.digest import is_id, object_id
from preread.wire.fits import MAX_FIT_BYTES, MAX_FITS, Fit

MEDIA: Final = "application/octet-stream"
MOST_COMING_BYTES: Final = 2 * MAX_FIT_BYTES
"""Of all fits that are being pushed."""

_LATER_S: Final = 30.0
_log = logging.getLogger(__name__)


class FitKeeper:
    """The fits of one store.

    Args:
        store: where they are.
        models: names of models that the cloud runs.
        changes: whose turn it is to change what contexts are made of.
    """

    def __init__(self, store: Objects, models: Mapping[Fingerprint, str], changes: Turns) -> None:
        self._store, self._models, self._changes = store, models, changes
        self._checks = Turns("checked")
        self._coming_bytes = 0
        self._profiles: dict[ObjectId, Fit] = {}

    async def listed(self) -> wire.Fits:
        """All of them, the oldest first, with the names of models that are known here.

        Raises:
            RemoteError: the store cannot be read.
        """
        profiles = [await self._profile(*slot) for slot in await self._store.profiles()]
        found = [fit for fit in profiles if fit is not None] + await self._store.fits()
        found.sort(key=lambda fit: (fit.created or "", fit.id))
        names = {entry.fingerprint: entry.model for entry in await self._store.names()} | dict(self._models)
        return wire.Fits(tuple(_named(fit, names) for fit in found[-MAX_FITS:]))

    async def size(self, kind: Kind, id: ObjectId) -> int | None:
        """An object's size in bytes; None if absent."""
        found = await self._store.size(kind, id)
        return await self._store.size("profiles", id) if found is None else found

    async def read(self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None) -> bytes | None:
        """An object's bytes; profiles are kept where contexts refer to them."""
        found = await self._store.read(kind, id, start, stop)
        return await self._store.read("profiles", id, start, stop) if found is None else found

    async def push(self, id: ObjectId, request: Request) -> Fit:
        """Take the fit of that name which is the request's body; one that is there stays as it is.

        Raises:
            HTTPException: the body is too large, or of another type.
            UsageError: it is not that object, or no fit that anybody can use; Full: there are too many.
            Overloaded: others are pushing too.
            RemoteError: the store cannot be written.
        """
        caller, mine = guard.caller(request.scope), 0

        def account(size_bytes: int) -> None:
            nonlocal mine
            if self._coming_bytes + size_bytes > MOST_COMING_BYTES:
                raise Overloaded("others are pushing fits: try again later", retry_after_s=_LATER_S)
            self._coming_bytes += size_bytes
            mine += size_bytes

        try:
            data = await guard.read_body(request, MAX_FIT_BYTES, media=MEDIA, account=account)
            async with self._checks.turn(caller, 0, lambda ahead: None):
                fit = await asyncio.to_thread(_checked, id, data)
                await self._keep(fit, data, caller)
        finally:
            self._coming_bytes -= mine
        return fit

    async def remove(self, id: ObjectId, caller: str) -> None:
        """Forget a fit.

        Raises:
            UsageError: there is none of this name, or it is the profile of a model.
        """
        async with self._checks.turn(caller, 0, lambda ahead: None):
            if await self._store.remove_fit(id):
                return
            if any(ref.id == id for _, ref, _ in await self._store.profiles()):
                raise UsageError("a model's profile cannot be removed, as its contexts need one: push another for it")
            raise UsageError(f"there is no fit {id[:12]}…; see `preread fits ls`")

    async def _keep(self, fit: Fit, data: bytes, caller: str) -> None:
        present = (await self.listed()).fits
        if fit.id in {one.id for one in present}:
            return
        replaces = fit.kind == "codec" and any((fit.kind, fit.fingerprint) == (p.kind, p.fingerprint) for p in present)
        if len(present) >= MAX_FITS and not replaces:
            raise Full(f"this cloud has {MAX_FITS} fits, which is all that it lists: `preread fits rm` removes one")
        if fit.kind != "codec":
            await self._store.put("fits", data)
            await self._store.put_fit(fit)
            return
        async with self._changes.turn(caller, 0, lambda ahead: None):  # what is published now may need the former one
            ref = await self._store.put("profiles", data)
            await self._store.put_profile_of(Fingerprint(fit.fingerprint), ref)

    async def _profile(self, of: Fingerprint, ref: ObjectRef, since: str) -> Fit | None:
        """The profile of a model, as it says itself; read once. None if it is missing, damaged or another's."""
        fit = self._profiles.get(ref.id)
        if fit is None:
            size_bytes = await self._store.size("profiles", ref.id)
            data = await self._store.read("profiles", ref.id) if size_bytes == ref.size_bytes else None
            try:
                fit = await asyncio.to_thread(_checked, ref.id, data or b"")
            except UsageError as error:
                _log.warning("the profile of model %s… is left out of the fits: %s", of[:12], error)
                return None
            self._profiles[ref.id] = fit
        return msgspec.structs.replace(fit, created=since) if (fit.kind, fit.fingerprint) == ("codec", of) else None


def fit_routes(keeper: FitKeeper, cache_control: str) -> list[Route]:
    """/v1/fits and /v1/fits/{id}."""
    return [
        Route(wire.PATH, partial(_list, keeper), methods=["GET"]),
        routes.object_route("fits", lambda request: keeper, cache_control),
        Route(f"{wire.PATH}/{{id}}", partial(_push, keeper), methods=["PUT"]),
        Route(f"{wire.PATH}/{{id}}", partial(_remove, keeper), methods=["DELETE"]),
    ]


async def _list(keeper: FitKeeper, request: Request) -> Response:
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    unasked = set(wire.LATER_KINDS) - set(request.query_params.getlist(wire.ALSO))
    listed = wire.Fits(tuple(fit for fit in (await keeper.listed()).fits if fit.kind not in unasked))
    return Response(wire.dumps(listed), headers=headers, media_type="application/json")


async def _push(keeper: FitKeeper, request: Request) -> Response:
    fit = await keeper.push(_id(request), request)
    return Response(msgspec.json.encode(fit), headers={"Cache-Control": "no-store"}, media_type="application/json")


async def _remove(keeper: FitKeeper, request: Request) -> Response:
    id = _id(request)
    await keeper.remove(id, guard.caller(request.scope))
    return JSONResponse({"removed": id}, headers={"Cache-Control": "no-store"})


def _id(request: Request) -> ObjectId:
    id = request.path_params["id"]
    if not is_id(id):
        raise UsageError(f"an id is 64 lower-case hex digits, not {id[:80]!r}")
    return ObjectId(id)


def _checked(id: ObjectId, data: bytes) -> Fit:
    """What the bytes are, if they are the object of that name.

    Raises:
        UsageError: they are not, or no fit that can be used; and why.
    """
    try:
        if object_id(data) != id:
            raise CorruptData("digest", f"these {len(data)} bytes are not the object {id[:12]}…")
        return described(data)
    except CorruptData as error:
        raise UsageError(str(error)) from error


def _named(fit: Fit, names: Mapping[Fingerprint, str]) -> Fit:
    large = None if fit.large is None else names.get(fit.large)
    return msgspec.structs.replace(fit, model=names.get(fit.fingerprint), large_model=large)
