"""One llama-server with its contexts: which one a request is about, and the slot that it gets with it.

Whatever goes wrong with that, the request goes to the server as it is, which then computes all of it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

from preread.attach import slots
from preread.attach.asked import Asked
from preread.attach.bringing import Bringing
from preread.attach.counts import Counts
from preread.attach.folder import Folder, Kept
from preread.attach.published import Published
from preread.attach.reused import Reused
from preread.attach.server import Properties, Server
from preread.attach.slots import Holding, Seen
from preread.attach.trust import Trust
from preread.edge.known import Known
from preread.errors import EngineError, PrereadError
from preread.values import ContextId

_UNFIT_S: Final = 600.0
_LEAST_REUSED: Final = 0.9
"""Of what was restored, a server that reads the context alike reuses all but what a prompt changes at its end."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """A request as it is sent, and what was done for it.

    Attributes:
        asked: the request.
        way: its context was restored into its slot, was held there already, or it passed as it was.
        slot: that it has; None: the server chooses.
        context, tokens: what the server should have at its beginning; None: nothing that was brought there.
    """

    asked: Asked
    way: Literal["restored", "held", "passed"] = "passed"
    slot: int | None = None
    context: ContextId | None = None
    tokens: int = 0


class Attached:
    """Belongs to the event loop."""

    def __init__(
        self, server: Server, folder: Folder, published: Published, trust: Trust, bringing: Bringing, counts: Counts
    ) -> None:
        self.server, self.published, self.trust, self.counts = server, published, trust, counts
        self._folder, self._bringing = folder, bringing
        self._holdings: dict[int, Holding] = {}
        self._taken: Counter[int] = Counter()
        self._noting: set[asyncio.Task[None]] = set()
        self._unfit: dict[ContextId, float] = {}

    @property
    def models(self) -> frozenset[str]:
        """What may stand in front of the @ of MODEL@CONTEXT."""
        served = "" if self.trust.properties is None else self.trust.properties.model
        return frozenset({"preread", self.published.model, served} - {""})

    async def understood(self, asked: Asked) -> tuple[Asked, Known | None]:
        """The request with the context that it names in front; and its context, named or found.

        Raises:
            UsageError, Unavailable: as `Published.find` and `Asked.about` do.
        """
        if asked.context is not None:
            known = await self.published.find(asked.context)
            return asked.about(self.published.spoken(known)), known
        here = (known for known in self.published.all() if self._bringing.at_hand(known))
        return asked, next((known for known in here if asked.begins_with(self.published.spoken(known))), None)

    @asynccontextmanager
    async def placed(self, asked: Asked, known: Known | None) -> AsyncGenerator[Placed, None]:
        """The request as it is to be sent, while its answer is under way; its context has been restored by then."""
        placed = await self._placed(asked, known)
        if placed.slot is None:
            yield placed
            return
        try:
            yield placed
        finally:
            self._taken[placed.slot] -= 1
            if placed.context is not None:
                note = asyncio.create_task(self._note(placed.slot, placed.context))
                self._noting.add(note)
                note.add_done_callback(self._noting.discard)

    def answered(self, placed: Placed, reused: Reused) -> None:
        """What a whole answer said of how much it reused."""
        self._bringing.tokens_s = reused.tokens_s or self._bringing.tokens_s
        if placed.context is None or reused.tokens is None:
            return
        self.counts.reused.inc(reused.tokens)
        self.counts.computed.inc(reused.computed or 0)
        if reused.tokens >= _LEAST_REUSED * placed.tokens:
            return
        if placed.slot is not None:
            self._holdings.pop(placed.slot, None)
        if placed.way == "restored":
            self._unfit[placed.context] = time.monotonic() + _UNFIT_S
            self.counts.unfit.inc()
            told = (reused.tokens, placed.tokens, placed.context[:12], _UNFIT_S)
            _log.warning("the server reused %d of %d restored tokens of context %s: it is left to it for %g s", *told)

    async def aclose(self) -> None:
        """End what is under way."""
        await self._bringing.aclose()
        if self._noting:
            await asyncio.wait(self._noting)

    # Where a request goes

    async def _placed(self, asked: Asked, known: Known | None) -> Placed:
        properties = self.trust.properties
        if properties is None or self.trust.refused is not None or not asked.reuses:
            return Placed(asked)
        try:
            if known is None:
                return await self._another(asked, properties)
            if self._unfit.get(known.entry.context, 0.0) > time.monotonic():
                return Placed(asked)
            kept = await self._bringing.file(known, named=asked.context is not None)
            return Placed(asked) if kept is None else await self._about(asked, known, kept, properties)
        except PrereadError as error:
            _log.info("a request goes to the server as it is: %s", error)
        except Exception:
            _log.exception("placing a request failed in a way that nobody foresaw")
        return Placed(asked)

    async def _another(self, asked: Asked, properties: Properties) -> Placed:
        """A request that is about no context, away from those that are held."""
        if not (self._holdings and asked.begins and properties.tells_slots):
            return Placed(asked)
        async with self.trust.placing:
            seen = await self._seen(properties)
            place = slots.for_another(seen, self._holdings, +self._taken)
            if place.slot is None:
                return Placed(asked)
            self._taken[place.slot] += 1
        return Placed(asked.placed(place.slot), slot=place.slot)

    async def _about(self, asked: Asked, known: Known, kept: Kept, properties: Properties) -> Placed:
        """A request in a slot that has its context, where one is free."""
        context = known.entry.context
        if kept.tokens >= properties.window_tokens:
            raise EngineError(f"{kept.tokens} tokens do not fit a slot of {properties.window_tokens}")
        async with self.trust.placing:
            seen = await self._seen(properties)
            place = slots.for_context(context, seen, self._holdings, +self._taken)
            if place.slot is None:
                return Placed(asked, context=context, tokens=kept.tokens)
            if place.restore:
                self._holdings.pop(place.slot, None)
                await self._restore(place.slot, kept)
                task = next(slot.task for slot in seen if slot.id == place.slot)
                self._holdings[place.slot] = Holding(context, kept.tokens, task)
            self._taken[place.slot] += 1
        tokens = self._holdings[place.slot].tokens
        return Placed(asked.placed(place.slot), "restored" if place.restore else "held", place.slot, context, tokens)

    async def _restore(self, slot: int, kept: Kept) -> None:
        began_s = time.monotonic()
        try:
            await self.server.restore(slot, kept.name)
        except PrereadError as error:
            if self._folder.holds(kept.name):  # or it made room for another a moment ago
                self.trust.lose(f"a restore failed: {error}")
            raise
        took_ms = 1e3 * (time.monotonic() - began_s)
        _log.info("restored %d tokens into slot %d in %.0f ms", kept.tokens, slot, took_ms)

    async def _seen(self, properties: Properties) -> list[Seen]:
        """What the slots hold; of a server that does not tell, nothing that could be relied on."""
        if not properties.tells_slots:
            return [Seen(id, False, 0, -1) for id in range(properties.slots)]
        seen = await self.server.slots()
        self._holdings = slots.still(seen, self._holdings)
        return seen

    async def _note(self, slot: int, context: ContextId) -> None:
        """After an answer: which request it was that the slot had, so that another one there is noticed."""
        holding, properties = self._holdings.get(slot), self.trust.properties
        if holding is None or holding.context != context or properties is None or not properties.tells_slots:
            return
        try:
            for seen in await self.server.slots():
                if seen.id == slot and not seen.busy and seen.tokens >= holding.tokens:
                    self._holdings[slot] = Holding(context, holding.tokens, seen.task)
        except PrereadError as error:
            _log.debug("what the slots hold is not known: %s", error)
