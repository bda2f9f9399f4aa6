"""Keeping what is known in step with the cloud: told by it where it tells of changes, else by asking now and then.

When to listen and when to ask is `plan/poll.py`'s to say; what is made of it, `contexts.py`'s. Failures are logged once
when they begin, and once when they end.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from secrets import SystemRandom
from typing import Final

from preread.edge.contexts import Contexts
from preread.errors import PrereadError, TransportError
from preread.plan.poll import DEAF_S, SPREAD_S, Allowance, Tries, listen_pause_s, listens
from preread.store.egress import CloudLink
from preread.tasks import running
from preread.wire.selection import Selection

_LOOK_S: Final = 0.5
_LOOK_SOON_S: Final = 0.125
_log = logging.getLogger(__name__)


async def keep_in_step(
    contexts: Contexts, link: CloudLink, sync: Callable[[], Awaitable[object]], every_s: float, meanwhile: str
) -> None:
    """Sync for ever: each `every_s` seconds, and while the cloud tells of changes, only what is lacking is fetched.

    Args:
        contexts, link: what is known, and the cloud.
        sync: asks the cloud for all of it, and raises PrereadError where it cannot.
        every_s: how often to ask where the cloud does not tell.
        meanwhile: what is done until the cloud is back, for the log.
    """
    ear, tries, asked_s, chance = Ear(contexts, link), Tries.none(time.monotonic()), float("-inf"), 0.0
    async with AsyncExitStack() as stack:
        if listens(every_s):
            await stack.enter_async_context(running(ear.keep_listening()))
            await stack.enter_async_context(running(_keep_fetching(contexts, link)))
        while True:
            # A load may find out first that the cloud is gone.
            pause_s = tries.pause_s(every_s, bool(contexts.unreachable), chance)
            if ear.doubts or time.monotonic() - asked_s >= pause_s:
                told = ear.hears and not contexts.unreachable
                tries = await synced(partial(contexts.fetch, link) if told else sync, tries, meanwhile)
                ear.doubts, asked_s, chance = False, time.monotonic(), _chance()
            await asyncio.sleep(min(every_s, _LOOK_SOON_S if contexts.unreachable else _LOOK_S))


class Ear:
    """Listens to a cloud, again and again where that ends.

    Attributes:
        hears: whether the cloud tells of changes now, so that it need not be asked.
        doubts: whether the connection could not be made again: it is to be asked at once whether it is there at all.
    """

    def __init__(self, contexts: Contexts, link: CloudLink) -> None:
        self._contexts, self._link = contexts, link
        self.hears = self.doubts = self._heard = False

    async def keep_listening(self) -> None:
        """Listen for ever, but to a cloud that is there, and no oftener than the allowance has room for."""
        await self._contexts.asked_cloud.wait()
        allowance, failures = Allowance.full(time.monotonic()), 0
        while True:
            failures = 1 if await self._listen() else failures + 1
            while self.doubts:
                await asyncio.sleep(_LOOK_SOON_S)
            if self._contexts.unreachable is None:  # or no connection was made that would cost anything
                allowance = allowance.spent(time.monotonic())
            else:  # it was the cloud that was away: nothing keeps it from being listened to when it is back
                failures = 0
            while self._contexts.unreachable:
                await asyncio.sleep(_LOOK_SOON_S)
            pause_s = listen_pause_s(failures, _chance())
            await asyncio.sleep(max(pause_s, allowance.wait_s(time.monotonic())))

    async def _listen(self) -> bool:
        """Listen once, until that ends or more is to be listened for; whether anything was told."""
        asked, self._heard = self._contexts.selection, False
        listening = asyncio.ensure_future(self._take_over(asked))
        try:
            while not listening.done() and self._contexts.selection == asked:
                await asyncio.wait([listening], timeout=_LOOK_S)
        finally:
            listening.cancel()
            await asyncio.wait([listening])
            self.hears = False
        return self._heard

    async def _take_over(self, asked: Selection) -> None:
        """Take over what the cloud tells of a selection, until the connection ends."""
        try:
            async with aclosing(self._link.changes(self._contexts.version, asked, DEAF_S)) as changes:
                async for told in changes:
                    self.hears = self._heard = True
                    await self._contexts.hear(told, self._link)
        except PrereadError as error:
            _log.debug("the cloud is not listened to for now: %s", error)
            self.doubts = isinstance(error, TransportError) and not self._heard
        except Exception:
            _log.exception("listening to the cloud failed in a way that nobody foresaw")


async def _keep_fetching(contexts: Contexts, link: CloudLink) -> None:
    """Fetch what changes make worth having, for ever, and not in the moment in which all edges hear of them."""
    while True:
        await contexts.lacking.wait()
        await asyncio.sleep(SPREAD_S * _chance())
        if contexts.unreachable:
            contexts.lacking.clear()  # the next sync fetches it
            continue
        try:
            await contexts.fetch(link)
        except PrereadError as error:
            _log.debug("what was told of is fetched later: %s", error)
        except Exception:
            _log.exception("fetching ahead of need failed in a way that nobody foresaw")


async def synced(sync: Callable[[], Awaitable[object]], tries: Tries, meanwhile: str) -> Tries:
    """Sync; how that went, after what went before.

    Args:
        sync: does it, and raises PrereadError where it cannot.
        tries: what went before.
        meanwhile: what is done until the cloud is back, for the log.
    """
    try:
        await sync()
    except PrereadError as error:
        if not tries.failures:
            _log.warning("%s until the cloud is back: %s", meanwhile, error)
        return tries.failed(time.monotonic(), answered=not isinstance(error, TransportError))
    except Exception:
        _log.exception("asking the cloud failed in a way that nobody foresaw")
        return tries.failed(time.monotonic(), answered=True)
    if tries.failures:
        _log.info("the cloud can be reached again")
    return tries.succeeded()


def _chance() -> float:
    """From 0 to 1, drawn anew. The generator is not the process's own, whose seed may be somebody's."""
    return SystemRandom().random()
