"""The profile that this cloud publishes a model's contexts with: kept in the store, and fitted once if it is not there.

It knows where profiles are kept and whom they fit; how one is fitted is `preread.fit`'s, what is in it the codec's.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from preread.codec import profile_bytes as profiles
from preread.codec.profile import Profile
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import CorruptData, UsageError
from preread.fit.codec import fit
from preread.fit.text import Text, calibration
from preread.store.claims import Claimed
from preread.store.objects import Objects
from preread.values import Fingerprint, Geometry, ObjectRef
from preread.wire.digest import object_id
from preread.wire.fields import MAX_PROFILE_BYTES

Report = Callable[[str, int, int], None]
"""Told a stage ("fit"), how many steps of it are done, and how many there are; from any thread."""

_STAGES: Final = {"read": (0, 40), "sense": (40, 25), "fit": (65, 20), "weigh": (69, 14), "measure": (85, 15)}
"""What fitting does: per cent of its time before each stage, and about how many it takes; it weighs while it fits."""

_LOOK_AGAIN_S: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A profile, and the object in the store that it was read from or written to."""

    ref: ObjectRef
    profile: Profile


async def profile_for(store: Objects, engine: LlamaCpp, worker: Worker, progress: Report) -> Stored:
    """The profile of the engine's model; where the store has none that can be used, one is fitted, which takes minutes.

    While another process on the store fits one, that is waited for.

    Raises:
        EngineError: fitting failed.
        RemoteError: the store failed.
    """
    while (stored := await kept_profile(store, engine)) is None:
        try:
            async with store.claims.held(object_id(f"profile of {engine.spec.fingerprint}".encode())):
                if (stored := await kept_profile(store, engine)) is not None:
                    return stored
                _log.info("fitting a profile for %s: this is done once, and takes minutes", engine.spec.name)
                return await keep(store, await fitted(engine, worker, calibration(), progress))
        except Claimed:
            progress("wait", 0, 1)
            await asyncio.sleep(_LOOK_AGAIN_S)
    return stored


async def kept_profile(store: Objects, engine: LlamaCpp) -> Stored | None:
    """The profile of the engine's model that the store has, as `profile_of`."""
    return await profile_of(store, engine.spec.fingerprint, engine.spec.geometry)


async def profile_of(store: Objects, model: Fingerprint, geometry: Geometry) -> Stored | None:
    """The profile of a model that the store has, if it is whole and of this very model.

    Raises:
        RemoteError: the store cannot be read.
    """
    ref = await store.profile_of(model)
    if ref is None:
        return None
    size_bytes = await store.size("profiles", ref.id)
    data = await store.read("profiles", ref.id) if size_bytes == ref.size_bytes else None
    try:
        if data is None or object_id(data) != ref.id:
            raise CorruptData("digest", "its object is missing or damaged")
        profile = profiles.loads(data)
        if (profile.fingerprint, profile.geometry) != (model, geometry):
            raise CorruptData("profile", "it is of another model")
    except CorruptData as error:
        _log.warning("the kept profile of model %s… cannot be used: %s", model[:12], error)
        return None
    return Stored(ref, profile)


async def fitted(engine: LlamaCpp, worker: Worker, text: Text, progress: Report) -> Profile:
    """Fit a profile in the engine's thread. When the caller gives up waiting, fitting ends.

    Raises:
        UsageError: the text is too short.
        EngineError: the engine failed.
    """

    def report(stage: str, done: int, total: int) -> None:
        before, share = _STAGES.get(stage, (0, 0))
        progress("fit", before + share * done // max(total, 1), 100)

    return await worker.run(lambda: fit(engine, text, report), engine.session.cancel)


async def keep(store: Objects, profile: Profile) -> Stored:
    """Store a profile; from now on its model's contexts are published with it.

    Raises:
        UsageError: it is larger than an edge would take.
        RemoteError: the store cannot be written.
    """
    data = profiles.dumps(profile)
    if len(data) > MAX_PROFILE_BYTES:
        raise UsageError(f"a profile of {len(data)} bytes cannot be published: at most {MAX_PROFILE_BYTES} are allowed")
    ref = await store.put("profiles", data)
    await store.put_profile_of(profile.fingerprint, ref)
    return Stored(ref, profile)
