"""Contexts that nobody waits for any more, whenever that is."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from preread.edge.residents import Residents
from preread.values import ContextId

CONTEXT = ContextId("c" * 64)


class Core:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lost_contexts: list[ContextId] = []

    def begin(self, bringer: object) -> None:
        pass

    def stats(self) -> None:
        pass

    def lost(self, context: ContextId, error: object = None) -> None:
        assert error is None
        self.lost_contexts.append(context)


@pytest.mark.parametrize("turns", range(4))
def test_a_context_is_lost_once_nobody_waits_for_it(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks leaves so many turns of the event loop after it was to be brought: at once, too."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def story() -> None:
        core = Core()
        spec = SimpleNamespace(geometry=SimpleNamespace(layers=4))
        residents = Residents(SimpleNamespace(core=core, engine=SimpleNamespace(spec=spec)))  # type: ignore[arg-type]
        monkeypatch.setattr(residents, "_bring", never)
        question: Any = SimpleNamespace(known=SimpleNamespace(entry=SimpleNamespace(context=CONTEXT)), named=True)
        with residents.asking(question):
            residents.bring(CONTEXT)
            for _ in range(turns):
                await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert core.lost_contexts == [CONTEXT]
        residents.bring(CONTEXT)
        assert core.lost_contexts == [CONTEXT] * 2, "nobody asks"
        assert not residents._tasks and not residents._coming

    asyncio.run(story())


def test_a_context_is_lost_only_when_nothing_is_written_into_its_rows_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are another's then."""

    async def story() -> None:
        core, loop = Core(), asyncio.get_running_loop()
        writing, go, done = asyncio.Event(), threading.Event(), list[str]()

        def inject(rows: str, block: str) -> None:
            loop.call_soon_threadsafe(writing.set)
            assert go.wait(30)
            done.append(block)

        async def reserve(_: ContextId) -> str:
            return "rows"

        core.inject, core.reserve = inject, reserve  # type: ignore[attr-defined]
        node: Any = SimpleNamespace(
            core=core,
            engine=SimpleNamespace(spec=SimpleNamespace(geometry=SimpleNamespace(layers=4))),
            offload=SimpleNamespace(take=lambda _: ("rows of it", "state of it")),
        )
        residents = Residents(node)
        question: Any = SimpleNamespace(known=SimpleNamespace(entry=SimpleNamespace(context=CONTEXT)), named=True)
        with residents.asking(question):
            residents.bring(CONTEXT)
            await writing.wait()
        for _ in range(2):  # somebody else comes and goes
            for _ in range(5):
                await asyncio.sleep(0)
            assert not core.lost_contexts, "something is still written"
            with residents.asking(question):
                await asyncio.sleep(0)
        go.set()
        while residents._tasks:
            await asyncio.sleep(0.001)
        assert core.lost_contexts == [CONTEXT] and done == ["rows of it"]

    asyncio.run(story())
