"""Reading with a large model's help, and the gate before it. A model with random weights is its own large one here."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align.guide import Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.mapping_bytes import Kept
from preread.align.taught_bytes import Taught
from preread.cloud import reading as reading_module
from preread.cloud.events import Request
from preread.cloud.publish import publish
from preread.cloud.reading import NO_HELP, Help, Reading, check_models, read_context, windows
from preread.cloud.serve import EnginePublisher
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.store.objects import open_store
from preread.values import ContextId, Fingerprint, KVBlock, Span
from preread.wire import catalogue, manifest
from preread.wire.digest import context_id
from preread.wire.manifest import stated_dloss


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
    return engine.session.export(Span(0, tokens), Span(0, engine.spec.geometry.layers))


def test_mapped_kv_takes_the_place_of_exact_kv(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens) -> None:
    small, large = tiny
    small.session.prefill(tokens)
    exact, told = held(small, len(tokens)), []
    reading = read_context(small, Help(large, (kept,)), tokens, "mapped", lambda stage, *_: told.append(stage))
    assert reading.mode == "mapped" and reading.quality is not None and "keeps the budget" in reading.notes[0]
    assert abs(reading.quality.dloss) < 0.02 and reading.quality.tokens == TAIL_TOKENS * len(windows(len(tokens)))
    now = held(small, len(tokens))
    np.testing.assert_array_equal(now.k[:4], exact.k[:4])
    assert (now.k[4:] != exact.k[4:]).any() and (now.v[4:] != exact.v[4:]).any()
    assert {"read", "measure"} == set(told)


@pytest.mark.parametrize(("budget", "said"), [(1.0, False), (-1.0, True)])
def test_a_mode_that_edges_do_not_stream_by_themselves_says_so(
    monkeypatch: pytest.MonkeyPatch,
    tiny: tuple[LlamaCpp, LlamaCpp],
    kept: Kept,
    tokens: Tokens,
    budget: float,
    said: bool,
) -> None:
    monkeypatch.setattr(reading_module, "MAX_DLOSS", budget)
    reading = read_context(tiny[0], Help(tiny[1], (kept,)), tokens, "mapped", lambda *_: None)
    assert reading.quality is not None
    assert any("edges stream it with --max-dloss" in note for note in reading.notes) is said
    if said:
        least = float(reading.notes[-1].split()[5])
        assert max(reading.quality.dloss, reading.quality.kl) + 0.01 <= least + 1e-9


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
    small.session.prefill(tokens)
    exact = held(small, len(tokens))
    reading = read_context(small, Help(large, (replace(kept, **change),)), tokens, mode, lambda *_: None)  # type: ignore
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
    helper = Help(large, (replace(kept, mapping=wrong),), max_dloss=1e-6)
    reading = read_context(small, helper, tokens, "mapped", lambda *_: None)
    assert reading.mode == "exact" and reading.notes[0].endswith("refused, the budget is 1e-06")


def test_auto_takes_nothing_that_lowers_nothing(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens) -> None:
    small, large = tiny
    linear = kept.mapping.linear
    wrong = replace(kept.mapping, linear=replace(linear, mean_y=linear.mean_y + 4))
    reading = read_context(
        small, Help(large, (replace(kept, mapping=wrong),), max_dloss=9.0), tokens, "auto", lambda *_: None
    )
    assert reading.mode == "exact" and "lowers nothing beyond doubt" in reading.notes[0]


def test_contexts_that_cannot_be_judged_stay_exact(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens) -> None:
    small, large = tiny
    short = read_context(small, Help(large, (kept,)), tokens[:150], "mapped", lambda *_: None)
    assert short == Reading(notes=("exact: 150 tokens are too few to measure a mode on",))
    assert small.session.context_tokens == 150
    assert read_context(small, Help(large, (kept,)), tokens, "exact", lambda *_: None) == Reading()
    assert read_context(small, NO_HELP, tokens, "auto", lambda *_: None) == Reading()
    assert small.session.context_tokens == len(tokens)


def taught(small: LlamaCpp, tokens: Tokens, change: float) -> Taught:
    """The context's own KV, with values that are a little off: as if it had been taught."""
    small.session.prefill(tokens)
    exact = held(small, len(tokens))
    block = replace(exact, v=(exact.v + np.float16(change)).astype(np.float16))
    context = context_id(small.spec.fingerprint, tokens)
    return Taught(block, context, context, small.spec.fingerprint, Fingerprint("0" * 64), -0.1, (-0.2, -0.05), 20, 400)


