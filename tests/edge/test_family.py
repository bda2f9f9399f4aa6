"""An edge streams what another quantisation of its model read, where a gate says that this costs it nothing."""

import asyncio
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from preread.edge.edge import AsyncEdge
from preread.edge.listed import listed
from preread.edge.request import Timings
from preread.engine import model
from preread.engine.llamacpp import LlamaCpp
from preread.engine.model import Spec
from preread.fit import family
from preread.fit.family import HALF, LOSSLESS, Change, Gate
from preread.testing.quantised import write_quantised
from preread.values import Half, Span
from preread.wire import tokens as token_objects

if TYPE_CHECKING:
    from tests.conftest import Cloud

WINDOW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Coarse:
    """A coarse quantisation of the model of the cloud, and where to write gates for it."""

    path: Path
    spec: Spec
    source: Spec
    folder: Path

    def gate(self, lossless: float, half: float = 0.0) -> Path:
        """A file that says by how much the loss may rise at most, nats a token."""
        highs = ((LOSSLESS, lossless), (HALF, half))
        changes = tuple(Change(what, high - 0.01, high - 0.02, high, 99) for what, high in highs)
        of, source = self.spec.fingerprint, self.source.fingerprint
        gate = Gate("preread family 1", of, source, self.spec.family or "", "a text", 3, 2.9, changes)
        path = self.folder / "gate.json"
        path.write_bytes(family.dumps(gate))
        return path


def _spec(path: Path) -> Spec:
    loaded = model.load(path, trusted=True, mapped=True)
    try:
        return model.spec(loaded, path, path.stem, WINDOW_TOKENS)
    finally:
        loaded.close()


@pytest.fixture
def coarse(tiny_model: Path, tmp_path: Path) -> Coarse:
    path = write_quantised(tmp_path / "coarse.gguf", tiny_model, "q4_0")
    return Coarse(path, _spec(path), _spec(tiny_model), tmp_path)


@dataclass(frozen=True, slots=True)
class Asked:
    """How a context came, with which keys (layers, kv_heads, tokens, head_dim), and what the edge lists of it."""

    timings: Timings
    keys: Half
    streamable: bool


def asked(coarse: Coarse, cloud: "Cloud", *gates: Path, rung: str | None = None) -> Asked:
    """Ask an edge with the coarse model about "manual"."""

    async def ask() -> Asked:
        opened = AsyncEdge(
            str(coarse.path),
            cloud.url,
            folder=coarse.folder / "edge",
            gates=gates,
            rung=rung,
            window_tokens=WINDOW_TOKENS,
        )
        async with opened as edge:
            await edge.node.settled()
            answer = await edge.ask("Which code has the fan?", context="manual", temperature=0, max_tokens=4)
            block = await edge.node.core.export(edge.node.contexts.named("manual").entry.context)
            (manual,) = [one for one in listed(edge.node, "", 100)["data"] if one["id"] == "manual"]
            return Asked(answer.timings, block.k, manual["streamable"])

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def fine_keys(cloud: "Cloud", tiny_model: Path) -> Half:
    """What the cloud's model makes of "manual"."""
    with closing(LlamaCpp.open(tiny_model, window_tokens=WINDOW_TOKENS)) as engine:
        ids = token_objects.unpack(_published(cloud), 2**16)
        engine.session.prefill(ids)
        return engine.session.export(Span(0, len(ids)), Span(0, engine.spec.geometry.layers)).k


def _published(cloud: "Cloud") -> bytes:
    async def read() -> bytes:
        entry = await cloud.store.entry("manual")
        assert entry is not None
        data = await cloud.store.read("tokens", entry.tokens.id)
        assert data is not None
        return data

    return asyncio.run(read())


def test_without_a_gate_another_quantisations_context_is_computed(
    coarse: Coarse, cloud: "Cloud", fine_keys: Half
) -> None:
    found = asked(coarse, cloud)
    assert found.timings.way == "computed" and "was published for tiny" in str(found.timings.reason)
    assert not found.streamable
    assert not np.array_equal(found.keys, fine_keys)


def test_with_a_gate_it_is_streamed_and_its_rows_are_the_others(
    coarse: Coarse, cloud: "Cloud", fine_keys: Half
) -> None:
    found = asked(coarse, cloud, coarse.gate(0.004))
    assert found.timings.way in ("streamed", "mixed") and found.timings.rung == "lossless"
    assert found.streamable
    assert np.array_equal(found.keys[:, :, -64:], fine_keys[:, :, -64:])


@pytest.mark.parametrize(("cost", "rung"), [((0.02, 0.0), None), ((0.0, 0.02), "lossless")], ids=["all", "half, told"])
def test_a_gate_that_says_more_than_the_budget_lets_nothing_through(
    coarse: Coarse, cloud: "Cloud", cost: tuple[float, float], rung: str | None
) -> None:
    found = asked(coarse, cloud, coarse.gate(*cost), rung=rung)
    assert found.timings.way == "computed"
    assert "0.02" in str(found.timings.reason)
