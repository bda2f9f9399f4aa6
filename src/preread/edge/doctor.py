"""How fast this machine reads, how fast the link carries, and so whether streaming pays here.

It measures and judges; printing is the command's.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from preread.codec.ladder import ladder
from preread.edge.machine import Machine, machine
from preread.engine.llamacpp import LlamaCpp
from preread.engine.model import Spec
from preread.engine.sampling import Sampling
from preread.engine.selftest import self_test
from preread.errors import PrereadError
from preread.plan.cost import break_even_bytes_s
from preread.store.egress import CloudLink
from preread.store.fetch import fetch_all
from preread.values import Fingerprint, ObjectRef
from preread.wire import catalogue as catalogues
from preread.wire import manifest as manifests
from preread.wire.manifest import Manifest, Quality, Rung

_PREFILL_TOKENS, _DECODE_TOKENS = 512, 32
_ROUND_TRIPS: Final = 5
_ENOUGH_S, _PATIENCE_S, _ENOUGH_BYTES = 1.0, 10.0, 8_000_000
_BITS: Final = {"lossless": 13.5, "q8": 8.35, "q4": 4.32}
"""Bits a value at each rung, measured on KV of SmolLM2-135M and Qwen2.5-0.5B; used where no context is published."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The model, the self-test's result, rates in tokens a second.

    Attributes:
        no_injection: why nothing can be streamed in; None: it can.
        tiles: whether prompts attend in tiles, `engine/attention.c`.
    """

    model: Spec
    threads: int
    no_injection: str | None
    prefill_tokens_s: float
    decode_tokens_s: float
    tiles: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """The link to the cloud.

    Attributes:
        cloud: its URL.
        problem: why the cloud cannot be used; None when it can.
        rtt_s: round trip, median.
        bytes_s: rate; None when it could not be measured, for which `note` gives the reason.
        note: what the rate was measured with, or why it was not.
    """

    cloud: str
    problem: str | None = None
    rtt_s: float | None = None
    bytes_s: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class RungCost:
    """A rung's size, and the link rate above which streaming it beats computing.

    `measured`: the size is that of a published context, not an estimate. `quality`: what the rung is stated to change;
    None where nothing is stated.
    """

    rung: str
    bytes_per_token: float
    measured: bool
    break_even_bytes_s: float
    quality: Quality | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found; `link` is None when no cloud was named. `verdict` is one sentence for people."""

    machine: Machine
    engine: Engine
    link: Link | None
    rungs: tuple[RungCost, ...]
    verdict: str


def examine(model: Path, name: str, link: CloudLink | None, cloud: str | None, *, threads: int = 0) -> Report:
    """Measure everything; takes some seconds.

    Args:
        model: GGUF file; `name`: what to call it.
        link: to the cloud at `cloud`, closed at the end; None: there is none.
        threads: as for `LlamaCpp.open`.

    Raises:
        UsageError, EngineError: the model cannot be loaded, or fails. A cloud that cannot be used is no error.
    """
    engine = _engine(model, name, threads)
    found, manifest = None, None
    if link is not None:
        found, manifest = asyncio.run(_link(link, cloud or "", engine.model.fingerprint))
    rungs = _costs(engine, manifest)
    return Report(machine(), engine, found, rungs, verdict(engine, found, rungs))


def verdict(engine: Engine, link: Link | None, rungs: tuple[RungCost, ...]) -> str:
    """Whether streaming pays on this machine, and from which link rate on."""
    if engine.no_injection:
        return f"Contexts are computed here, never streamed: {engine.no_injection}."
    needed = ", ".join(f"{_mbps(rung.break_even_bytes_s)} ({rung.rung})" for rung in rungs)
    if link is None or link.bytes_s is None:
        return f"Streaming a long context beats computing it on links faster than {needed}."
    carries = f"this link carries {_mbps(link.bytes_s)}"
    paying = [rung for rung in rungs if link.bytes_s > rung.break_even_bytes_s]
    if not paying:
        return f"Streaming does not pay: {carries}, and computing here is faster below {needed}."
    best = paying[0]
    sooner = link.bytes_s / best.break_even_bytes_s
    return f"Streaming pays: {carries}, so a long context at rung {best.rung} is here {sooner:,.1f} times sooner."


def _mbps(bytes_s: float) -> str:
    mbps = bytes_s * 8e-6
    return f"{mbps:.3g} Mbit/s" if mbps < 100 else f"{mbps:,.0f} Mbit/s"