def first(block: KVBlock, tokens: int) -> KVBlock:
    return KVBlock(Span(0, tokens), block.layers, block.k[:, :, :tokens], block.v[:, :, :tokens])


@pytest.mark.parametrize("mode", ["taught", "auto"])
def test_a_taught_context_is_published_as_it_was_taught(
    tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tokens: Tokens, mode: Literal["taught", "auto"]
) -> None:
    small, large = tiny
    one = taught(small, tokens, 0.001)
    other = replace(one, context=ContextId("1" * 64))
    reading = read_context(small, Help(large, (kept,), (other, one)), tokens, mode, lambda *_: None)
    assert reading.mode == "taught" and reading.quality is not None
    # What it says otherwise than exact KV is what it was taught for; what it costs is the loss on the text itself.
    assert reading.quality.kl == 0 and abs(reading.quality.dloss) < 0.02
    np.testing.assert_array_equal(held(small, len(tokens)).v, one.block.v)
    # Nobody asked for it.
    assert read_context(small, Help(taught=(one,)), tokens, "exact", lambda *_: None) == Reading()


def test_what_was_taught_badly_is_refused(tiny: tuple[LlamaCpp, LlamaCpp], tokens: Tokens) -> None:
    small, _ = tiny
    good = taught(small, tokens, 0.001)
    for wrong, why in (
        (replace(good, studied=ContextId("1" * 64)), "it is a control"),
        (replace(good, dloss_ci=(-0.2, 0.01)), "up to +0.0100"),
        (taught(small, tokens, 3.0), "refused, the budget is 1e-06"),
        (replace(good, context=ContextId("1" * 64)), "nobody taught this context"),
        (replace(good, block=first(good.block, 100)), "nobody taught this context"),
    ):
        reading = read_context(small, Help(taught=(wrong,), max_dloss=1e-6), tokens, "taught", lambda *_: None)
        assert reading.mode == "exact" and why in reading.notes[0], reading.notes
    small.session.prefill(tokens)
    exact = small.session.score(tokens[:8])
    read_context(small, Help(taught=(taught(small, tokens, 3.0),)), tokens, "taught", lambda *_: None)
    np.testing.assert_array_equal(small.session.score(tokens[:8]), exact)


def guide(small: LlamaCpp, scale: float) -> KeptGuide:
    """From the model itself, of random weights: as if it had learnt something."""
    shape, source, read = small.spec.geometry, np.random.default_rng(0), 5
    width, channels = small.embeddings(np.zeros(1, np.int32)).shape[1], 2 * shape.kv_heads * shape.head_dim
    layers, heads = shape.layers - 3, 2 * shape.kv_heads
    shapes = ((2 * width,), (2 * width, read), (layers, read, channels), (layers, channels))
    mean, inward, added, bias = (source.normal(size=one).astype(np.float32) for one in shapes)
    gates = np.full((layers, heads), scale, np.float32)
    weights = Weights(mean, inward / np.sqrt(np.float32(2 * width)), added, np.float32(scale) * bias, gates)
    outcome, of = Outcome(-0.05, (-0.08, -0.02), 0.03, (0.01, 0.05), 0.4, 900), small.spec.fingerprint
    return KeptGuide(Guide(3, (2, 5), weights), of, of, shape, "a text", 100, outcome)


