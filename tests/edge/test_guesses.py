"""A cloud that publishes guesses of how a prompt begins learns nothing from what is asked for next.

Each guess ends in another digit. The edge is asked about a secret one; the cloud sees every request, and guesses.
"""

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.serve import EnginePublisher
from preread.edge.edge import AsyncEdge
from preread.edge.options import Near, Wishes
from preread.edge.request import Ask, Done, Timings
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampling
from preread.engine.worker import Worker
from preread.plan.place import Policy
from preread.store.objects import open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import serving
from preread.values import ObjectId

TRIES = int(os.environ.get("PREREAD_GUESSES", "60"))
BEGINNING = "Dear bank, please pay the rent as you do each month, and the electricity too. " * 4 + "My PIN is"
GUESSES = [f"{BEGINNING} {digit}" for digit in range(10)]


class Seeing:
    """The hostile cloud: it remembers what was asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self._app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Hostile:
    url: str
    seeing: Seeing
    segments: dict[str, int]
    """Which guess a segment is of that no other guess has."""

    def asked(self) -> list[str]:
        """But for the catalogue, which is asked for by the clock."""
        return sorted(path for path in self.seeing.paths if path != "/v1/catalogue")

    def guess(self, source: random.Random) -> int:
        """The digit, by what was asked for since the last time, or by chance."""
        told = {self.segments[path] for path in self.seeing.paths if path in self.segments}
        self.seeing.paths.clear()
        return told.pop() if len(told) == 1 else source.randrange(10)


@pytest.fixture(scope="module")
def hostile(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("store")
    store = open_store(str(folder))
    engine, worker = LlamaCpp.open(tiny_model, window_tokens=512, threads=2), Worker()
    seeing = Seeing(create_app(store, EnginePublisher(engine, worker, store, ("lossless",))))
    with serving(seeing) as url:
        owners: dict[str, set[int]] = {}
        for digit, text in enumerate(GUESSES):
            list(client.publish(url, f"guess {digit}", text=text, form="text"))
            before = set(owners)
            for segment in folder.glob("segments/*/*"):
                owners.setdefault(f"/v1/segments/{segment.name}", set())
            for path in set(owners) - before:
                owners[path].add(digit)
        yield Hostile(url, seeing, {path: digits.pop() for path, digits in owners.items() if len(digits) == 1})
    worker.close()
    engine.close()


@asynccontextmanager
async def victim(hostile: Hostile, model: Path, folder: Path, policy: Policy) -> AsyncGenerator[AsyncEdge, None]:
    """An edge that has synced, and holds what it subscribed to."""
    near = Near(disk_bytes=1 << 28, wishes=Wishes((), policy))
    options = {"rung": "lossless", "window_tokens": 512, "threads": 2, "folder": folder, "sync_s": 3600}
    async with AsyncEdge(str(model), hostile.url, near=near, **options) as edge:
        await edge.node.settled()
        held = edge.node.sources.held
        assert held is not None and len(edge.node.contexts.own()) == 10
        async with asyncio.timeout(60):
            while policy == "all" and not all(id in held for id in map(_id, hostile.segments)):
                await asyncio.sleep(0.02)
        await edge.node.sources.flush()
        hostile.seeing.paths.clear()
        yield edge


def _id(path: str) -> str:
    return path.rpartition("/")[2]


async def ask(edge: AsyncEdge, digit: int) -> Timings:
    """A prompt that begins as a guess does, as if computing took for ever."""
    await edge.node.forget()
    edge.node.beliefs = slow_machine()
    question = Ask(prompt=f"{GUESSES[digit]}831. Is that a good one?", sampling=Sampling(max_tokens=1))
    async for piece in edge.answer(question):
        if isinstance(piece, Done):
            return piece.timings
    raise AssertionError("no end")


@pytest.mark.parametrize(("policy", "tries"), [("recent", TRIES), ("all", TRIES // 2)])
def test_guessing_what_prompts_say_succeeds_no_oftener_than_guessing(
    hostile: Hostile, tiny_model: Path, tmp_path: Path, policy: Policy, tries: int
) -> None:
    async def main() -> tuple[int, set[str | None]]:
        source, right, ways = random.Random(policy), 0, set[str | None]()
        async with victim(hostile, tiny_model, tmp_path, policy) as edge:
            for _ in range(tries):
                secret = source.randrange(10)
                ways.add((await ask(edge, secret)).way)
                assert hostile.asked() == []
                right += hostile.guess(source) == secret
        return right, ways

    right, ways = asyncio.run(main())
    assert right <= tries / 10 + 4.5 * (tries * 0.1 * 0.9) ** 0.5, "so many are right by chance once in 10,000 times"
    assert ways == ({"streamed"} if policy == "all" else {"none"}), "what is held is used all the same"


def test_a_context_that_was_asked_for_by_name_is_fetched_and_then_matched(
    hostile: Hostile, tiny_model: Path, tmp_path: Path
) -> None:
    """The attack's other half: what is seen where something may be fetched."""

    async def main() -> None:
        async with victim(hostile, tiny_model, tmp_path, "off") as edge:
            edge.node.beliefs = slow_machine()
            named = Ask(prompt=" 831?", context="guess 4", sampling=Sampling(max_tokens=1))
            ways = [piece.timings.way async for piece in edge.answer(named) if isinstance(piece, Done)]
            assert ways == ["streamed"] and hostile.guess(random.Random(0)) == 4
            resident = Ask(prompt=f"{GUESSES[4]}831?", sampling=Sampling(max_tokens=1))
            ways = [piece.timings.way async for piece in edge.answer(resident) if isinstance(piece, Done)]
            assert ways == ["resident"] and hostile.asked() == []

    asyncio.run(main())


def test_what_a_prompt_begins_with_displaces_nothing_that_would_have_to_be_fetched_again(
    hostile: Hostile, tiny_model: Path, tmp_path: Path
) -> None:
    """Two prompts, of which one begins with a context on the disk; then a context by name, as before them."""

    async def requests(folder: Path, digit: int) -> list[str]:
        async with victim(hostile, tiny_model, folder, "all") as edge:
            node, held = edge.node, edge.node.sources.held
            node.offload = type(node.offload)(1)  # takes nothing
            await by_name(edge)
            assert held is not None
            held.drop([ObjectId(_id(path)) for path, digit in hostile.segments.items() if digit == 1])
            hostile.seeing.paths.clear()
            question = Ask(prompt=f"{BEGINNING} {digit}831?", sampling=Sampling(max_tokens=1))
            assert [piece async for piece in edge.answer(question)]
            await by_name(edge)
            return hostile.asked()

    async def by_name(edge: AsyncEdge) -> None:
        edge.node.beliefs = slow_machine()
        named = Ask(prompt=" 831?", context="guess 1", sampling=Sampling(max_tokens=1))
        assert [piece async for piece in edge.answer(named)]

    async def main() -> None:
        assert await requests(tmp_path / "one", 2) == await requests(tmp_path / "two", 7) == []

    asyncio.run(main())