def _engine(model: Path, name: str, threads: int) -> Engine:
    engine = LlamaCpp.open(model, name=name, window_tokens=2 * _PREFILL_TOKENS, threads=threads)
    try:
        tested = self_test(engine)
        tokens = (np.arange(_PREFILL_TOKENS, dtype=np.int64) * 101 + 7) % engine.spec.vocab_size
        started = time.monotonic()
        engine.session.prefill(tokens.astype(np.int32))
        prefill_s = time.monotonic() - started
        tiles = engine.attention is not None and engine.attention.on
        decode_tokens_s = _decode_tokens_s(engine)
        return Engine(
            engine.spec, engine.threads, tested.no_injection, _PREFILL_TOKENS / prefill_s, decode_tokens_s, tiles
        )
    finally:
        engine.close()


def _decode_tokens_s(engine: LlamaCpp) -> float:
    """Rate after the first token, of a text that any model goes on with."""
    prompt = engine.tokenize("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,", start=True)
    times = [time.monotonic() for _ in engine.session.generate(prompt, Sampling(max_tokens=_DECODE_TOKENS), reuse=0)]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


async def _link(link: CloudLink, cloud: str, fingerprint: Fingerprint) -> tuple[Link, Manifest | None]:
    async with link:
        try:
            found = await link.catalogue()
            body, etag = found or (b"", "")
            rtt_s = await _round_trip_s(link, etag)
            manifest, name = await _published(link, body, fingerprint)
            if manifest is None:
                note = "nothing is published for this model to measure the rate with"
                return Link(cloud, rtt_s=rtt_s, note=note), None
            rate = await _rate(link, manifest)
        except PrereadError as error:
            return Link(cloud, problem=str(error)), None
    note = f"measured with {name!r}" if rate else f"no segment of {name!r} arrived within {_PATIENCE_S:.0f} s"
    return Link(cloud, rtt_s=rtt_s, bytes_s=rate, note=note), manifest


async def _round_trip_s(link: CloudLink, etag: str) -> float:
    """Median over requests that transfer next to nothing, on a connection that is open already."""
    times = []
    for _ in range(_ROUND_TRIPS):
        started = time.monotonic()
        await link.catalogue(etag)
        times.append(time.monotonic() - started)
    return statistics.median(times)


async def _published(link: CloudLink, body: bytes, fingerprint: Fingerprint) -> tuple[Manifest | None, str]:
    """The longest published context of this model."""
    entries = [entry for entry in catalogues.loads(body).contexts if entry.fingerprint == fingerprint]
    if not entries:
        return None, ""
    longest = max(entries, key=lambda entry: entry.token_count)
    return manifests.loads(await link.get(catalogues.manifest_ref(longest))), longest.name


async def _rate(link: CloudLink, manifest: Manifest) -> float | None:
    """Bytes a second while segments are fetched; the best rung first, for segments large enough to show it."""
    refs = [ref for rung in manifest.rungs for place in manifests.places(manifest, rung.name) for ref in place.refs]
    started, received_bytes, elapsed_s = time.monotonic(), 0, 0.0
    try:
        async with asyncio.timeout(_PATIENCE_S):
            async for frame in _segments(link, refs):
                received_bytes, elapsed_s = received_bytes + len(frame), time.monotonic() - started
                if elapsed_s > _ENOUGH_S or received_bytes > _ENOUGH_BYTES:
                    break
    except TimeoutError:
        pass  # what has come until then tells the rate
    return received_bytes / elapsed_s if received_bytes else None


async def _segments(link: CloudLink, refs: list[ObjectRef]) -> AsyncIterator[bytes]:
    async with aclosing(fetch_all(link, refs)) as frames:
        async for _, frame in frames:
            yield frame


def _costs(engine: Engine, manifest: Manifest | None) -> tuple[RungCost, ...]:
    """Every rung of the published context, and estimates of the others whose size is known; the largest first."""
    published = [] if manifest is None else [_published_cost(rung, engine, manifest) for rung in manifest.rungs]
    names = {cost.rung for cost in published}
    estimates = [_estimate(rung, engine) for rung in ladder() if rung not in names and rung in _BITS]
    return tuple(sorted([*published, *estimates], key=lambda cost: -cost.bytes_per_token))


def _published_cost(rung: Rung, engine: Engine, manifest: Manifest) -> RungCost:
    size_bytes = sum(place.size_bytes for place in manifests.places(manifest, rung.name))
    per_token = size_bytes / manifest.tokens.count
    needed = break_even_bytes_s(engine.prefill_tokens_s, per_token)
    return RungCost(rung.name, per_token, True, needed, rung.quality)


def _estimate(rung: str, engine: Engine) -> RungCost:
    per_token = _BITS[rung] / 8 * engine.model.token_bytes / 2
    return RungCost(rung, per_token, False, break_even_bytes_s(engine.prefill_tokens_s, per_token))
