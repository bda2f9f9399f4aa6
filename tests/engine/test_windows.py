"""Windows of a context that are predicted in one batch, and what prefill itself predicts on its way."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.engine.context import WINDOWS
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.values import Span

SCORED = 128


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024, scored_tokens=SCORED)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tokens(engine: LlamaCpp) -> Tokens:
    return engine.tokenize(" ".join(str(n * n % 997) for n in range(400)), special=False, start=True)[:700]


def test_what_prefill_predicts_on_its_way_changes_no_bit_of_the_context(engine: LlamaCpp, tokens: Tokens) -> None:
    every = Span(0, len(tokens)), Span(0, engine.spec.geometry.layers)
    assert engine.session.prefill(tokens) is None
    plain = engine.session.export(*every)
    spans = [Span(100, 132), Span(500, 532)]  # the second one lies in two batches
    logits = engine.session.prefill(tokens, scored=spans)
    watched = engine.session.export(*every)
    np.testing.assert_array_equal(plain.k.view(np.uint16), watched.k.view(np.uint16))
    np.testing.assert_array_equal(plain.v.view(np.uint16), watched.v.view(np.uint16))
    assert logits is not None and logits.shape == (64, engine.spec.vocab_size)
    for n, span in enumerate(spans):
        alone = engine.session.score(tokens[span.start : span.stop], reuse=span.start)
        np.testing.assert_allclose(logits[32 * n : 32 * n + 32], alone, atol=0.02)


def test_windows_in_one_batch_see_what_lies_before_each_and_no_more(engine: LlamaCpp, tokens: Tokens) -> None:
    engine.session.prefill(tokens)
    spans = [Span(at, at + SCORED // WINDOWS) for at in np.linspace(40, 680, WINDOWS).astype(int).tolist()]
    together = engine.session.score_windows(tokens, spans)
    alone = [engine.session.score(tokens[span.start : span.stop], reuse=span.start) for span in spans]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=0.02)
    np.testing.assert_array_equal(engine.session.score_windows(tokens, spans), together)  # nothing of theirs stays


def test_windows_that_do_not_fit_beside_the_context_are_refused(engine: LlamaCpp, tokens: Tokens) -> None:
    engine.session.prefill(np.resize(tokens, 1000))
    with pytest.raises(UsageError, match=r"the text needs 1032 tokens, 8 more than the window of 1024"):
        engine.session.score_windows(tokens, [Span(100, 132)])
    engine.session.clear()
