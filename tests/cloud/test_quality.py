"""What a cloud states of a context's rungs is measured on that context, through the bytes that it stored."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.cloud.profiles import Stored, keep
from preread.cloud.publish import publish
from preread.cloud.quality import LONGEST_TOKENS, Found, measured_rung, stated, windows
from preread.codec.profile import Profile, Quality
from preread.engine.context import WINDOWS
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.worker import Worker
from preread.errors import CorruptData
from preread.fit.quality import Score
from preread.plan.choose import MAX_DLOSS
from preread.store.objects import Objects, open_store
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry
from preread.wire import catalogue, manifest
from preread.wire.manifest import stated_dloss

CLAIMED = {"b4": (0.02, 0.0001), "b2": (0.2, 0.001), "b1": (2.0, 0.002)}
"""A fit that found its coarsest rung harmless: on other text it is not."""


SMALL = plain_profile(Fingerprint("0" * 64), Geometry(1, 1, 8), 8, CLAIMED)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024, scored_tokens=WINDOWS * LONGEST_TOKENS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tokens(engine: LlamaCpp) -> Tokens:
    return engine.tokenize(" ".join(str(n * n % 997) for n in range(900)), special=False, start=True)[:800]


@pytest.fixture(scope="module")
def profile(engine: LlamaCpp, tokens: Tokens) -> Profile:
    width = engine.embeddings(tokens[:1]).shape[1]
    return plain_profile(engine.spec.fingerprint, engine.spec.geometry, width, CLAIMED)


def published(
    engine: LlamaCpp, profile: Profile, tokens: Tokens, store: Objects | None = None
) -> dict[str, manifest.Rung]:
    """The rungs as the manifest has them."""
    store, worker = store or open_store("memory:"), Worker()

    async def work(store: Objects) -> bytes | None:
        kept: Stored = await keep(store, profile)
        done = await publish(store, engine, worker, "text", tokens, "text", None, lambda *_: None, kept)
        return await store.read("manifests", catalogue.manifest_ref(done.entry).id)

    data = asyncio.run(work(store))
    worker.close()
    assert data is not None
    return {rung.name: rung for rung in manifest.loads(data).rungs}


def test_a_rung_that_the_fit_found_harmless_is_stated_as_it_is_on_this_text(
    engine: LlamaCpp, profile: Profile, tokens: Tokens
) -> None:
    rungs = published(engine, profile, tokens)
    assert rungs["lossless"].quality is None
    measured = rungs["b1"].quality
    assert measured is not None and measured.measured_on == "context" and measured.kl_interval_micronats is not None
    assert measured.tokens == sum(map(len, windows(800, 1024, WINDOWS * LONGEST_TOKENS)))
    low, high = measured.kl_interval_micronats
    assert MAX_DLOSS * 1e6 < low < measured.kl_micronats < high
    assert stated_dloss(rungs["b1"]) == pytest.approx(high * 1e-6)
    inferred = rungs["b2"].quality
    assert inferred is not None and inferred.measured_on == "inferred"
    assert inferred.kl_micronats == pytest.approx(measured.kl_micronats / 2, rel=0.01)


def test_what_came_back_from_the_store_is_what_was_measured(
    engine: LlamaCpp, profile: Profile, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = replace(profile, rungs=profile.rungs[:1])
    first = published(engine, fine, tokens)["b4"].quality
    assert first is not None and first.measured_on == "context" and first.kl_micronats < MAX_DLOSS * 1e6

    async def gone(*_: object) -> None:
        return None

    store = open_store("memory:")
    monkeypatch.setattr(store, "read", gone)
    with pytest.raises(CorruptData, match="stored just now, and is not there"):
        published(engine, fine, tokens, store)
    assert asyncio.run(store.names()) == []


def test_a_rung_that_refines_another_is_measured_with_what_it_refines(
    engine: LlamaCpp, profile: Profile, tokens: Tokens
) -> None:
    coarse, fine = (profile.rung(name) for name in ("b1", "b4"))
    coarse = replace(coarse, quality=Quality(0.5, 0.5, 0.5, 1000))
    store = open_store("memory:")
    rungs = published(engine, replace(profile, rungs=(replace(fine, base="b1"), coarse)), tokens, store)
    assert rungs["b4"].base == "b1" and rungs["b1"].base is None
    measured, inferred = rungs["b4"].quality, rungs["b1"].quality
    assert measured is not None and measured.measured_on == "context"
    assert inferred is not None and inferred.measured_on == "inferred"
    assert 0 < measured.kl_micronats < MAX_DLOSS * 1e6  # b1 alone: 0.39 nats


def test_a_context_too_short_to_be_measured_is_stated_with_caution(
    engine: LlamaCpp, profile: Profile, tokens: Tokens
) -> None:
    for rung in list(published(engine, profile, tokens[:200]).values())[1:]:
        assert rung.quality is not None and rung.quality.measured_on == "fit"
        dloss = stated_dloss(rung)
        assert dloss is not None and dloss > 3 * CLAIMED[rung.name][1]


def test_an_engine_that_scores_nothing_states_with_caution(tiny_model: Path, profile: Profile, tokens: Tokens) -> None:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024)) as engine:
        quality = published(engine, profile, tokens)["b1"].quality
    assert quality is not None and quality.measured_on == "fit"


@given(st.integers(1, 40_000), st.integers(1, 40_000), st.sampled_from([0, 16, 64, 128, 512]))
def test_windows_lie_apart_within_the_context_and_beside_it_in_the_engine(
    tokens: int, window_tokens: int, scored_tokens: int
) -> None:
    found = windows(tokens, window_tokens, scored_tokens)
    total = sum(map(len, found))
    assert len(found) in (0, WINDOWS) and total <= scored_tokens and (not found or tokens + total <= window_tokens)
    assert total <= max(32, tokens // 20) and (not found or total >= 32)
    assert all(len(span) <= LONGEST_TOKENS for span in found)
    assert all(before.stop <= after.start for before, after in pairwise(found))
    if found:
        assert found[0].start >= tokens // 4 and found[-1].stop == tokens


def test_the_rung_that_an_edge_is_likely_to_choose_is_measured(profile: Profile) -> None:
    def made(*rungs: tuple[str, float, str | None]) -> Profile:
        first = profile.rungs[0]
        return replace(
            profile,
            rungs=tuple(replace(first, name=n, quality=Quality(kl, kl, 1, 1), base=base) for n, kl, base in rungs),
        )

    several = made(("b3", 0.001, "b1"), ("b2", 0.004, None), ("b1", 0.007, None), ("b0", 0.02, None))
    assert measured_rung(several, ["b3", "b2", "b1", "b0"]) == "b1"
    assert measured_rung(several, ["b3", "b2", "lossless"]) == "b2"
    assert measured_rung(several, ["b0"]) == "b0"
    assert measured_rung(several, ["b3"]) == "b3"
    assert measured_rung(several, ["lossless"]) is None


scores = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(
    lambda means: tuple(
        Score(np.full(LONGEST_TOKENS - 1, mean / 2), np.full(LONGEST_TOKENS, mean), np.ones(LONGEST_TOKENS, bool))
        for mean in means
    )
)


@given(scores, st.floats(0, 0.5), st.floats(0, 0.5), st.one_of(st.none(), st.floats(-0.1, 0.1)))
def test_every_statement_can_be_written_and_encloses_its_mean(
    found: tuple[Score, ...], kl: float, other_kl: float, read: float | None
) -> None:
    rungs = tuple(
        replace(rung, quality=Quality(value, value, 0.9, 1000))
        for rung, value in zip(SMALL.rungs[:2], (kl, other_kl), strict=True)
    )
    made = replace(SMALL, rungs=rungs)
    way = None if read is None else Quality(read, abs(read), 0.8, 100)
    for rung in rungs:
        for measured in (None, Found(rungs[0].name, found)):
            told = stated(rung, made, measured, way)
            assert told.kl_interval_micronats is not None and told.dloss_interval_micronats is not None
            assert told.kl_interval_micronats[0] <= told.kl_micronats <= told.kl_interval_micronats[1]
            assert told.dloss_interval_micronats[0] <= told.dloss_micronats <= told.dloss_interval_micronats[1]
            assert 0 <= told.top1_ppm <= 10**6


def test_an_interval_encloses_what_windows_like_those_of_real_documents_are_drawn_from() -> None:
    """Of documents whose windows of six tokens scatter by 0.83 of the mean, as ten of `preread bench publish` did."""
    source, fine = np.random.default_rng(0), SMALL.rungs[0].name
    sigma = np.sqrt(np.log1p(0.83**2))
    above = below = 0
    for _ in range(2000):
        drawn = np.exp(source.normal(-(sigma**2) / 2, sigma, WINDOWS)) * 0.005
        found = Found(fine, tuple(Score(np.zeros(5), np.full(6, kl), np.ones(6, bool)) for kl in drawn))
        interval = stated(SMALL.rungs[0], SMALL, found, None).kl_interval_micronats
        assert interval is not None
        above, below = above + (interval[1] < 5_000), below + (interval[0] > 5_000)
    assert above < 0.05 * 2000 and above + below < 0.06 * 2000
    assert above + below > 0.005 * 2000  # nor is it so wide that it says nothing


def test_what_is_inferred_further_away_is_less_sure(profile: Profile) -> None:
    rungs = tuple(
        replace(profile.rungs[0], name=name, quality=Quality(kl, kl, 0.9, 1000))
        for name, kl in (("b3", 0.001), ("b2", 0.004), ("b1", 0.008))
    )
    made = replace(profile, rungs=rungs)
    score = Score(np.zeros(15), np.full(16, 0.01), np.ones(16, bool))
    told = [stated(rung, made, Found("b1", (score,) * 4), None).kl_interval_micronats for rung in rungs]
    widths = [high / low for interval in told if interval for low, high in [interval]]
    assert widths[0] > widths[1] > widths[2] > 1
