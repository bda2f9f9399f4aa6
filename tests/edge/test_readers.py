"""Short prompts are read while a long one is, whoever asked for it."""

import asyncio
import os
import threading

import pytest

from preread.edge.readers import Readers
from preread.edge.request import Ask
from preread.engine.calls import Tools
from preread.engine.grammar import of_choice
from preread.engine.sampling import Sampling
from preread.errors import EngineError

SHORT = Ask(prompt="Which pump?")
LONG = [
    Ask(prompt="word " * 5000),
    Ask(messages=tuple({"role": "user", "content": "a"} for _ in range(100))),
    Ask(messages=({"role": "user", "content": ""},), template={"documents": "word " * 5000}),
    Ask(messages=({"role": "user", "content": "", "reasoning_content": "word " * 5000},)),
    Ask(prompt="", tools=Tools(({"name": "fan", "description": "word " * 5000},), ("fan",))),
    Ask(prompt="", sampling=Sampling(grammar=of_choice(["word " * 5000]))),
]


@pytest.mark.parametrize("long", LONG)
def test_a_short_prompt_does_not_wait_for_a_long_one(long: Ask) -> None:
    async def story() -> list[str]:
        readers, begun, over, done = Readers(), threading.Event(), threading.Event(), []

        def read_long() -> None:
            begun.set()
            assert over.wait(60)
            done.append("long")

        reading = asyncio.create_task(readers.run(long, "", read_long))
        await asyncio.to_thread(begun.wait)
        await readers.run(SHORT, "", lambda: done.append("short"))
        over.set()
        await reading
        readers.close()
        with pytest.raises(EngineError):
            await readers.run(SHORT, "", lambda: None)
        return done

    assert asyncio.run(story()) == ["short", "long"]


def test_a_long_prompt_is_read_by_a_thread_of_low_priority() -> None:
    async def story() -> tuple[int, int]:
        readers, niceness = Readers(), lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        found = await readers.run(LONG[0], "", niceness), await readers.run(SHORT, "", niceness)
        readers.close()
        return found

    long, short = asyncio.run(story())
    assert long == 10 and short == os.getpriority(os.PRIO_PROCESS, 0)


def test_what_is_no_prompt_and_takes_long_keeps_no_short_prompt() -> None:
    async def story() -> list[str]:
        readers, begun, over, done = Readers(), threading.Event(), threading.Event(), []

        def prepare() -> None:
            begun.set()
            assert over.wait(60)
            done.append("prepared")

        preparing = asyncio.create_task(readers.apart("", prepare))
        await asyncio.to_thread(begun.wait)
        await readers.run(SHORT, "", lambda: done.append("short"))
        over.set()
        await preparing
        readers.close()
        return done

    assert asyncio.run(story()) == ["short", "prepared"]
