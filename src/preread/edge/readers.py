"""The threads in which prompts are tokenised, beside the engine's: one for what is read in milliseconds, and one of low
priority for all else.

llama.cpp reads a text to its end, whoever waits: short prompts are not to wait for that, and what computes is to have
the processors first.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from preread.edge.request import Ask
from preread.edge.turns import Turns
from preread.engine.worker import LOW, Worker

T = TypeVar("T")

_SHORT_BYTES: Final = 16_384
_SHORT_MESSAGES: Final = 64


class Readers:
    """Both threads, and who has each of them next."""

    def __init__(self) -> None:
        self._short, self._long = Worker("reader"), Worker("long reader", LOW)
        self._turns = {self._short: Turns(), self._long: Turns()}

    async def run(self, ask: Ask, caller: str, call: Callable[[], T]) -> T:
        """What `call` makes of `ask`, in turn with what others ask.

        Raises:
            EngineError: the threads have ended.
            Overloaded: it had to wait too long.
        """
        worker = self._short if _is_short(ask) else self._long
        async with self._turns[worker].turn(caller):
            return await worker.run(call)

    async def apart(self, caller: str, call: Callable[[], T]) -> T:
        """What `call` makes of what is no prompt and takes long, in turn with long prompts; raises as `run` does."""
        async with self._turns[self._long].turn(caller):
            return await self._long.run(call)

    def close(self) -> None:
        """Wait for what is being read; nothing is read any more."""
        self._short.close()
        self._long.close()


def _is_short(ask: Ask) -> bool:
    bound = ask.tools.functions if ask.tools else (), ask.sampling.grammar.text if ask.sampling.grammar else ""
    said = msgspec.json.encode((ask.prompt, ask.messages, ask.template, bound))
    return len(ask.messages or ()) <= _SHORT_MESSAGES and len(said) <= _SHORT_BYTES
