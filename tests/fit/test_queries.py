"""Which channels of K queries look at: arithmetic on made-up queries, and the queries of a real llama.cpp model."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.codec.rope import Rope, rotate, unrotate
from preread.engine.ggml import Queries, library
from preread.engine.llamacpp import LlamaCpp
from preread.engine.probes import queries
from preread.errors import UsageError
from preread.fit.queries import channel_shares
from preread.testing.tiny import write_tiny
from preread.values import Geometry, Span

FAST_AND_SLOW = np.array([1.0, 1e-6], np.float32)
"""Radians a token of two pairs: the first turns many times in a window, the second hardly."""


@pytest.fixture(scope="module")
def tiny(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm)
    with closing(LlamaCpp.open(path, window_tokens=1024)) as opened:
        yield opened


@pytest.mark.parametrize("near", [False, True])
def test_what_queries_look_at_counts_and_pairs_that_turn_share_it(near: bool) -> None:
    rotation = (Rope(near, FAST_AND_SLOW),)
    fast, slow = ((0, 1), (2, 3)) if near else ((0, 2), (1, 3))
    upright = np.full((1, 2, 64, 4), 0.01, np.float32)
    upright[..., fast[0]], upright[..., slow[0]] = 3, 1
    shares = channel_shares(rotate(upright, Span(0, 64), rotation), 1, rotation)
    assert shares.shape == (1, 1, 4) and shares.mean() == pytest.approx(1)
    found = shares[0, 0]
    assert found[fast[0]] == pytest.approx(found[fast[1]], rel=1e-3), "either is what a query meets, in time"
    assert found[slow[0]] > 4 * found[slow[1]], "these stay apart"
    assert found[fast[0]] > 2 * found[slow[0]]


def test_heads_that_share_a_kv_head_count_together() -> None:
    rotation = (Rope(False, np.zeros(0, np.float32)),)
    queries = np.zeros((1, 4, 8, 2), np.float32)
    queries[0, :2, :, 0], queries[0, 2:, :, 1] = 1, 1
    shares = channel_shares(queries, 2, rotation)
    assert shares[0, 0, 0] > 5 * shares[0, 0, 1] and shares[0, 1, 1] > 5 * shares[0, 1, 0]


def test_nothing_looked_at_counts_alike() -> None:
    shares = channel_shares(np.zeros((1, 1, 8, 4), np.float32), 1, (Rope(False, FAST_AND_SLOW),))
    np.testing.assert_allclose(shares, 1)


def test_queries_of_one_token_differ_by_their_rotation_only(tiny: LlamaCpp) -> None:
    found = queries(tiny, np.full(96, 77, np.int32))
    shape = tiny.spec.geometry
    assert found is not None and tiny.session.context_tokens == 0
    assert found.shape[0] == shape.layers and found.shape[1] % shape.kv_heads == 0
    assert found.shape[2:] == (96, shape.head_dim)
    upright = unrotate(found[:1], Span(0, 96), tiny.ropes[:1])[0]
    np.testing.assert_allclose(
        upright, np.broadcast_to(upright[:, :1], upright.shape), atol=2e-2 * np.abs(upright).max()
    )
    assert np.abs(found[0] - upright).max() > 0.1 * np.abs(upright).max(), "they were rotated"


def test_more_than_a_batch_is_refused(tiny: LlamaCpp) -> None:
    with pytest.raises(UsageError, match="at most"):
        queries(tiny, np.zeros(513, np.int32))


def test_a_graph_that_lacks_some_has_none() -> None:
    assert Queries(library(), 8, Geometry(2, 1, 4)).all() is None
