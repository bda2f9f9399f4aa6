"""Loading a context: segments from the wire into the engine, in layer order, while the engine already computes.

fetch (many in flight) → verify → decode in worker threads → inject → open the layers that are complete.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field

from preread.codec.fitted import joined
from preread.codec.ladder import by_version
from preread.edge.profiles import Reader
from preread.engine.llamacpp import LlamaCpp
from preread.errors import PrereadError
from preread.plan.choose import worth_waiting
from preread.plan.cost import Link, Need
from preread.store.egress import CloudLink
from preread.store.fetch import IN_FLIGHT, Source, fetch_all, in_flight_for
from preread.values import KVBlock, ObjectRef
from preread.wire import manifest as manifests
from preread.wire import segment
from preread.wire.manifest import Manifest, SegmentPlace

_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Parcel:
    """What to load: all segments of one rung of a context, in layer order."""

    manifest: Manifest
    rung: str
    codec: Reader
    places: tuple[SegmentPlace, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on the wire."""
        return sum(place.size_bytes for place in self.places)


@dataclass(slots=True)
class Loaded:
    """How far a load has come.

    Attributes:
        started, first: when it began, and when the first byte was seen; of `time.monotonic`.
        received_bytes: of whole segments.
        seen_bytes: of all that arrived, unfinished segments included.
        seconds: until the last row was in place; None before that.
    """

    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    received_bytes: int = 0
    seen_bytes: int = 0
    seconds: float | None = None


class Segments:
    """Whole places from where single objects come from: a segment, and the one that it refines, if it does."""

    def __init__(self, source: Source[ObjectRef, bytes]) -> None:
        self._source = source

    async def get(self, place: SegmentPlace) -> list[bytes]:
        """The frames of a place, the base first. Raises as the source does."""
        return [await self._source.get(ref) for ref in place.refs]


class GaveUp(PrereadError):
    """What is left to load would take longer than computing the context here."""


def parcel(manifest: Manifest, rung: str, codec: Reader | None = None) -> Parcel:
    """Everything that must be fetched for a context at a rung.

    Args:
        manifest: of the context.
        rung: name of the rung.
        codec: decodes it; None: a codec that needs no profile.

    Raises:
        UsageError: the manifest lacks the rung.
        CorruptData: it names a codec that this preread does not know, or one that needs a profile.
    """
    found = manifests.rung_named(manifest, rung)
    if codec is None:
        plain = by_version(found.codec, rung)
        codec = Reader(lambda: plain)
    return Parcel(manifest, rung, codec, tuple(manifests.places(manifest, rung)))


async def load(
    what: Parcel,
    source: CloudLink,
    engine: LlamaCpp,
    reserved: Awaitable[None],
    link: Link | None,
    need: Need,
    done: Loaded,
) -> None:
    """Fetch, decode and inject a whole parcel, opening the engine's layers as they are complete.

    Args:
        what: the segments.
        source: where they come from.
        engine: gets the rows; its cells are there once `reserved` is.
        reserved: resolves when the engine has made room.
        link: what is believed about the way there, if anything.
        need: what computing the context would cost instead.
        done: is kept up to date.

    Raises:
        PrereadError: the first thing that went wrong. GaveUp: the link is too slow. Rows may be half written then.
    """
    loading = asyncio.ensure_future(_load(what, source, engine, reserved, link, done))
    before = source.received_bytes
    try:
        while not (await asyncio.wait([loading], timeout=_TICK_S))[0]:
            now = time.monotonic()
            done.seen_bytes = source.received_bytes - before
            if done.seen_bytes and done.first is None:
                done.first = now
            silent_s, flowing_s = (done.first or now) - done.started, now - (done.first or now)
            if done.seen_bytes < what.size_bytes and not worth_waiting(need, silent_s, flowing_s, done.seen_bytes):
                rate = done.seen_bytes / (now - done.started) * 8e-6
                raise GaveUp(f"the link is too slow: {rate:.2f} Mbit/s in the first {now - done.started:.1f} s")
    finally:
        loading.cancel()
        await asyncio.wait([loading])
    loading.result()
    done.seconds = time.monotonic() - done.started


async def _load(
    what: Parcel, source: CloudLink, engine: LlamaCpp, reserved: Awaitable[None], link: Link | None, done: Loaded
) -> None:
    missing = [len(what.manifest.chunks)] * len(what.manifest.groups)
    complete = 0
    places = what.places
    in_flight = IN_FLIGHT if link is None else in_flight_for(link.bytes_s, link.rtt_s, what.size_bytes / len(places))
    # Somewhat faster than the link is believed to be: asking late leaves it idle, asking early only shares it.
    rate_bytes_s = None if link is None else 1.5 * link.bytes_s
    ready = asyncio.ensure_future(asyncio.to_thread(what.codec.ready))  # while the first segments are on their way
    try:
        flight = fetch_all(Segments(source), places, in_flight=in_flight, rate_bytes_s=rate_bytes_s)
        async with aclosing(flight) as arrivals:
            async for index, frames in arrivals:
                place = places[index]
                done.received_bytes += sum(map(len, frames))
                await reserved
                await asyncio.shield(ready)
                # One segment is decoded at a time, while others arrive: decoding is faster than any such link.
                await asyncio.to_thread(_inject, what, place, frames, engine)
                missing[place.group] -= 1
                while complete < len(missing) and not missing[complete]:
                    engine.open_layers(what.manifest.groups[complete][1])
                    complete += 1
    finally:
        await asyncio.wait([ready])  # its thread reads the model: it must have ended before that is closed
        if not ready.cancelled():
            ready.exception()  # taken, so that asyncio does not report it


def decoded(what: Parcel, place: SegmentPlace, frames: list[bytes]) -> KVBlock:
    """The rows of a segment whose digest is right.

    Args:
        what: the parcel that it is of.
        place: which segment.
        frames: it and, before it, the one that it refines, if it does.

    Raises:
        CorruptData: it is not what the manifest says it is.
    """
    rung = manifests.rung_named(what.manifest, what.rung)
    names = [rung.base, rung.name] if rung.base else [rung.name]
    payloads = [
        segment.unpack(frame, manifests.header(what.manifest, name, place))
        for name, frame in zip(names, frames, strict=True)
    ]
    payload = joined(*payloads) if rung.base else payloads[0]
    return what.codec.decode(payload, place.tokens, place.layers, what.manifest.model.geometry)


def _inject(what: Parcel, place: SegmentPlace, frames: list[bytes], engine: LlamaCpp) -> None:
    """From bytes whose digest is right into the engine's cache."""
    engine.inject(decoded(what, place, frames))
