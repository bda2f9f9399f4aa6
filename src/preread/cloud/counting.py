"""What a document would be, published: how many tokens it has, whether they fit, and whether it is there already.

It reads what is published; it changes nothing, and computes nothing but tokens.
"""

from typing import Final

import numpy as np

from preread.cloud import events
from preread.cloud.document import SMALLEST_ROOM_TOKENS, as_tokens, least_tokens
from preread.cloud.events import Counted
from preread.cloud.profiles import Stored, kept_profile
from preread.cloud.publish import needed
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import CorruptData
from preread.store.objects import Objects
from preread.values import ContextId, Form
from preread.wire import manifest as manifests
from preread.wire.digest import context_id
from preread.wire.manifest import LOSSLESS, Manifest

COUNTED_CHARACTERS: Final = 2**18
"""Longer texts are tokenised only as far as it takes to see that they do not fit: a million characters take seconds."""


class EngineCounter:
    """Counts documents as they would be published, as `preread.cloud.app.Counter` wants it.

    `reader` is a thread of its own, beside the one that computes; `rungs` are those that the cloud publishes in.
    """

    def __init__(self, engine: LlamaCpp, reader: Worker, store: Objects, rungs: tuple[str, ...] | None = None) -> None:
        self._engine, self._reader, self._store, self._rungs = engine, reader, store, rungs
        self._most_tokens = engine.spec.window_tokens - SMALLEST_ROOM_TOKENS
        self._profile: Stored | None = None

    async def __call__(self, ask: events.Request) -> Counted:
        """Count a document.

        Raises:
            UsageError: it is empty, its ids are not this model's, or the model cannot do its form.
            RemoteError: the store cannot be read.
        """
        count, context, form = await self._reader.run(lambda: self._read(ask))
        model = self._engine.spec.name
        if context is None:
            return Counted(model, count, self._most_tokens)
        current = ask.mode == "exact" and await self._is_current(ask.name, context, form)
        return Counted(model, count, self._most_tokens, context, current)

    def _read(self, ask: events.Request) -> tuple[int, ContextId | None, Form]:
        """How many tokens, which context they are (None: there are more), and its form."""
        if ask.text is not None and len(ask.text) > COUNTED_CHARACTERS:
            if (least := least_tokens(self._engine, ask.text)) is not None:
                return least, None, "text"
        if ask.tokens is not None and len(ask.tokens) > self._most_tokens:
            return len(ask.tokens), None, "text"
        ids = None if ask.tokens is None else np.array(ask.tokens, np.int32)
        read, form = as_tokens(self._engine, ask.text, ids, ask.form)
        return len(read), context_id(self._engine.spec.fingerprint, read), form

    async def _is_current(self, name: str, context: ContextId, form: Form) -> bool:
        """Whether `name` is this very context, as this model alone reads it, in the rungs of today."""
        entry = await self._store.entry(name)
        if entry is None or (entry.context, entry.form) != (context, form):
            return False
        data = await self._store.read("manifests", entry.manifest.id)
        try:
            found = manifests.loads(data) if data is not None else None
        except CorruptData:
            return False
        return found is not None and found.origin.mode == "exact" and await self._has_rungs_of_today(found)

    async def _has_rungs_of_today(self, found: Manifest) -> bool:
        wanted = set(self._rungs or (LOSSLESS,))
        if needed(self._rungs, self._engine.spec.layers):
            ref = await self._store.profile_of(self._engine.spec.fingerprint)
            if self._profile is None or self._profile.ref != ref:
                self._profile = await kept_profile(self._store, self._engine)
            if self._profile is None:
                return False
            kept = self._profile
            if any(rung.profile is not None and rung.profile.id != kept.ref.id for rung in found.rungs):
                return False
            if self._rungs is None:
                wanted |= {rung.name for rung in kept.profile.rungs}
        return wanted <= {rung.name for rung in found.rungs}
