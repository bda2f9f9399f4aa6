"""An edge's parts, put together: engine, contexts, link, and what is believed and held. Opened in `opening.py`."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from preread import limits
from preread.edge.choice import Terms
from preread.edge.contexts import Contexts
from preread.edge.core import Core
from preread.edge.offload import Offload
from preread.edge.options import Options
from preread.edge.profiles import Preparations
from preread.edge.readers import Readers
from preread.edge.refine import Refinement
from preread.edge.sources import Sources
from preread.edge.syncing import keep_in_step
from preread.edge.uses import Uses
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import PrereadError
from preread.fit.calibration import UNFITTED, Calibration
from preread.plan.beliefs import Beliefs
from preread.plan.plan import INJECTIONS
from preread.plan.poll import warm_due
from preread.store.egress import CloudLink
from preread.store.fetch import IN_FLIGHT
from preread.tasks import running

FIRST_SYNC_S: Final = 10.0
"""A question that needs the first sync waits for it no longer."""

_LOOK_S = 1.0


class Node:
    """Everything that answering needs.

    Attributes:
        core: the engine's loop, in which all requests are computed.
        decoders: the threads in which segments are decoded, of all contexts that are on their way.
        worker: the thread in which it runs.
        readers: the threads in which prompts are tokenised, beside it.
        rung: rung of the quality ladder that is loaded; None: the smallest that keeps `max_dloss`.
        max_dloss: by how much the streamed context's loss may be stated to exceed the exact one's, in nats a token.
        deadline_s: the best rung is loaded whose first token is expected by then; None: the one of fewest bytes.
        refine: rung that a held context is brought to while it is in use; None: it stays as it was loaded.
        calibration: how the probabilities of decisions are scaled.
        pins: names of contexts that make room last, in the engine's cache as on the disk.
        refinement: how far that has come, for the context that was streamed last.
        beliefs: what is believed of this machine, its link, and where else segments come from.
        streamed_s: when something was last loaded from the cloud, of `time.monotonic`; None: not yet.
        sources: where segments come from.
        uses: how often contexts were used, if that is counted.
        idle, busy: whether nobody loads a context that was asked for by name, or somebody does.
    """

    def __init__(
        self,
        engine: LlamaCpp,
        worker: Worker,
        core: Core,
        readers: Readers,
        link: CloudLink | None,
        contexts: Contexts,
        beliefs: Beliefs,
        offload: Offload,
        options: Options,
        calibration: Calibration = UNFITTED,
    ) -> None:
        self.engine, self.worker, self.core, self.readers, self.link = engine, worker, core, readers, link
        self.contexts, self.beliefs, self.offload = contexts, beliefs, offload
        self.rung, self.max_dloss = options.rung, options.max_dloss
        self.refine, self.deadline_s = options.refine, options.deadline_s
        self.calibration = calibration
        self.decoders = Worker("decoder", threads=min(INJECTIONS, limits.cpus()))
        self.pins = options.near.wishes.pins
        self.preparations = Preparations(engine.embeddings)
        self.refinement: Refinement | None = None
        self.streamed_s: float | None = None
        self.sources = Sources(link)
        self.uses: Uses | None = None
        self.idle, self.busy = asyncio.Event(), asyncio.Event()
        self.idle.set()
        self._loads = 0

    @property
    def wait_s(self) -> float:
        """How long who asks now will wait for the engine, as a guess."""
        return self.core.wait_s

    def terms(self, prompt_s: float = 0.0) -> Terms:
        """On what a rung is chosen now, for a prompt that takes so long to compute."""
        return Terms(self.rung, self.max_dloss, self.deadline_s, self.beliefs, prompt_s, self.sources.disk.holds)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While this lasts the link is for a context that was asked for by name, and nothing is fetched ahead of need.

        Nothing else pauses that: when prompts come, and how long answers take, is nobody's business.
        """
        self._loads += 1
        self.idle.clear()
        self.busy.set()
        try:
            yield
        finally:
            self._loads -= 1
            if not self._loads:
                self.busy.clear()
                self.idle.set()

    async def sync(self) -> None:
        """Bring the catalogue up to date, and learn the link's round trip.

        Raises:
            PrereadError: the cloud cannot be reached, or there is none.
        """
        if self.link is None:
            self.contexts.unreachable = "this edge has no cloud"
            self.contexts.asked_cloud.set()
            return
        rtt_s = await self.contexts.sync(self.link)
        self.beliefs = self.beliefs.answered(rtt_s)

    async def settled(self, most_s: float = FIRST_SYNC_S) -> bool:
        """Wait until the cloud was asked for the first time, but no longer than `most_s` seconds; whether it was."""
        if not self.contexts.asked_cloud.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.contexts.asked_cloud.wait(), most_s)
        return self.contexts.asked_cloud.is_set()

    async def keep_in_sync(self, every_s: float) -> None:
        """Keep what is known in step with the cloud for ever, and connections open while they are in use."""
        if self.link is None:
            await self.sync()
            return
        async with running(self._keep_warm(self.link)):
            await keep_in_step(self.contexts, self.link, self.sync, every_s, "contexts are computed here")

    async def _keep_warm(self, link: CloudLink) -> None:
        warmed_s = None
        await self.contexts.asked_cloud.wait()
        while True:
            if self.contexts.unreachable is None and warm_due(time.monotonic(), warmed_s, self.streamed_s):
                with suppress(PrereadError):
                    await link.warm(IN_FLIGHT)
                warmed_s = time.monotonic()
            await asyncio.sleep(_LOOK_S)

    async def forget(self) -> None:
        """Hold no context any more, neither in the engine's cache nor in memory, once nobody asks anything."""
        if self.refinement is not None:
            await self.refinement.pause()
        await self.core.forget()
        self.refinement = None
        self.offload.clear()
        self.preparations.clear()

    async def close(self) -> None:
        """Stop everything, after the answers that are under way. No thread uses the model when it is freed."""
        if self.refinement is not None:
            await self.refinement.pause()
        await self.core.close()
        self.readers.close()
        self.decoders.close()
        await self.worker.run(self.engine.close)
        self.worker.close()
