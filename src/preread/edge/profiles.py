"""The profiles that an edge has read, and those that are ready to decode one context.

It knows models, sizes and threads; where profiles come from and are kept is in `contexts.py`, which rung can be
read with them in `rungs.py`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preread.codec import profile_bytes as codec_profiles
from preread.codec.base import Codec, Payload
from preread.codec.ladder import by_version, check_name, needs_profile
from preread.codec.profile import Prepared, Profile, prepare
from preread.codec.state import state_codec_by_version
from preread.edge.published import OwnModel
from preread.errors import CorruptData
from preread.plan.match import Tokens
from preread.values import ContextId, Geometry, KVBlock, KVShape, ObjectId, ObjectRef, Span
from preread.wire import manifest as manifests
from preread.wire.manifest import Manifest, Model, Rung

MOST_PROFILES = 8
"""A model has one profile at a time, and contexts that were published with earlier ones may still refer to those."""

_MOST_PREPARED = 4

Embed = Callable[[Tokens], npt.NDArray[np.float32]]


def wanted(contexts: Iterable[Manifest]) -> list[ObjectRef]:
    """The profiles that some manifests refer to, each once, as many as are kept."""
    refs = [manifests.profile_ref(rung) for manifest in contexts for rung in manifest.rungs]
    return list(dict.fromkeys(ref for ref in refs if ref is not None))[:MOST_PROFILES]


class Profiles:
    """What was read of the profiles of the models whose KV an edge reads. Changed as a whole by each sync."""

    def __init__(self, own: OwnModel) -> None:
        self._own = own
        self._read: dict[ObjectId, Profile | CorruptData] = {}

    def __contains__(self, id: ObjectId) -> bool:
        return id in self._read

    def read(self, id: ObjectId, data: bytes) -> Profile:
        """The object of this name, whose digest is right. It takes a while, in any thread, and changes nothing.

        Raises:
            CorruptData: why it cannot be used.
        """
        profile = codec_profiles.loads(data)
        if not self._own.streams(profile.fingerprint):
            raise CorruptData("profile", f"profile {id[:12]}… is of another model")
        return profile

    def put(self, id: ObjectId, read: Profile | CorruptData) -> None:
        """Keep what was read, or why it cannot be used."""
        self._read[id] = read

    def keep_only(self, ids: set[ObjectId]) -> bool:
        """Forget all others; whether there were any."""
        before, self._read = len(self._read), {id: read for id, read in self._read.items() if id in ids}
        return len(self._read) < before

    def decoder(self, rung: Rung, model: Model) -> "Decoder":
        """What decodes a rung of a manifest of this model.

        Raises:
            CorruptData: "codec", "profile": this edge cannot read it.
        """
        check_name(rung.codec, rung.name)
        if rung.states is not None:
            state_codec_by_version(rung.states, rung.name)  # or it is one that this release does not know
        if not needs_profile(rung.codec):
            by_version(rung.codec, rung.name)  # or it is one that this release does not know
            return Decoder(rung.codec, rung.name)
        profile = self.of(rung, model)
        assert rung.profile is not None  # or there would be no such profile
        return Decoder(rung.codec, rung.name, rung.profile.id, profile)

    def of(self, rung: Rung, model: Model) -> Profile:
        """What a rung of a manifest of this model needs for decoding.

        Raises:
            CorruptData: "profile": it names none, or one that is not here or cannot be used.
        """
        if rung.profile is None:
            raise CorruptData("profile", f"rung {rung.name} needs a profile, and its manifest names none")
        found = self._read.get(rung.profile.id)
        if found is None:
            raise CorruptData("profile", f"profile {rung.profile.id[:12]}… of rung {rung.name} is not here yet")
        if isinstance(found, CorruptData):
            raise CorruptData(found.reason, f"profile of rung {rung.name} cannot be used: {found}") from found
        if found.fingerprint != model.fingerprint:
            raise CorruptData("profile", f"profile of rung {rung.name} is of another model than the context")
        if found.geometry != model.geometry:
            raise CorruptData("profile", f"profile of rung {rung.name} is of {found.geometry}, not {model.geometry}")
        if rung.name not in {fitted.name for fitted in found.rungs}:
            raise CorruptData("profile", f"profile {rung.profile.id[:12]}… has no rung {rung.name}")
        return found


@dataclass(frozen=True, slots=True)
class Decoder:
    """What decodes a rung, without anything that costs time or memory: its `codec` is made when it is needed.

    Attributes:
        version, rung: of the codec, as a manifest states them.
        id, profile: the profile that it needs, if any; what it says follows from its id.
    """

    version: str
    rung: str
    id: ObjectId | None = None
    profile: Profile | None = field(default=None, compare=False, repr=False)

    def codec(self, context: ContextId, tokens: Tokens, preparations: "Preparations") -> Codec:
        """The codec for a context of these tokens. Blocks while a profile is being prepared for them.

        Raises:
            PrereadError: as `Preparations.of` does.
        """
        if self.id is None or self.profile is None:
            return by_version(self.version, self.rung)
        return by_version(self.version, self.rung, preparations.of(context, tokens, self.id, self.profile))


class Reader:
    """Decodes the segments of one rung of one context. Thread-safe.

    Getting ready takes a while where a profile has to be prepared for the context's tokens: `make` is called once, by
    whoever needs the codec first.
    """

    def __init__(self, make: Callable[[], Codec]) -> None:
        self._make = make
        self._codec: Codec | None = None
        self._lock = threading.Lock()

    def ready(self) -> Codec:
        """The codec. Blocks while it is being made.

        Raises:
            PrereadError: as `make` does.
        """
        with self._lock:
            if self._codec is None:
                self._codec = self._make()
            return self._codec

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry | KVShape) -> KVBlock:
        """As `Codec.decode`."""
        return self.ready().decode(payload, tokens, layers, geometry)


class Preparations:
    """Profiles made ready for a context's tokens; those that were used last are kept. Thread-safe.

    Args:
        embed: the model's embeddings (tokens, width) of token ids.
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[ContextId, ObjectId], Prepared] = OrderedDict()

    def of(self, context: ContextId, tokens: Tokens, id: ObjectId, profile: Profile) -> Prepared:
        """The profile `id`, ready for a context. Blocks while it is being prepared.

        Raises:
            PrereadError: the model's embeddings cannot be read.
        """
        key = context, id
        with self._lock:
            if key not in self._made:
                different, places = np.unique(tokens, return_inverse=True)
                self._made[key] = prepare(profile, self._embed(different), places)
            self._made.move_to_end(key)
            while len(self._made) > _MOST_PREPARED:
                self._made.popitem(last=False)
            return self._made[key]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._made.clear()
