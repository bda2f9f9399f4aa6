"""The hybrid that scripts/hybrid trains, from end to end: text that it has not seen, published, streamed and answered.

python scripts/hybrid FOLDER && cp FOLDER/hybrid.gguf ~/.cache/preread/models
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Published
from preread.cloud.serve import EnginePublisher
from preread.edge.edge import AsyncEdge
from preread.edge.request import Ask, Piece, Timings
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.engine.worker import Worker
from preread.store.objects import open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving

pytestmark = [pytest.mark.long, pytest.mark.models]

MODEL = Path.home() / ".cache/preread/models/hybrid.gguf"
TEXT = (Path(__file__).parents[2] / "docs/wire.md").read_text()[4000:9000]
RUNGS = "lossless", "q8", "q4"
ANSWER = 48


@dataclass(frozen=True)
class Cloud:
    url: str
    sizes: dict[str, int]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not there: scripts/hybrid trains it")
    store = open_store(str(tmp_path_factory.mktemp("store")))
    with closing(LlamaCpp.open(MODEL, name="hybrid", window_tokens=4096)) as engine:
        worker = Worker()
        with serving(create_app(store, EnginePublisher(engine, worker, store, RUNGS))) as url:
            *_, published = client.publish(url, "wire", text=TEXT, form="text")
            assert isinstance(published, Published) and engine.spec.state_bytes
            yield Cloud(url, published.rung_bytes)
        worker.close()


async def ask(edge: AsyncEdge, *, local: bool = False) -> tuple[str, list[int], Timings]:
    sampling, text, tokens = Sampling(max_tokens=ANSWER, top_logprobs=0), "", list[int]()
    async for piece in edge.answer(Ask(prompt="\n\nThe header", context="wire", sampling=sampling, local=local)):
        if not isinstance(piece, Piece):
            return text, tokens, piece.timings
        text += piece.text
        tokens += [odds.id for odds in piece.odds]
    raise AssertionError("the answer does not end")


@pytest.mark.parametrize("rung", RUNGS)
def test_a_context_is_streamed_and_answered(cloud: Cloud, tmp_path: Path, rung: str) -> None:
    async def story() -> None:
        async with AsyncEdge(str(MODEL), cloud.url, rung=rung, window_tokens=4096, folder=tmp_path) as edge:
            assert edge.node.engine.no_injection is None
            edge.node.beliefs = slow_machine()
            text, tokens, timings = await ask(edge)
            assert (timings.way, timings.rung) == ("streamed", rung)
            assert 0.9 * cloud.sizes[rung] < timings.bytes_received < 1.1 * cloud.sizes[rung] + 10_000
            await edge.node.forget()
            right, right_tokens, timings = await ask(edge, local=True)
            assert timings.way == "computed" and len(right_tokens) == ANSWER
            if rung == "lossless":
                assert (text, tokens) == (right, right_tokens)
            else:  # nobody can tell until a token that is nearly as likely as another
                assert tokens[:4] == right_tokens[:4]

    asyncio.run(story())


def test_coded_states_spare_most_of_the_bytes(cloud: Cloud) -> None:
    assert cloud.sizes["q4"] < cloud.sizes["q8"] < 0.5 * cloud.sizes["lossless"]
