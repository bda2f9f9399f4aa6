"""Guides learn on several documents at once as on each by itself, and what they change is what others apply."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="learning needs PyTorch: pip install 'preread[cloud]'")
pytest.importorskip("transformers", reason="learning needs transformers: pip install 'preread[cloud]'")

import torch

from preread.align.guide import Guide, Weights
from preread.align.projection import leading
from preread.codec.rope import unrotate
from preread.engine.learning import Document, Learner, Readers, Reading, others, told
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.fit.guided import changed
from preread.fit.lessons import of_text
from preread.fit.sample import TAIL_TOKENS
from preread.values import Span

if TYPE_CHECKING:
    from preread.engine.hf import Frozen

pytestmark = pytest.mark.filterwarnings("default")  # what these libraries warn of is theirs

READS, FIRST, READ = (2, 5), 3, 24


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=512, scored_tokens=TAIL_TOKENS)) as opened:
        yield opened


@pytest.fixture(scope="module")
def documents(engine: LlamaCpp) -> list[Document]:
    """Two of other lengths: one's own text as the large model would have it, and one as it stands."""
    found = []
    for modulus, count, said in ((997, 330, True), (991, 250, False)):
        text = " ".join(str(n * n % modulus) for n in range(400))
        tokens: Tokens = engine.tokenize(text, special=False, start=True)[:count]
        found.append(Document(tokens, tokens, np.arange(count), of_text(tokens).exchanges, said))
    return found


@pytest.fixture(scope="module")
def readers(tiny_frozen: "Frozen", documents: list[Document]) -> Readers:
    """The model is its own large one."""
    streams, _, _ = told(tiny_frozen, READS, documents)
    return Readers(tiny_frozen, tiny_frozen, READS, *leading(np.concatenate([one.numpy() for one in streams]), READ))


@pytest.fixture
def learner(tiny_frozen: "Frozen", engine: LlamaCpp) -> Learner:
    shape = engine.spec.geometry
    units = np.random.default_rng(0).uniform(0.5, 2, (shape.layers - FIRST, 2 * shape.kv_heads, shape.head_dim))
    return Learner(tiny_frozen, engine.ropes, FIRST, units.astype(np.float32), READ)


def asked(learner: Learner, readings: list[Reading]) -> None:
    for one in readings:
        learner.ask(one, one.read)


def test_a_guide_that_learnt_nothing_changes_nothing(
    learner: Learner, readers: Readers, documents: list[Document]
) -> None:
    reading = readers.read(documents)
    k, v = learner._changed(reading, reading.read, 1)
    assert all(torch.equal(mine, its) for mine, its in zip([*k, *v], [*reading.k, *reading.v], strict=True))
    assert not learner.weights()[0].any() and not learner.weights()[1].any()


def test_several_documents_are_each_as_by_itself(
    learner: Learner, tiny_frozen: "Frozen", readers: Readers, documents: list[Document]
) -> None:
    together, apart = readers.read(documents), [readers.read([one]) for one in documents]
    for mine, its in zip(together.read, apart, strict=True):
        torch.testing.assert_close(mine, its.read[0], atol=1e-3, rtol=1e-3)
    asked(learner, [together])
    whole = learner._added.grad.clone()
    learner._added.grad = None
    asked(learner, apart)
    # Rounding apart: sums in another order.
    assert (whole - learner._added.grad).norm() < 1e-3 * whole.norm() and whole.norm() > 0
    learner.step(0.01)
    for mine, its in zip(learner.losses(together, together.read, 0.5), apart, strict=True):
        np.testing.assert_allclose(mine, learner.losses(its, its.read, 0.5)[0], atol=2e-3)


