"""The rungs of a context as this edge can stream them: resolved once, when a manifest or a profile has come.

It knows manifests and profiles; which rung is streamed is decided in `choice.py`. Nothing is fetched or decoded here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

from preread.edge.profiles import Decoder, Profiles
from preread.edge.published import OwnModel
from preread.errors import CorruptData, PrereadError
from preread.fit.family import HALF, LOSSLESS, Gate
from preread.plan.choose import Offer
from preread.plan.legality import is_seen
from preread.values import StateShape
from preread.wire import manifest as manifests
from preread.wire.manifest import Manifest, Rung, SegmentPlace


class NotStreamable(PrereadError):
    """A rung cannot be streamed to this edge; the message says why."""


@dataclass(frozen=True, slots=True)
class Streamable:
    """One rung of a context, and what this edge needs to stream it.

    Attributes:
        manifest: of the context.
        name: of the rung.
        base: name of the rung that it refines; None: it stands alone.
        size_bytes: of all its places, with those that they refine.
        stated_dloss: as `manifests.stated_dloss`, nats a token; and `foreign_dloss` besides.
        foreign_dloss: what reading another quantisation's KV costs this edge's model at most; 0: it is the model's own.
        places: its segments in layer order, without those that nothing behind the context looks at.
        decoder: what decodes them, or why this edge cannot.
    """

    manifest: Manifest
    name: str
    base: str | None
    size_bytes: int
    stated_dloss: float | None
    places: tuple[SegmentPlace, ...]
    decoder: Decoder | str
    foreign_dloss: float = 0.0

    @property
    def group_bytes(self) -> tuple[int, ...]:
        """Of the places' bytes, those of each group of layers."""
        sizes = [0] * len(self.manifest.groups)
        for place in self.places:
            sizes[place.group] += place.size_bytes
        return tuple(sizes)

    def offer(self, first_s: float = float("inf")) -> Offer:
        """The rung to choose from; `first_s`: seconds until the first token that are expected with it."""
        return Offer(self.name, self.size_bytes, self.stated_dloss, first_s)


def resolved(manifest: Manifest, profiles: Profiles, own: OwnModel) -> tuple[Streamable, ...]:
    """The rungs of a manifest, best quality first, as they can be read with the profiles that are here.

    Args:
        manifest: of the own model, or of one that it has a gate for.
    """
    gate = own.gate(manifest.model.fingerprint)
    return tuple(_gated(_resolved(manifest, rung, profiles, own), rung, gate) for rung in manifest.rungs)


def reread(rungs: Iterable[Streamable], profiles: Profiles) -> tuple[Streamable, ...]:
    """The same rungs, as they can be read after profiles have come or gone."""
    return tuple(
        replace(known, decoder=_decoder(known.manifest, manifests.rung_named(known.manifest, known.name), profiles))
        for known in rungs
    )


def _resolved(manifest: Manifest, rung: Rung, profiles: Profiles, own: OwnModel) -> Streamable:
    places = tuple(place for place in manifests.places(manifest, rung.name) if _is_seen(place, manifest, own))
    size_bytes = sum(place.size_bytes for place in places)
    decoder = _decoder(manifest, rung, profiles)
    return Streamable(manifest, rung.name, rung.base, size_bytes, manifests.stated_dloss(rung), places, decoder)


def _is_seen(place: SegmentPlace, manifest: Manifest, own: OwnModel) -> bool:
    if isinstance(place.shape, StateShape):
        return place.tokens.stop == manifest.tokens.count
    windows = (own.layers[layer].window_tokens for layer in place.numbers)
    return is_seen(manifest.tokens.count, place.tokens, windows)


def _gated(one: Streamable, rung: Rung, gate: Gate | None) -> Streamable:
    """The rung with what the gate says that its KV costs here; infinitely much where that was not measured.

    A rung that needs a profile is read with this model's embeddings, and was written with the other's, so it was
    measured itself. What the manifest states is what the codec costs the model that it is of.
    """
    if gate is None:
        return one
    highs = [gate.high(what) for what in (LOSSLESS, HALF, *([rung.name] if rung.profile is not None else []))]
    foreign = max(0.0, *(inf if high is None else high for high in highs))
    stated = None if one.stated_dloss is None else foreign + max(0.0, one.stated_dloss)
    return replace(one, foreign_dloss=foreign, stated_dloss=stated)


def _decoder(manifest: Manifest, rung: Rung, profiles: Profiles) -> Decoder | str:
    try:
        return profiles.decoder(rung, manifest.model)
    except CorruptData as error:
        return str(error)
