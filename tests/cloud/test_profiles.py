"""The cloud's profile of its model: kept, read back, refused when it is not what it should be, and fitted in peace."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preread.cloud.profiles import fitted, keep, kept_profile, profile_for
from preread.cloud.publish import needed, publish
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.fit.text import Text, calibration
from preread.store.objects import Objects, open_store
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry, Layer, RowShape, alike


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[LlamaCpp]:
    engine = LlamaCpp.open(smollm, window_tokens=1024, scored_tokens=TAIL_TOKENS)
    yield engine
    engine.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path))


def some_profile(engine: LlamaCpp, fingerprint: Fingerprint | None = None, geometry: Geometry | None = None):  # type: ignore[no-untyped-def]
    spec = engine.spec
    return plain_profile(fingerprint or spec.fingerprint, geometry or spec.geometry, 576, {"b4": (0.1, 0.0)})


def unheard(stage: str, done: int, total: int) -> None:
    raise AssertionError("nothing was to be fitted")


def test_a_kept_profile_is_used_again(engine: LlamaCpp, worker: Worker, store: Objects) -> None:
    kept = asyncio.run(keep(store, some_profile(engine)))
    found = asyncio.run(profile_for(store, engine, worker, unheard))
    assert found.ref == kept.ref and found.profile.rungs[0].name == "b4"


def test_a_damaged_or_foreign_profile_is_as_none(
    engine: LlamaCpp, store: Objects, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert asyncio.run(kept_profile(store, engine)) is None and not caplog.records
    ref = asyncio.run(keep(store, some_profile(engine))).ref
    path = tmp_path / "profiles" / ref.id[:2] / ref.id
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert asyncio.run(kept_profile(store, engine)) is None and "missing or damaged" in caplog.text
    path.write_bytes(whole[:-1] + b"?")
    assert asyncio.run(kept_profile(store, engine)) is None
    path.unlink()
    assert asyncio.run(kept_profile(store, engine)) is None
    for foreign in (some_profile(engine, Fingerprint("0" * 64)), some_profile(engine, geometry=Geometry(2, 1, 8))):
        other = asyncio.run(keep(store, foreign)).ref
        asyncio.run(store.put_profile_of(engine.spec.fingerprint, other))
        assert asyncio.run(kept_profile(store, engine)) is None
    assert "of another model" in caplog.text


@pytest.mark.long
def test_fitting_that_is_given_up_ends_soon_and_leaves_nothing(
    engine: LlamaCpp, worker: Worker, store: Objects, tmp_path: Path
) -> None:
    reports: list[tuple[str, int, int]] = []

    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def report(*told: object) -> None:
            reports.append(told)  # type: ignore[arg-type]
            loop.call_soon_threadsafe(begun.set)

        fitting = asyncio.create_task(profile_for(store, engine, worker, report))
        await begun.wait()
        fitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fitting

    asyncio.run(main())
    assert all(stage == "fit" and 0 <= done < total == 100 for stage, done, total in reports)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    engine.session.prefill(np.arange(100, 120, dtype=np.int32))  # the engine is none the worse
    assert engine.session.context_tokens == 20


def test_too_little_text_is_a_usage_error(engine: LlamaCpp, worker: Worker) -> None:
    with pytest.raises(UsageError):
        asyncio.run(fitted(engine, worker, Text("short", ("Too short.",)), lambda *_: None))
    assert len(calibration().parts) > 1


def test_who_needs_a_profile() -> None:
    layers = alike(Geometry(2, 2, 64))
    assert needed(None, layers) and needed(("lossless", "b2"), layers) and needed(("b1.5",), layers)
    assert not needed(("lossless", "q8", "q4"), layers)
    differing = (*layers, Layer(RowShape(2, 128, 128)))
    assert not needed(None, differing), "no profile is fitted for layers that differ"


def test_rungs_come_best_first_and_unknown_ones_are_refused(engine: LlamaCpp, worker: Worker, store: Objects) -> None:
    tokens = engine.tokenize("A short text about nothing in particular.", start=True)
    stored = asyncio.run(keep(store, replace(some_profile(engine))))

    def published(*rungs: str) -> dict[str, int]:
        work = publish(store, engine, worker, "name", tokens, "text", rungs, lambda *_: None, stored)
        return asyncio.run(work).rung_bytes

    assert list(published("b4", "q8", "lossless")) == ["lossless", "q8", "b4"]
    with pytest.raises(UsageError, match="unknown rung 'b3'; known rungs: lossless, q8, q4, b4"):
        published("lossless", "b3")
    assert [entry.name for entry in asyncio.run(store.names())] == ["name"]


def test_what_a_rung_refines_is_published_and_named_with_it(engine: LlamaCpp, worker: Worker, store: Objects) -> None:
    tokens = engine.tokenize("A short text about nothing in particular.", start=True)
    plain = plain_profile(engine.spec.fingerprint, engine.spec.geometry, 576, {"b4": (0.1, 0.0), "b2": (0.8, 0.0)})
    finer = replace(plain, rungs=(replace(plain.rungs[0], base="b2"), plain.rungs[1]))
    stored = asyncio.run(keep(store, finer))
    work = publish(store, engine, worker, "name", tokens, "text", ("b4",), lambda *_: None, stored)
    published = asyncio.run(work)
    assert list(published.rung_bytes) == ["b4", "b2"] and published.bases == {"b4": "b2"}