def test_what_was_learnt_is_what_is_applied_to_llama_cpps_kv(
    learner: Learner, engine: LlamaCpp, tiny_frozen: "Frozen", readers: Readers, documents: list[Document]
) -> None:
    reading = readers.read(documents[:1])
    asked(learner, [reading])
    learner.step(0.01)
    added, bias = learner.weights()
    rotation, gates = engine.ropes, np.ones((len(bias), 2 * engine.spec.geometry.kv_heads), np.float32)
    weights = Weights(np.zeros(4, np.float32), np.zeros((4, READ), np.float32), added, bias, gates)
    k, v = (np.stack([layer[0].numpy() for layer in rows[FIRST:]]) for rows in (reading.k, reading.v))
    expected = changed(Guide(FIRST, READS, weights), reading.read[0].numpy(), tiny_frozen.there(k), v, rotation)
    mine = [
        np.stack([layer[0].detach().numpy() for layer in rows]) for rows in learner._changed(reading, reading.read, 1)
    ]
    np.testing.assert_allclose(tiny_frozen.there(mine[0][FIRST:]), expected[0], atol=1e-3)
    np.testing.assert_allclose(mine[1][FIRST:], expected[1], atol=1e-3)
    assert np.abs(expected[0] - tiny_frozen.there(k)).max() > 0.01 and np.abs(expected[1] - v).max() > 0.01
    np.testing.assert_array_equal(mine[0][:FIRST], np.stack([layer[0].numpy() for layer in reading.k[:FIRST]]))


def test_a_loss_falls_and_strength_scales_what_is_added(
    learner: Learner, readers: Readers, documents: list[Document]
) -> None:
    reading = readers.read(documents)
    exact = np.concatenate(learner.losses(reading, reading.read, 1)).mean()
    for _ in range(8):
        asked(learner, [reading])
        learner.step(0.01)
    losses = [np.concatenate(learner.losses(reading, reading.read, by)).mean() for by in (0, 0.5, 1)]
    assert losses[0] == pytest.approx(exact, abs=1e-4) and losses[2] < losses[1] < exact - 0.1


def test_it_goes_on_as_if_nothing_had_been(
    learner: Learner, tiny_frozen: "Frozen", engine: LlamaCpp, readers: Readers, documents: list[Document]
) -> None:
    reading = readers.read(documents[1:])
    asked(learner, [reading])
    learner.step(0.01)
    second = Learner(tiny_frozen, engine.ropes, FIRST, learner._there(learner._units[:, 0, 0].numpy()), READ)
    second.resume(learner.state())
    for one in (learner, second):
        asked(one, [reading])
        one.step(0.005)
    for mine, its in zip(learner.weights(), second.weights(), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_control_reads_the_document_before(readers: Readers, documents: list[Document]) -> None:
    read = readers.read(documents).read
    first, second = others(read, read[-1])
    long, short = read
    torch.testing.assert_close(first, torch.cat([short, short])[: len(long)])
    torch.testing.assert_close(second, long[: len(short)])


def test_what_follows_a_shorter_context_sees_nothing_that_fills_it_up(
    tiny_frozen: "Frozen", documents: list[Document]
) -> None:
    lengths = [len(one.tokens) for one in documents]
    exchanges = [documents[0].exchanges, tuple(replace(one, behind=None) for one in documents[1].exchanges[:2])]
    behind = tiny_frozen.behind(exchanges, lengths)
    sees = behind.mask[1, 0] == 0
    rows = sum(len(one) for one in exchanges[1])
    assert sees[:rows, : lengths[1]].all() and not sees[:rows, lengths[1] : lengths[0]].any()
    assert not sees[rows:].any()
    assert (behind.positions[1, : len(exchanges[1][0])] == lengths[1] + torch.arange(len(exchanges[1][0]))).all()


def test_rotation_is_undone_as_it_is_elsewhere(learner: Learner, engine: LlamaCpp, tiny_frozen: "Frozen") -> None:
    shape = engine.spec.geometry
    size = shape.layers - FIRST, shape.kv_heads, 9, shape.head_dim
    rows, ropes = np.random.default_rng(1).normal(size=size).astype(np.float32), engine.ropes[FIRST:]
    turned = learner._rotated(torch.from_numpy(np.ascontiguousarray(tiny_frozen.here(rows)))).numpy()
    np.testing.assert_allclose(unrotate(tiny_frozen.there(turned), Span(0, 9), ropes), rows, atol=1e-5)
