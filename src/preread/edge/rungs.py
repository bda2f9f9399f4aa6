"""Which rung of a context is streamed to this edge, and what decodes it.

The choice itself is `plan.choose`'s; here is what a manifest offers, and what this edge can read of it.
"""

import logging
from dataclasses import replace

from preread.codec.base import Codec
from preread.codec.ladder import by_version, check_name, needs_profile
from preread.edge.contexts import Known
from preread.edge.load import Parcel, parcel
from preread.edge.profiles import Reader
from preread.edge.site import Site
from preread.errors import CorruptData, PrereadError, UsageError
from preread.plan.choose import Offer, choose_rung
from preread.plan.cost import Link, Need, floor_in_order_s
from preread.wire import manifest as manifests
from preread.wire.manifest import Manifest, Rung

_LOSSLESS = "lossless"

_ABOVE_FLOOR = 1.3
"""A first token comes so many times later than the floor, as a rule."""

_log = logging.getLogger(__name__)


def offers(manifest: Manifest) -> list[Offer]:
    """What a manifest has, best quality first; when it would be there is not told."""
    return [Offer(rung.name, _size_bytes(manifest, rung), stated_dloss(rung)) for rung in manifest.rungs]


def expected_s(manifest: Manifest, rung: str, site: Site, prompt_s: float) -> float:
    """Seconds until the first token if a context is streamed at this rung, what is on this edge's disk from there.

    The link is taken to be what it was when it was seen last, hours ago if need be: a wrong choice costs bytes or
    quality within the budget, and the plan sees to the time. One that was never seen brings nothing, as far as is
    known: then everything is computed here.
    """
    tokens = manifest.tokens.count
    refs = (ref for place in manifests.places(manifest, rung) for ref in place.refs)
    away_bytes = sum(ref.size_bytes for ref in refs if not site.sources.disk.holds(ref))
    need = Need(tokens, away_bytes, tokens / site.beliefs.prefill.seconds(0, tokens), prompt_s)
    link = site.beliefs.last_link or Link(0.0, site.beliefs.rtt_s)
    return _ABOVE_FLOOR * (floor_in_order_s(need, link) if away_bytes else prompt_s)


def stated_dloss(rung: Rung) -> float | None:
    """Change of the loss that a rung is taken to cost, nats a token; None: nothing is stated.

    The larger of what was measured and the KL divergence. The measured mean of a few hundred tokens scatters by more
    than any sensible budget; the divergence hardly does, and is what the loss would rise by on text that the model
    itself finds as likely as it says. Where intervals are stated, it is the upper end of the divergence's, and of the
    change itself by what it rises beyond doubt.
    """
    if (quality := rung.quality) is not None:
        (dloss, _), (_, kl) = (
            interval or (mean, mean)
            for mean, interval in (
                (quality.dloss_micronats, quality.dloss_interval_micronats),
                (quality.kl_micronats, quality.kl_interval_micronats),
            )
        )
        return max(dloss, kl) * 1e-6
    return 0.0 if rung.name == _LOSSLESS else None


def chosen(known: Known, site: Site, prompt_s: float = 0.0, *, here: bool = False) -> Parcel:
    """What to stream of a context: the rung that this edge was told to use, or else the one that its budget allows.

    Args:
        known, site: the context and the edge.
        prompt_s: what computing the prompt is expected to take, where there is one.
        here: only a rung that is whole on this edge's disk will do.

    Raises:
        PrereadError: why there is none, in one line.
    """
    manifest = _manifest(known)
    if site.rung is not None:
        return _held(parcel_at(known, site.rung, site), site) if here else parcel_at(known, site.rung, site)
    parcels: dict[str, Parcel] = {}
    problems: list[str] = []

    def usable(name: str) -> bool:
        try:
            what = parcel_at(known, name, site)
            parcels[name] = _held(what, site) if here else what
        except PrereadError as error:
            problems.append(f"rung {name}: {error}")
        return name in parcels

    offered, deadline_s = offers(manifest), site.deadline_s
    if deadline_s is not None:
        offered = [replace(offer, first_s=expected_s(manifest, offer.name, site, prompt_s)) for offer in offered]
    name = choose_rung(offered, site.max_dloss, usable, deadline_s)
    if name is not None:
        for problem in problems:
            _log.info("context %r is streamed at %s, since it cannot be at %s", known.entry.name, name, problem)
        return parcels[name]
    if problems:
        raise CorruptData("rung", "; ".join(problems))
    cheapest = min((dloss for _, dloss in _stated(manifest)), default=0.0)
    raise UsageError(f"no rung keeps the budget of {site.max_dloss:g} nats a token; the best costs {cheapest:.3g}")


def parcel_at(known: Known, name: str, site: Site) -> Parcel:
    """What to stream of a context at this rung.

    Raises:
        UsageError: the context lacks the rung.
        CorruptData: "codec", "profile": this edge cannot read it.
    """
    manifest = _manifest(known)
    rung = manifests.rung_named(manifest, name)
    check_name(rung.codec, name)
    if not needs_profile(rung.codec):
        return parcel(manifest, name)
    profile = site.contexts.profiles.of(rung, manifest.model.geometry)
    assert rung.profile is not None  # or there would be no such profile
    context, id = known.entry.context, rung.profile.id

    def make() -> Codec:
        return by_version(rung.codec, name, site.preparations.of(context, known.tokens, id, profile))

    return parcel(manifest, name, Reader(make))


def _held(what: Parcel, site: Site) -> Parcel:
    if not site.sources.without_cloud(what.places):
        raise UsageError(f"rung {what.rung} is not whole on this disk")
    return what


def _manifest(known: Known) -> Manifest:
    if known.manifest is None:
        raise CorruptData("manifest", known.why)
    return known.manifest


def _stated(manifest: Manifest) -> list[tuple[str, float]]:
    return [(offer.name, offer.dloss) for offer in offers(manifest) if offer.dloss is not None]


def _size_bytes(manifest: Manifest, rung: Rung) -> int:
    """Of all segments, with those that they refine."""
    both = [rung, manifests.rung_named(manifest, rung.base)] if rung.base else [rung]
    return sum(cell.size_bytes for part in both for row in part.segments for cell in row)
