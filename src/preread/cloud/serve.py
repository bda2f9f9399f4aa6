"""The publisher of a running cloud: one engine, one store, the rungs to publish in."""

import numpy as np

from preread.cloud.document import Tokens, check, read_document
from preread.cloud.events import Published, Request
from preread.cloud.profiles import Stored, profile_for
from preread.cloud.publish import Owner, Report, make, needed, publish
from preread.cloud.reading import NO_HELP, Help, check_models
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.store.objects import Objects
from preread.values import Form


class EnginePublisher:
    """Publishes documents one at a time, as `preread.cloud.app.Publisher` wants it; `worker` is the engine's thread.

    Without `rungs` it publishes in all that the model's profile knows, and lossless. A large model that helps reads
    in the same thread.
    """

    def __init__(
        self,
        engine: LlamaCpp,
        worker: Worker,
        store: Objects,
        rungs: tuple[str, ...] | None = None,
        help: Help = NO_HELP,
    ) -> None:
        check_models(engine, help)
        self._engine, self._worker, self._store, self._rungs, self._help = engine, worker, store, rungs, help

    async def __call__(self, ask: Request, progress: Report) -> Published:
        """Publish a document; the model's profile is fitted first where a rung needs one and the store has none.

        A cancelled call ends when the engine has, and then nothing was published.

        Raises:
            UsageError, EngineError, RemoteError: as `read_document`, `profile_for` and `publish` do.
        """
        tokens, form, profile = await self._read(ask, progress)
        with_what, document = (self._store, self._engine, self._worker), (ask.name, tokens, form)
        return await publish(*with_what, *document, self._rungs, progress, profile, self._help, ask.mode)

    async def make(self, ask: Request, progress: Report, owner: Owner) -> Published:
        """The same without putting the name, which somebody else does.

        Raises:
            Claimed: somebody else makes the same just now.
            UsageError, EngineError, RemoteError: as above.
        """
        tokens, form, profile = await self._read(ask, progress)
        with_what, document = (self._store, self._engine, self._worker), (ask.name, tokens, form)
        return await make(*with_what, *document, self._rungs, progress, profile, self._help, ask.mode, owner)

    async def _read(self, ask: Request, progress: Report) -> tuple[Tokens, Form, Stored | None]:
        """The document's tokens and form, and the profile if one is needed."""
        if ask.mode == "mapped" and not self._help.mappings:
            raise UsageError("this cloud has no large model to map from: start it with --llm and --map")
        if ask.mode == "guided" and not self._help.guides:
            raise UsageError("this cloud has no large model that guides: start it with --llm and --guide")
        if ask.mode == "taught" and not self._help.taught:
            raise UsageError("nobody taught this cloud's contexts: use `preread fit teach`, and start it with --taught")
        ids = None if ask.tokens is None else np.array(ask.tokens, np.int32)
        tokens, form = await self._worker.run(lambda: read_document(self._engine, ask.text, ids, ask.form))
        check(self._engine, ask.name, len(tokens))
        if not needed(self._rungs, self._engine.spec.layers):
            return tokens, form, None
        return tokens, form, await profile_for(self._store, self._engine, self._worker, progress)
