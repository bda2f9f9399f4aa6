"""The event loop of whatever runs as a program: uvloop, where it is to be had.

An edge computes on all of its cores while it loads, so what its event loop costs delays the first token. asyncio's own
loop does the same on systems that uvloop does not know, and in `Edge`, which runs in programs of others: what it
connects to is seen there by Python's audit hooks, which uvloop passes by.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

try:
    import uvloop

    _make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
except ImportError:  # Windows
    _make = asyncio.new_event_loop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in such a loop."""
    with asyncio.Runner(loop_factory=_make) as runner:
        return runner.run(work)
