"""What is done in a thread has ended when whoever asked for it goes on: also when that was cancelled meanwhile."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """The result of `call()` in a thread, which has ended when this is over: it may read the model, or write to cells
    that are others' then.
    """
    calling = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(calling)
    finally:
        await asyncio.wait([calling])
        if not calling.cancelled():
            calling.exception()  # taken, so that asyncio does not report it
