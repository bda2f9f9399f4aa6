"""Contexts on their way into slot files: at which rung, whether it pays, and who shares a load that is under way."""

import asyncio
import logging
import time
from contextlib import ExitStack
from typing import Final

import numpy as np
from anyio import to_thread

from preread import limits
from preread.attach import check
from preread.attach.check import Checked
from preread.attach.counts import Counts
from preread.attach.folder import Folder, Kept, Key
from preread.attach.load import Load
from preread.attach.options import Options
from preread.attach.pace import worth_asking
from preread.attach.slot_file import Bytes, Form
from preread.attach.trust import Trust
from preread.edge.choice import Terms, chosen
from preread.edge.known import Known
from preread.edge.load import Segments, decoded, load_spec
from preread.edge.profiles import Embed, Preparations
from preread.edge.rungs import Streamable
from preread.edge.sources import Sources
from preread.errors import EngineError
from preread.plan.beliefs import Beliefs
from preread.values import KVBlock, Span
from preread.wire.manifest import LOSSLESS

_TOKENS_S: Final = 100.0
"""How fast the server computes, as long as nothing was seen."""
_log = logging.getLogger(__name__)


class Bringing:
    """Belongs to the event loop.

    Attributes:
        tokens_s: how fast the server computes prompts.
    """

    def __init__(
        self, folder: Folder, sources: Sources, embed: Embed, trust: Trust, counts: Counts, options: Options
    ) -> None:
        self._folder, self._sources, self._trust = folder, sources, trust
        self._counts, self._rung, self._max_dloss = counts, options.rung, options.max_dloss
        self._preparations = Preparations(embed)
        self._decoders = asyncio.Semaphore(max(1, limits.cpus()))
        self._loads: dict[Key, asyncio.Task[Kept | None]] = {}
        self._bytes_s: float | None = None
        self._seen_s = 0.0
        self.tokens_s = _TOKENS_S

    async def file(self, known: Known, *, named: bool) -> Kept | None:
        """The slot file of a context, or of its beginning; None: the server is to compute it, and the log says why.

        Args:
            known: the context.
            named: it was asked for by name, not found: only then may anything be fetched for it.

        Raises:
            PrereadError: no rung of it can be had, or the server is another than was thought.
        """
        rung = chosen(known, self._terms(), here=not named)
        key = known.entry.context, rung.name
        found, checked = self._folder.find(key), self._trust.checked
        if checked is None or (found is not None and found.tokens == len(known.tokens)):
            return found
        if key not in self._loads:
            if not (self._sources.without_cloud(rung.places) or self._worth(rung)):
                return found
            load = asyncio.create_task(self._load(known, rung, key, checked))
            self._loads[key] = load
            load.add_done_callback(lambda _: self._loads.pop(key, None))
        return await asyncio.shield(self._loads[key]) or found

    def at_hand(self, known: Known) -> bool:
        """Whether all of a context is here at some rung, so that nobody would notice if it were restored."""
        context = known.entry.context
        return any(
            (context, rung.name) in self._folder or self._sources.without_cloud(rung.places) for rung in known.rungs
        )

    async def prove(self, known: Known) -> None:
        """Compare a context's first rows with what the server computes, before anybody waits for that.

        Raises:
            PrereadError: as `file` does.
        """
        rung = chosen(known, self._terms(), here=False)
        what = load_spec(rung, known.tokens, self._preparations)
        places = sorted((place for place in what.places if place.chunk == 0), key=lambda place: place.group)
        segments, blocks = Segments(self._sources), list[KVBlock]()
        await to_thread.run_sync(what.codec.ready)
        for place in places:
            frames = await segments.get(place)
            blocks.append(await to_thread.run_sync(decoded, what, place, frames))
        k, v = np.concatenate([block.k for block in blocks]), np.concatenate([block.v for block in blocks])
        whole = KVBlock(blocks[0].tokens, Span(0, len(k)), k, v)
        rows = check.first(whole, min(check.TOKENS, len(whole.tokens)))
        await self._trust.agree(known.tokens, rows, lossless=rung.name == LOSSLESS)

    async def aclose(self) -> None:
        """End what is under way."""
        loads = [*self._loads.values()]
        for load in loads:
            load.cancel()
        if loads:
            await asyncio.wait(loads)

    def _terms(self) -> Terms:
        on_disk = self._sources.disk.holds
        return Terms(self._rung, self._max_dloss, None, Beliefs.of_machine(self.tokens_s), 0.0, on_disk)

    def _compute_s(self, tokens: int) -> float:
        return tokens / self.tokens_s

    def _worth(self, rung: Streamable) -> bool:
        compute_s = self._compute_s(rung.manifest.tokens.count)
        return worth_asking(rung.size_bytes, compute_s, self._bytes_s, time.monotonic() - self._seen_s)

    async def _load(self, known: Known, rung: Streamable, key: Key, checked: Checked) -> Kept | None:
        form, whole = checked.form, len(known.tokens)
        what = load_spec(rung, known.tokens, self._preparations)
        with ExitStack() as stack:
            draft = await to_thread.run_sync(stack.enter_context, self._folder.draft(form.size_bytes(whole)))
            form.frame(known.tokens, draft.file)
            load = Load(what, self._sources, form, draft.file, self._decoders, self._compute_s)
            count = await load.run()
            self._learn(known, load, count)
            if not count:
                return None
            first = Span(0, min(count, check.TOKENS))
            layers = Span(0, form.geometry.layers)
            await self._trust.agree(
                known.tokens, form.rows(draft.file, whole, first, layers), lossless=rung.name == LOSSLESS
            )
            if self._trust.checked is None or self._trust.checked.form != form:
                raise EngineError("the server came back with another form of slot files meanwhile")
            if count == whole:
                return self._folder.keep(key, draft, count)
            return await to_thread.run_sync(self._beginning, known, form, draft.file, count, key)

    def _learn(self, known: Known, load: Load, count: int) -> None:
        """Remember how the link did."""
        self._counts.came_bytes.inc(load.came_bytes)
        if load.took_s > 0 and (load.came_bytes or load.failure is not None):
            self._bytes_s, self._seen_s = load.came_bytes / load.took_s, time.monotonic()
        why = f"; {load.failure}" if load.failure is not None else ""
        came = (known.entry.name, count, len(known.tokens), load.took_s, why)
        _log.info("context %r: %d of %d tokens came in %.2f s%s", *came)

    def _beginning(self, known: Known, form: Form, file: Bytes, count: int, key: Key) -> Kept:
        """A slot file of the tokens that are whole. For any thread."""
        with self._folder.draft(form.size_bytes(count)) as draft:
            form.frame(known.tokens[:count], draft.file)
            for layer in range(form.geometry.layers):
                rows = form.rows(file, len(known.tokens), Span(0, count), Span(layer, layer + 1))
                form.put(draft.file, count, rows)
            return self._folder.keep(key, draft, count)
