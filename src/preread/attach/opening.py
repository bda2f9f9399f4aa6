"""Attaching to a llama-server: the parts of it, opened together and closed in turn."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from anyio import to_thread

from preread.attach.attached import Attached
from preread.attach.bringing import Bringing
from preread.attach.counts import Counts
from preread.attach.folder import Folder
from preread.attach.options import Options
from preread.attach.published import Published
from preread.attach.server import Server
from preread.attach.trust import Trust
from preread.edge import kept
from preread.edge.contexts import Contexts
from preread.edge.neighbours import Neighbours
from preread.edge.published import Interest, OwnModel
from preread.edge.sources import Sources
from preread.engine import arenas
from preread.engine.download import pull
from preread.engine.llamacpp import LlamaCpp
from preread.errors import PrereadError
from preread.plan.match import Tokens
from preread.store.egress import CloudLink
from preread.store.held import Held
from preread.tasks import running

_WINDOW_TOKENS: Final = 64
"""Nothing is computed but one token, which shows where the embeddings are that decoding takes."""
_FIRST_SYNC_S: Final = 3.0
"""The server is tried with a published text, if the cloud tells of one so soon."""

_log = logging.getLogger(__name__)


@asynccontextmanager
async def attached(options: Options) -> AsyncGenerator[Attached, None]:
    """Take the folder, read the model's vocabulary, and begin to try the server and to ask the cloud.

    Neither has to be there yet.

    Raises:
        UsageError: the folder, the model or an address cannot be used.
        PrereadError: the model cannot be had or loaded.
    """
    arenas.bound()
    async with AsyncExitStack() as stack:
        server = Server(options.server, options.server_key)
        stack.push_async_callback(server.aclose)
        slot_files = stack.enter_context(Folder(options.slots, options.slots_bytes))
        path = await asyncio.to_thread(pull, options.model, lambda *_: None, proxy=options.via.proxy)
        name = path.stem if options.model.endswith(".gguf") else options.model
        engine = await to_thread.run_sync(lambda: _engine(path, name))
        stack.callback(engine.close)
        link = CloudLink(options.cloud, api_key=options.cloud_key, via=options.via) if options.cloud else None
        if link is not None:
            stack.push_async_callback(link.aclose)
            if link.exposed:
                _log.warning("contexts come without TLS: whoever is on the way can read them, and change them")
        folder, spec = options.folder or kept.usual_folder(options.cloud), engine.spec
        own = OwnModel(spec.fingerprint, spec.vocabulary, spec.layers, spec.trained_tokens)
        contexts = Contexts(folder, own, Interest(options.names))
        await asyncio.to_thread(contexts.restore)
        held = Held(folder / "held" / spec.fingerprint[:16], options.disk_bytes) if options.disk_bytes else None
        if held is not None:
            await asyncio.to_thread(held.scan)
        near = None
        if options.neighbours:
            near = Neighbours(
                secrets.token_hex(8),
                spec.fingerprint,
                site_key=options.site_key,
                sharing=False,
                urls=options.neighbours,
            )
            stack.push_async_callback(near.aclose)
            await near.probe()
            await stack.enter_async_context(running(near.keep_probing()))
        sources = Sources(link, held, near)
        stack.push_async_callback(sources.flush)

        async def begun() -> Tokens | None:
            with suppress(TimeoutError):
                await asyncio.wait_for(contexts.asked_cloud.wait(), _FIRST_SYNC_S)
            return next((known.tokens for known in contexts.own()), None)

        published, trust, counts = Published(contexts, link, engine), Trust(server, slot_files, engine, begun), Counts()
        bringing = Bringing(slot_files, sources, engine.embeddings, trust, counts, options)
        opened = Attached(server, slot_files, published, trust, bringing, counts)
        stack.push_async_callback(opened.aclose)
        await stack.enter_async_context(running(published.keep_in_step(options.sync_s)))
        await stack.enter_async_context(running(trust.keep_checking()))
        await stack.enter_async_context(running(_prove(opened, bringing)))
        yield opened


async def _prove(opened: Attached, bringing: Bringing) -> None:
    """See whether the cloud's KV is the server's own, with the first context that is published."""
    await opened.trust.tried.wait()
    own = opened.published.contexts.own()
    if own and opened.trust.refused is None:
        try:
            await bringing.prove(own[0])
        except PrereadError as error:
            _log.info("whether the cloud's KV is the server's own is not known yet: %s", error)


def _engine(path: Path, name: str) -> LlamaCpp:
    return LlamaCpp.open(path, name=name, window_tokens=_WINDOW_TOKENS, threads=1, mapped=True)
