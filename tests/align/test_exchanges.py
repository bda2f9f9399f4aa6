"""Exchanges, how they are packed into one batch, and the files that they and taught contexts are kept in."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align import study_bytes, taught_bytes
from preread.align.exchanges import Exchange, batches, packed, targets
from preread.align.study_bytes import HELD_OUT, Study
from preread.align.taught_bytes import Taught
from preread.errors import CorruptData, UsageError
from preread.values import ContextId, Fingerprint, KVBlock, Span


def exchange(prompt: int, answer: int, candidates: int = 3, seed: int = 0) -> Exchange:
    source = np.random.default_rng(seed)
    return Exchange(
        source.integers(100, size=prompt).astype(np.int32),
        source.integers(100, size=answer).astype(np.int32),
        source.integers(100, size=(answer, candidates)).astype(np.int32),
        source.normal(size=(answer, candidates)).astype(np.float32),
        source.exponential(size=answer).astype(np.float32),
    )


sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=6)


@given(sizes, st.integers(0, 9))
def test_each_sees_the_context_and_what_came_before_in_itself(sizes: list[tuple[int, int]], context: int) -> None:
    some = [exchange(*size, seed=n) for n, size in enumerate(sizes)]
    some[0] = replace(some[0], behind=context // 2)
    batch = packed(some, context)
    rows = sum(map(len, some))
    assert batch.tokens.shape == batch.positions.shape == (rows,) and batch.sees.shape == (rows, context + rows)
    at, told = 0, []
    for one in some:
        for own in range(len(one)):
            seen, before = np.flatnonzero(batch.sees[at + own]), context if one.behind is None else one.behind
            assert seen.tolist() == [*range(before), *range(context + at, context + at + own + 1)]
            assert batch.positions[at + own] == before + own
        # After the prompt's last token the answer's first is predicted, and after each of its tokens the next.
        told += range(at + len(one.prompt) - 1, at + len(one))
        assert batch.tokens[at : at + len(one)].tolist() == [*one.prompt, *one.answer[:-1]]
        at += len(one)
    assert batch.predicts.tolist() == told and len(told) == sum(len(one.answer) for one in some)


@given(sizes, st.integers(1, 20))
def test_batches_keep_order_and_end_when_they_are_full(sizes: list[tuple[int, int]], rows: int) -> None:
    some = [exchange(*size, seed=n) for n, size in enumerate(sizes)]
    found = batches(some, rows)
    assert [one for batch in found for one in batch] == some
    assert all(sum(map(len, batch[:-1])) < rows for batch in found)
    assert all(sum(map(len, batch)) >= rows for batch in found[:-1])


def test_shares_are_what_the_teacher_held_likely_whoever_has_more_candidates() -> None:
    few, many = exchange(2, 3, candidates=1), exchange(2, 2, candidates=4, seed=1)
    ids, shares = targets([few, many])
    assert ids.shape == shares.shape == (5, 4) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert ids[:3, 0].tolist() == few.candidates[:, 0].tolist() and (shares[:3, 0] == 1).all()
    np.testing.assert_array_equal(ids[3:], many.candidates)
    np.testing.assert_allclose(np.log(shares[3:] / shares[3:, :1]), many.logprobs - many.logprobs[:, :1], atol=1e-5)


@pytest.mark.parametrize("change", ["prompt", "answer", "losses", "logprobs"])
def test_an_exchange_whose_parts_do_not_fit_is_refused(change: str) -> None:
    with pytest.raises(UsageError):
        replace(exchange(3, 4), **{change: getattr(exchange(3, 4), change)[:0]})


def study(count: int = 9) -> Study:
    some = tuple(exchange(2 + n % 3, 1 + n % 4, seed=n) for n in range(count))
    return Study(ContextId("c" * 64), Fingerprint("a" * 64), Fingerprint("b" * 64), some)


def taught() -> Taught:
    source = np.random.default_rng(0)
    k, v = (source.normal(size=(4, 1, 5, 2)).astype(np.float16) for _ in "kv")
    ids = ContextId("c" * 64), ContextId("d" * 64)
    block = KVBlock(Span(0, 5), Span(0, 4), k, v)
    return Taught(block, *ids, Fingerprint("a" * 64), Fingerprint("b" * 64), -0.1, (-0.2, -0.05), 12, 240)


def test_a_study_is_read_as_it_was_written_and_holds_some_out() -> None:
    written = study()
    found = study_bytes.loads(study_bytes.dumps(written))
    assert (found.context, found.small, found.large) == (written.context, written.small, written.large)
    for mine, its in zip(written.exchanges, found.exchanges, strict=True):
        for name in ("prompt", "answer", "candidates", "logprobs", "losses"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))
    assert len(found.held_out) == 9 // HELD_OUT and len(found.taught) == 9 - 9 // HELD_OUT
    assert not {id(one) for one in found.held_out} & {id(one) for one in found.taught}


def test_a_taught_context_is_read_as_it_was_written() -> None:
    written, found = taught(), taught_bytes.loads(taught_bytes.dumps(taught()))
    assert replace(found, block=written.block) == written
    assert (found.block.tokens, found.block.layers) == (written.block.tokens, written.block.layers)
    np.testing.assert_array_equal(found.block.k, written.block.k)
    np.testing.assert_array_equal(found.block.v, written.block.v)


def changed(data: bytes, **changes: np.ndarray) -> bytes:
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": np.array([1, 2], np.int32)},
        {"answer_tokens": np.array([-1, 2], np.int32)},
        {"answer": np.array([-5], np.int32)},
        {"losses": np.full(3, np.nan, np.float32)},
        {"candidates": np.zeros((2, 2), np.int64)},
        {"logprobs": np.zeros((1, 3), np.float32)},
    ],
)
def test_a_study_whose_arrays_do_not_fit_is_refused(changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(CorruptData) as caught:
        study_bytes.loads(changed(study_bytes.dumps(study(2)), **changes))
    assert caught.value.reason == "shape"


@pytest.mark.parametrize(
    "changes",
    [
        {"k": np.zeros((4, 1, 6, 2), np.float16)},
        {"v": np.zeros((4, 1, 5, 2), np.float32)},
        {"k": np.zeros((3, 1, 5, 2), np.float16), "v": np.zeros((3, 1, 5, 2), np.float16)},
        {"k": np.full((4, 1, 5, 2), np.inf, np.float16)},
    ],
)
def test_a_taught_context_of_another_shape_is_refused(changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(CorruptData) as caught:
        taught_bytes.loads(changed(taught_bytes.dumps(taught()), **changes))
    assert caught.value.reason == "shape"


@given(st.booleans(), st.integers(0, 1 << 13), st.integers(1, 255), st.integers(0, 64))
def test_damaged_files_are_refused_or_still_what_they_were(which: bool, at: int, flip: int, cut: int) -> None:
    data = bytearray(study_bytes.dumps(study()) if which else taught_bytes.dumps(taught()))
    data[at % len(data)] ^= flip
    damaged = bytes(data[: len(data) - cut])
    try:
        context = (study_bytes.loads(damaged) if which else taught_bytes.loads(damaged)).context
    except CorruptData:
        return
    assert len(context) == 64


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    for loads in (study_bytes.loads, taught_bytes.loads):
        with pytest.raises(CorruptData):
            loads(data)
