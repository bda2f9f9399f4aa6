"""An edge's parts, put together: engine, contexts, link, and what is believed and held. Behaviour is in `answer.py`."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from preread.edge.contexts import Contexts
from preread.edge.estimates import Estimates
from preread.edge.profiles import Preparations
from preread.edge.refine import Refinement
from preread.edge.shelf import Shelf
from preread.edge.sources import Sources
from preread.edge.uses import Uses
from preread.engine.llamacpp import LlamaCpp
from preread.engine.selftest import self_test
from preread.engine.worker import Worker
from preread.errors import PrereadError
from preread.plan.choose import MAX_DLOSS
from preread.plan.health import Breaker
from preread.plan.task import Source
from preread.store.egress import CloudLink
from preread.store.fetch import IN_FLIGHT
from preread.values import ContextId

_WARM_S = 30.0
"""Connections are used at least so often, so that no server in between closes them: a new one costs a round trip."""

CLOUD: Final = "cloud"
_ON_DISK, _NEAR = Source(200e6, 0.001, silence_s=3.0), Source(10e6, 0.01, silence_s=3.0)
"""What is believed before anything was seen. A disk may have to spin up, a neighbour to ask the cloud itself."""

_log = logging.getLogger(__name__)


class Site:
    """Everything that answering needs. One request at a time holds the engine: see `turn`.

    Attributes:
        worker: the thread in which the engine computes.
        reader: the thread in which prompts are tokenised, beside it.
        held: the context whose KV is in the engine's cache; changed only by whoever has the turn.
        rung: rung of the quality ladder that is loaded; None: the smallest that keeps `max_dloss`.
        max_dloss: by how much the streamed context's loss may be stated to exceed the exact one's, in nats a token.
        deadline_s: the best rung is loaded whose first token is expected by then; None: the one of fewest bytes.
        refine: rung that a held context is brought to while it is in use; None: it stays as it was loaded.
        refinement: how far that has come, for the context that is held.
        breaker: the cloud's health, as loads found it; a sync that succeeds closes it.
        sources: where segments come from; others: what is believed of those that are not the cloud, by name.
        uses: how often contexts were used, if that is counted.
        idle, busy: whether nobody wants the engine, or somebody does.
    """

    def __init__(
        self,
        engine: LlamaCpp,
        worker: Worker,
        reader: Worker,
        link: CloudLink | None,
        contexts: Contexts,
        estimates: Estimates,
        *,
        rung: str | None,
        max_dloss: float,
        shelf: Shelf,
        refine: str | None = None,
        deadline_s: float | None = None,
    ) -> None:
        self.engine, self.worker, self.reader, self.link = engine, worker, reader, link
        self.contexts, self.estimates, self.shelf = contexts, estimates, shelf
        self.rung, self.max_dloss, self.refine, self.deadline_s = rung, max_dloss, refine, deadline_s
        self.preparations = Preparations(engine.embeddings)
        self.held: ContextId | None = None
        self.refinement: Refinement | None = None
        self.breaker = Breaker()
        self.others: dict[str, Source] = {}
        self.sources = Sources(link)
        self.uses: Uses | None = None
        self.idle, self.busy = asyncio.Event(), asyncio.Event()
        self.idle.set()
        self._turn, self._wanted = asyncio.Lock(), 0

    def believed(self, supply: str) -> Source:
        """What is believed of a supply of this name."""
        if supply == CLOUD:
            link = self.estimates.link
            return Source(None if link is None else link.bytes_s, self.estimates.rtt_s, self.breaker)
        return self.others.get(supply, _ON_DISK if supply == "disk" else _NEAR)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Wait for the engine; requests get it in the order in which they come. A refinement makes way for them."""
        self._wanted += 1
        self.idle.clear()
        self.busy.set()
        try:
            async with self._turn:
                if self.refinement is not None:
                    await self.refinement.pause()
                yield
        finally:
            self._wanted -= 1
            if not self._wanted:
                self.busy.clear()
                self.idle.set()

    async def sync(self) -> None:
        """Bring the catalogue up to date, and learn the link's round trip.

        Raises:
            PrereadError: the cloud cannot be reached, or there is none.
        """
        if self.link is None:
            self.contexts.unreachable = "this edge has no cloud"
            return
        self.estimates.round_trip(await self.contexts.sync(self.link))
        self.breaker = Breaker()

    async def keep_in_sync(self, every_s: float) -> None:
        """Sync for ever; failures are logged once when they begin and once when they end."""
        failing, warmed = False, -_WARM_S
        while True:
            try:
                await self.sync()
                if self.link is not None and time.monotonic() - warmed >= _WARM_S:
                    await self.link.warm(IN_FLIGHT)
                    warmed = time.monotonic()
                if failing:
                    _log.info("the cloud can be reached again")
                failing = False
            except PrereadError as error:
                if not failing:
                    _log.warning("contexts are computed here until the cloud is back: %s", error)
                failing = True
            await asyncio.sleep(every_s)

    async def forget(self) -> None:
        """Hold no context any more, neither in the engine's cache nor on the shelf."""
        async with self.turn():
            await self.worker.run(self.engine.clear)
            self.held = self.refinement = None
            self.shelf.clear()
            self.preparations.clear()

    async def close(self) -> None:
        """Stop everything, after the request that is being answered. No thread uses the model when it is freed."""
        async with self.turn():
            if self.link is not None:
                await self.link.aclose()
            self.reader.close()
            await self.worker.run(self.engine.close)
        self.worker.close()


