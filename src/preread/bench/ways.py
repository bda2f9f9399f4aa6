"""The ways in which one question about one context is answered, each timed to its first token.

`local` and `resident` need no link. `planned` is the edge as it is: whatever it decides. `loaded` is a baseline that
decides nothing: all of the context at one rung over the link, injected as it arrives, whatever that takes; it has a
loader of its own, the plainest that there is, so that it stays the same while the edge's gets better.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, replace

from preread.edge.answer import answer, gathered
from preread.edge.choice import chosen
from preread.edge.load import Segments, decoded_part, load_spec
from preread.edge.node import Node
from preread.edge.request import Ask, Timings
from preread.edge.residents import Residents
from preread.engine.sampling import Sampling
from preread.errors import PrereadError
from preread.plan.match import Tokens
from preread.store.egress import CloudLink
from preread.store.fetch import fetch_all
from preread.values import StateBlock
from preread.wire import manifest as manifests

Begin = Callable[[], None]

_WARM_CONNECTIONS = 16
_DEAD_S, _SYNCS = 2.0, 8


@dataclass(frozen=True, slots=True)
class Run:
    """One answer: how it came about, and its text.

    Attributes:
        predicted_s: seconds to the first token that its plan expected when it began; None: it had none.
        layered: of the context's work, the share that was done here by computing its first layers only.
    """

    timings: Timings
    output: str
    predicted_s: float | None = None
    layered: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.timings.ttft_ms / 1e3


@dataclass(frozen=True, slots=True)
class Ways:
    """One prompt and its ways to an answer. The edge is opened with `link`, which leads to the cloud."""

    residents: Residents
    link: CloudLink
    prompt: Tokens
    answer_tokens: int

    @property
    def node(self) -> Node:
        """The edge's parts."""
        return self.residents.node

    async def local(self, context: str) -> Run:
        """Computed here from cold, without a cloud."""
        return await self._answered(context, local=True, cold=True)

    async def resident(self, context: str) -> Run:
        """With the context in the engine's cache, which the way before must have left there."""
        return await self._answered(context, local=True, cold=False)

    async def planned(self, context: str, rung: str | None, begin: Begin = lambda: None) -> Run:
        """As the edge decides by itself, from cold; rung None: it also chooses that, within its budget.

        `begin` is called right before it is asked.
        """
        self.node.rung = rung
        await self.node.forget()
        await self.warm()
        begin()
        before = self.residents.last_load
        run = await self._answered(context, local=False, cold=False)
        load = self.residents.last_load
        if load is None or load is before:
            return run
        layered = load.layered_tokens / len(self.node.contexts.named(context).tokens)
        return replace(run, predicted_s=load.predicted_s, layered=layered)

    async def learn_link(self) -> None:
        """Have an edge that believes nothing of its link, except its round trip, which a sync has shown.

        What was asked for on an earlier, black link may have to drain first: an edge tries again and again, too.
        """
        self.node.beliefs = self.node.beliefs.without_link()
        for _ in range(_SYNCS):
            if await self.sync():
                return

    async def sync(self) -> bool:
        """As the edge does every few seconds; in vain, which is False, where the link is black."""
        with suppress(PrereadError, TimeoutError):
            async with asyncio.timeout(_DEAD_S):
                await self.node.sync()
                return True
        return False

    async def warm(self) -> None:
        """Have connections open, as an edge has that runs for a while; in vain where the link is black."""
        with suppress(PrereadError, TimeoutError):
            async with asyncio.timeout(_DEAD_S):
                await self.link.warm(_WARM_CONNECTIONS)

    async def loaded(self, context: str, rung: str, begin: Begin = lambda: None) -> float:
        """Seconds to the first token with all of the context loaded at a rung; `begin` is called right before.

        Raises:
            PrereadError: it cannot be loaded.
        """
        node, engine = self.node, self.node.engine
        known = node.contexts.named(context)
        await node.forget()
        await self.warm()
        begin()
        started = time.monotonic()
        async with node.core.paused():
            reserving = asyncio.ensure_future(node.core.call(lambda: engine.session.reserve(len(known.tokens))))
            loading = asyncio.create_task(self._load(context, rung, reserving))

            def first() -> float:
                with closing(
                    engine.session.generate(self.prompt, Sampling(max_tokens=1), reuse=len(known.tokens))
                ) as steps:
                    next(steps)
                    return time.monotonic() - started

            try:
                await asyncio.shield(reserving)
                seconds = await node.core.call(first)
                await loading
            finally:
                loading.cancel()
                await asyncio.wait([loading, reserving])
                # Or what is computed next lies behind this, where sums have another order, and other last bits.
                await node.core.call(engine.session.clear)
        await node.forget()
        return seconds

    async def loaded_or_never_s(self, context: str, rung: str, begin: Begin = lambda: None) -> float:
        """The same, but infinite where it cannot be loaded."""
        try:
            return await self.loaded(context, rung, begin)
        except PrereadError:
            return float("inf")

    async def _load(self, context: str, rung: str, reserving: asyncio.Future[None]) -> None:
        """All segments, in layer order, into the engine once it has made room."""
        node, engine = self.node, self.node.engine
        known = node.contexts.named(context)
        what = load_spec(known.rung(rung), known.tokens, node.preparations)
        missing = [sum(place.group == group for place in what.places) for group in range(len(what.manifest.groups))]
        complete = 0

        def inject(index: int, frames: list[bytes]) -> None:
            block = decoded_part(what, what.places[index], frames)
            if isinstance(block, StateBlock):
                engine.session.inject_state(block)
            else:
                engine.session.inject(block)

        try:
            await asyncio.to_thread(what.codec.ready)
            async with aclosing(fetch_all(Segments(self.link), what.places)) as arrivals:
                async for index, frames in arrivals:
                    await asyncio.shield(reserving)
                    await asyncio.to_thread(inject, index, frames)
                    missing[what.places[index].group] -= 1
                    while complete < len(missing) and not missing[complete]:
                        engine.session.open_layers(manifests.open_layers(what.manifest, complete + 1))
                        complete += 1
        except BaseException:
            engine.session.cancel()
            raise

    def rung(self, context: str) -> str:
        """The rung that the edge's budget allows for a context.

        Raises:
            PrereadError: there is none.
        """
        self.node.rung = None
        return chosen(self.node.contexts.named(context), self.node.terms()).name

    def group_bytes(self, context: str, rung: str) -> tuple[int, ...]:
        """Of a rung's bytes, those of each group of layers."""
        return self.node.contexts.named(context).rung(rung).group_bytes

    def size_bytes(self, context: str, rung: str) -> int:
        """Bytes of a whole context at a rung."""
        return self.node.contexts.named(context).rung(rung).size_bytes

    async def _answered(self, context: str, *, local: bool, cold: bool) -> Run:
        if cold:
            await self.node.forget()
        prompt, sampling = tuple(map(int, self.prompt)), Sampling(self.answer_tokens)
        ask = Ask(prompt=prompt, context=context, sampling=sampling, local=local)
        pieces, done = await gathered(answer(ask, self.residents))
        return Run(done.timings, "".join(piece.text for piece in pieces))