def test_guided_kv_takes_the_place_of_exact_kv(tiny: tuple[LlamaCpp, LlamaCpp], tokens: Tokens) -> None:
    small, large = tiny
    small.session.prefill(tokens)
    exact, one = held(small, len(tokens)), guide(small, 0.001)
    reading = read_context(small, Help(large, guides=(one,)), tokens, "guided", lambda *_: None)
    assert reading.mode == "guided" and reading.quality is not None and abs(reading.quality.dloss) < 0.02
    assert reading.quality.kl == 0  # other distributions are what was learnt
    now = held(small, len(tokens))
    np.testing.assert_array_equal(now.k[:3], exact.k[:3])
    np.testing.assert_array_equal(now.v[:, :, :4], exact.v[:, :, :4])
    assert all((now.k[layer] != exact.k[layer]).any() and (now.v[layer] != exact.v[layer]).any() for layer in (3, 7))
    # Beside a mapping it is asked for by its name, and what was not asked for is not tried.
    assert read_context(small, Help(large, guides=(one,)), tokens, "mapped", lambda *_: None) == Reading()


def test_what_guides_badly_is_refused(tiny: tuple[LlamaCpp, LlamaCpp], tokens: Tokens) -> None:
    small, large = tiny
    good = guide(small, 0.001)
    for wrong, mode, why in (
        (replace(good, control=True), "guided", "it is a control"),
        (replace(good, outcome=replace(good.outcome, dloss_ci=(-0.2, 0.01))), "guided", "[-0.2000, +0.0100]"),
        (replace(good, outcome=replace(good.outcome, gain_ci=(-0.01, 0.2))), "auto", "[-0.0100, +0.2000]"),
        (guide(small, 3.0), "guided", "refused, the budget is 1e-06"),
        (guide(small, 1e-9), "auto", "lowers nothing beyond doubt"),
    ):
        helper = Help(large, max_dloss=1e-6, guides=(wrong,))
        reading = read_context(small, helper, tokens, mode, lambda *_: None)  # type: ignore[arg-type]
        assert reading.mode == "exact" and why in reading.notes[0], reading.notes
    short = read_context(small, Help(large, guides=(good,)), tokens[:150], "guided", lambda *_: None)
    assert short == Reading(notes=("exact: 150 tokens are too few to measure a mode on",))


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
        rungs, helper = ("lossless", "q8"), Help(large, (kept,))
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
    groups, chunks = [group.layers[0] for group in mapped.groups], len(mapped.chunks)
    same = [a == b for a, b in zip(lossless.segments[::chunks], exact.rungs[0].segments[::chunks], strict=True)]
    assert same == [start < 4 for start in groups]


def test_a_cloud_says_what_it_lacks(tiny: tuple[LlamaCpp, LlamaCpp], kept: Kept, tmp_path: Path) -> None:
    small, large = tiny
    store, worker = open_store(str(tmp_path)), Worker()
    alone = EnginePublisher(small, worker, store, ("lossless",))
    with pytest.raises(UsageError, match="--llm"):
        asyncio.run(alone(Request("name", "text", form="text", mode="mapped"), lambda *_: None))
    with pytest.raises(UsageError, match="--guide"):
        asyncio.run(alone(Request("name", "text", form="text", mode="guided"), lambda *_: None))
    with pytest.raises(UsageError, match="--taught"):
        asyncio.run(alone(Request("name", "text", form="text", mode="taught"), lambda *_: None))
    worker.close()
    with pytest.raises(UsageError, match="other models"):
        check_models(small, Help(large, (replace(kept, large=Fingerprint("0" * 64)),)))
    with pytest.raises(UsageError, match="of another shape"):
        check_models(small, Help(large, (replace(kept, geometry=replace(kept.geometry, head_dim=32)),)))
    for wrong_guide in (replace(guide(small, 0), large=Fingerprint("0" * 64)), guide(small, 0)):
        with pytest.raises(UsageError, match="a guide is of other models"):
            check_models(
                small, Help(None if wrong_guide.large == small.spec.fingerprint else large, guides=(wrong_guide,))
            )
    other = replace(taught(small, small.tokenize("some words of a text"), 0.0), small=Fingerprint("0" * 64))
    fewer = replace(other.block, k=other.block.k[:-1], v=other.block.v[:-1])
    for wrong in (other, replace(other, small=small.spec.fingerprint, block=fewer)):
        with pytest.raises(UsageError, match="another model"):
            check_models(small, Help(taught=(wrong,)))