@asynccontextmanager
async def open_site(
    model: Path,
    name: str,
    link: CloudLink | None,
    folder: Path,
    *,
    rung: str | None = None,
    max_dloss: float = MAX_DLOSS,
    window_tokens: int = 0,
    threads: int = 0,
    shelf_bytes: int = 1 << 30,
    sync_s: float = 5.0,
    refine: str | None = None,
    deadline_s: float | None = None,
) -> AsyncGenerator[Site, None]:
    """Load the model, test that KV can be injected, restore and sync the catalogue; close everything at the end.

    Args:
        model: GGUF file; `name`: what to call it.
        link: to the cloud; None: everything is computed here.
        folder: where the catalogue is kept.
        rung, max_dloss, deadline_s: as for `Site`.
        window_tokens, threads: as for `LlamaCpp.open`.
        shelf_bytes: memory for the KV of contexts that left the engine's cache.
        sync_s: how often the catalogue is asked for.
        refine: what a context is brought to after the first token; see `Site`.

    Raises:
        UsageError, EngineError: as for `LlamaCpp.open`.
    """
    worker, reader = Worker(), Worker("reader")
    try:
        engine = await worker.run(lambda: LlamaCpp.open(model, name=name, window_tokens=window_tokens, threads=threads))
        tested = await worker.run(lambda: self_test(engine))
    except BaseException:
        reader.close()
        worker.close()
        raise
    if engine.no_injection:
        _log.warning("contexts are computed here, not streamed: %s", engine.no_injection)
    contexts = Contexts(folder, engine.spec.fingerprint)
    contexts.restore()
    estimates, shelf = Estimates(tested.prefill_tokens_s), Shelf(shelf_bytes)
    site = Site(
        engine,
        worker,
        reader,
        link,
        contexts,
        estimates,
        rung=rung,
        max_dloss=max_dloss,
        shelf=shelf,
        refine=refine,
        deadline_s=deadline_s,
    )
    syncing = None
    try:
        with suppress(PrereadError):
            await site.sync()
        if link is not None:
            syncing = asyncio.create_task(site.keep_in_sync(sync_s))
        yield site
    finally:
        if syncing is not None:
            syncing.cancel()
            await asyncio.wait([syncing])
        await site.close()
