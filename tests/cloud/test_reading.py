"""Reading with a large model's help, and the gate before it. A model with random weights is its own large one here."""

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

from preread.align.mapping_bytes import Kept
from preread.cloud.publish import publish
from preread.cloud.reading import Large, Reading, check_models, read_context, windows
from preread.cloud.serve import EnginePublisher
from preread.edge.rungs import stated_dloss
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.store.objects import open_store
from preread.values import Fingerprint, KVBlock, Span
from preread.wire import catalogue, manifest


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[tuple[LlamaCpp, LlamaCpp]]:
    def opened() -> LlamaCpp:
        return LlamaCpp.open(tiny_model, window_tokens=1024, scored_tokens=TAIL_TOKENS)

    with closing(opened()) as small, closing(opened()) as large:
        yield small, large


@pytest.fixture(scope="module")
def kept(tiny_mapping: Kept) -> Kept:
    return tiny_mapping


@pytest.fixture(scope="module")
def tokens(tiny: tuple[LlamaCpp, LlamaCpp]) -> Tokens:
    words = " ".join(str(n * n * n % 9973) for n in range(300))
    return tiny[0].tokenize(words, special=False, start=True)[:500]


def held(engine: LlamaCpp, tokens: int) -> KVBlock:
    return engine.export(Span(0, tokens), Span(0, engine.spec.geometry.layers))


def test_mapped_kv_takes_the_place_of_exact_kv(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens) -> None:
    small, large = tiny
    small.prefill(tokens)
    exact, told = held(small, len(tokens)), []
    reading = read_context(small, Large(large, (kept,)), tokens, "mapped", lambda stage, *_: told.append(stage))
    assert reading.mode == "mapped" and reading.quality is not None and "keeps the budget" in reading.notes[0]
    assert abs(reading.quality.dloss) < 0.02 and reading.quality.tokens == TAIL_TOKENS * len(windows(len(tokens)))
    now = held(small, len(tokens))
    np.testing.assert_array_equal(now.k[:4], exact.k[:4])
    assert (now.k[4:] != exact.k[4:]).any() and (now.v[4:] != exact.v[4:]).any()
    assert {"read", "measure"} == set(told)


@pytest.mark.parametrize(
    ("change", "mode", "why"),
    [
        ({"dloss": 0.3}, "mapped", "fit's own windows rose by 0.3000"),
        ({"dloss": 0.3}, "auto", "fit's own windows rose by 0.3000"),
    ],
)
def test_what_misses_the_budget_is_refused_with_its_numbers(
    tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens, change: dict[str, float], mode: str, why: str
) -> None:
    small, large = tiny
    small.prefill(tokens)
    exact = held(small, len(tokens))
    reading = read_context(small, Large(large, (replace(kept, **change),)), tokens, mode, lambda *_: None)  # type: ignore
    assert (reading.mode, reading.quality) == ("exact", None) and why in reading.notes[0] and "KL" in reading.notes[0]
    now = held(small, len(tokens))
    np.testing.assert_array_equal(now.k, exact.k)
    np.testing.assert_array_equal(now.v, exact.v)


def test_another_texts_kv_is_refused_on_the_context_itself(
    tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens
) -> None:
    small, large = tiny
    linear = kept.mapping.linear
    wrong = replace(kept.mapping, linear=replace(linear, mean_y=linear.mean_y + 4))
    helper = Large(large, (replace(kept, mapping=wrong),), 1e-6)
    reading = read_context(small, helper, tokens, "mapped", lambda *_: None)
    assert reading.mode == "exact" and reading.notes[0].endswith("refused, the budget is 1e-06")


def test_auto_takes_nothing_that_lowers_nothing(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens) -> None:
    small, large = tiny
    linear = kept.mapping.linear
    wrong = replace(kept.mapping, linear=replace(linear, mean_y=linear.mean_y + 4))
    reading = read_context(small, Large(large, (replace(kept, mapping=wrong),), 9.0), tokens, "auto", lambda *_: None)
    assert reading.mode == "exact" and "lowers nothing beyond doubt" in reading.notes[0]


def test_contexts_that_cannot_be_judged_stay_exact(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens) -> None:
    small, large = tiny
    short = read_context(small, Large(large, (kept,)), tokens[:150], "mapped", lambda *_: None)
    assert short == Reading(notes=("exact: 150 tokens are too few to measure a mode on",))
    assert small.context_tokens == 150
    assert read_context(small, Large(large, (kept,)), tokens, "exact", lambda *_: None) == Reading()
    assert read_context(small, None, tokens, "auto", lambda *_: None) == Reading()
    assert small.context_tokens == len(tokens)


@given(st.integers(1, 40_000))
def test_windows_do_not_overlap_and_the_last_ends_the_context(tokens: int) -> None:
    found = windows(tokens)
    assert len(found) == max(0, min(8, (tokens - 64) // TAIL_TOKENS))
    if found:
        assert found[0] >= 64 and found[-1] == tokens - TAIL_TOKENS
        assert all(after - before >= TAIL_TOKENS for before, after in pairwise(found))


def test_a_manifest_says_how_its_context_was_read(
    tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens, tmp_path: Path
) -> None:
    small, large = tiny
    store, worker = open_store(str(tmp_path)), Worker()

    async def published(mode: str) -> manifest.Manifest:
        rungs, helper = ("lossless", "q8"), Large(large, (kept,))
        work = publish(store, small, worker, mode, tokens, "text", rungs, lambda *_: None, None, helper, mode)  # type: ignore
        entry = (await work).entry
        data = await store.read("manifests", catalogue.manifest_ref(entry).id)
        assert data is not None
        return manifest.loads(data)

    mapped, exact = asyncio.run(published("mapped")), asyncio.run(published("exact"))
    worker.close()
    assert (mapped.origin.mode, exact.origin.mode) == ("mapped", "exact")
    lossless, q8 = mapped.rungs
    assert lossless.quality is not None and stated_dloss(lossless) == lossless.quality.kl_micronats * 1e-6 > 0
    assert q8.quality is None and exact.rungs[0].quality is None
    # The layers below the split are the same objects; those above are not.
    groups = [group[0] for group in mapped.groups]
    same = [a == b for a, b in zip(lossless.segments[0], exact.rungs[0].segments[0], strict=True)]
    assert same == [start < 4 for start in groups]


def test_a_cloud_says_what_it_lacks(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tmp_path: Path) -> None:
    small, large = tiny
    store, worker = open_store(str(tmp_path)), Worker()
    alone = EnginePublisher(small, worker, store, ("lossless",))
    with pytest.raises(UsageError, match="--llm"):
        asyncio.run(alone("name", "text", None, "text", "mapped", lambda *_: None))
    worker.close()
    with pytest.raises(UsageError, match="other models"):
        check_models(small, Large(large, (replace(kept, large=Fingerprint("0" * 64)),)))
