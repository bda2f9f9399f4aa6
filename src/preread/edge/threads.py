"""What is done in a thread has ended when whoever asked for it goes on: also when that was cancelled meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """The result of `call()` in a thread, which has ended when this is over: it may read the model, or write to cells
    that are others' then.
    """
    calling = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(calling)
    finally:
        await ended([calling])
        if not calling.cancelled():
            calling.exception()  # taken, so that asyncio does not report it


async def ended(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for the end of all, however often this is cancelled; that is raised then."""
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
