from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp
from preread.errors import EngineError
from preread.fit.quality import Score, compare, joined, log_softmax, measure, reference, summary
from preread.values import KVBlock, Span

CONTEXT, TAIL = 96, 16


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[LlamaCpp]:
    engine = LlamaCpp.open(smollm, window_tokens=256, scored_tokens=TAIL)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokens(engine: LlamaCpp, manual: str) -> np.ndarray:
    return engine.tokenize(manual, special=False)[: CONTEXT + TAIL]


def blocks(engine: LlamaCpp) -> list[KVBlock]:
    layers = engine.spec.geometry.layers
    spans = [Span(start, min(start + 8, layers)) for start in range(0, layers, 8)]
    return [engine.session.export(Span(0, CONTEXT), span) for span in spans]


def random_logits(seed: int, rows: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (rows, vocab)).astype(np.float32)


def test_log_softmax_is_that_of_double_precision_and_bears_large_logits() -> None:
    logits = random_logits(0, 5, 4000) + np.float32(1e4)
    wide = logits.astype(np.float64)
    expected = wide - wide.max(axis=1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    result = log_softmax(logits)
    assert result is logits
    assert np.abs(result - expected).max() < 1e-4


def test_compare_gives_loss_of_the_next_token_divergence_and_top1() -> None:
    tail = np.array([3, 1, 2], np.int32)
    exact_p = np.array([[0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1], [0.4, 0.3, 0.2, 0.1]])
    changed_p = np.array([[0.1, 0.3, 0.5, 0.1], [0.1, 0.2, 0.6, 0.1], [0.3, 0.4, 0.2, 0.1]])
    score = compare(np.log(changed_p).astype(np.float32) + 7, tail, np.log(exact_p).astype(np.float32))
    assert score.dloss == pytest.approx([np.log(0.6 / 0.3), 0], abs=1e-6)
    assert score.kl == pytest.approx((exact_p * np.log(exact_p / changed_p)).sum(axis=1), abs=1e-6)
    assert score.same_top1.tolist() == [False, True, False]


def test_exact_blocks_change_nothing(engine: LlamaCpp, tokens: np.ndarray) -> None:
    engine.session.prefill(tokens[:CONTEXT])
    exact = reference(engine, tokens[CONTEXT:])
    score = measure(engine, CONTEXT, tokens[CONTEXT:], exact, blocks(engine))
    assert score.dloss.shape == (TAIL - 1,) and score.kl.shape == (TAIL,)
    assert not score.dloss.any() and not score.kl.any() and score.same_top1.all()


def test_worse_blocks_score_worse(engine: LlamaCpp, tokens: np.ndarray) -> None:
    engine.session.prefill(tokens[:CONTEXT])
    exact, kept = reference(engine, tokens[CONTEXT:]), blocks(engine)
    kl = []
    for scale in (0.05, 0.5):
        noise = np.random.default_rng(1)
        noisy = [
            KVBlock(
                b.tokens,
                b.layers,
                b.k,
                (b.v + noise.normal(0, scale * b.v.astype(np.float32).std(), b.v.shape)).astype(np.float16),
            )
            for b in kept
        ]
        kl.append(measure(engine, CONTEXT, tokens[CONTEXT:], exact, noisy).kl.mean())
    assert 0 < kl[0] < kl[1]


def test_a_context_with_a_hole_is_not_measured(engine: LlamaCpp, tokens: np.ndarray) -> None:
    engine.session.prefill(tokens[:CONTEXT])
    exact, kept = reference(engine, tokens[CONTEXT:]), blocks(engine)
    with pytest.raises(EngineError, match="off by"):
        measure(engine, CONTEXT, tokens[CONTEXT:], exact, kept[1:])
    assert engine.session.context_tokens == 0


def test_summary_gives_means_and_intervals_over_windows() -> None:
    noise = np.random.default_rng(2)
    means = noise.normal(0.01, 0.01, 20)
    windows = [Score(np.full(127, mean), np.full(128, 2 * abs(mean)), np.arange(128) < 64) for mean in means]
    found = summary(windows)
    assert found.quality.dloss == pytest.approx(means.mean())
    assert found.quality.kl == pytest.approx(2 * np.abs(means).mean())
    assert found.quality.top1 == 0.5 and found.quality.tokens == 20 * 128
    half_width = 1.96 * means.std() / np.sqrt(20)  # positions within a window are equal: they must not narrow it
    low, high = found.dloss_ci
    assert low == pytest.approx(means.mean() - half_width, abs=0.2 * half_width)
    assert high == pytest.approx(means.mean() + half_width, abs=0.2 * half_width)
    assert summary(windows) == found


def test_joined_scores_are_one_window() -> None:
    one = Score(np.zeros(3), np.zeros(4), np.ones(4, bool))
    two = Score(np.ones(3), np.ones(4), np.zeros(4, bool))
    both = joined([one, two])
    assert both.dloss.tolist() == [0, 0, 0, 1, 1, 1] and len(both.kl) == 8 and both.same_top1.sum() == 4
