"""Contexts that nobody waits for any more, whenever that is."""

import asyncio
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
