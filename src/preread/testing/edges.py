"""Edges without a model: a real catalogue, disk, neighbours and listener, and nobody who asks questions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from preread.edge.contexts import Contexts
from preread.edge.neighbours import Neighbours
from preread.edge.published import OwnModel
from preread.edge.share import create_app
from preread.edge.sources import Sources
from preread.store.egress import CloudLink
from preread.store.held import Held
from preread.testing.cloud import FINGERPRINT, GEOMETRY
from preread.values import ObjectRef, alike
from preread.wire import manifest as manifests
from preread.wire.neighbour import Introduction, SiteKey

OWN = OwnModel(FINGERPRINT, FINGERPRINT, alike(GEOMETRY), 2**16)
"""What a cloud without a model publishes for."""


@dataclass(frozen=True, slots=True)
class BareEdge:
    """One edge of a site. `url` is where it shares."""

    edge: str
    url: str
    contexts: Contexts
    held: Held
    neighbours: Neighbours
    sources: Sources
    link: CloudLink

    def refs(self, name: str, rung: str = "lossless") -> list[ObjectRef]:
        """The segments of a published context."""
        manifest = self.contexts.named(name).manifest
        assert manifest is not None
        return [ref for place in manifests.places(manifest, rung) for ref in place.refs]

    async def load(self, name: str) -> int:
        """Get all of a context, eight segments at once; how many bytes."""
        gate = asyncio.Semaphore(8)

        async def one(ref: ObjectRef) -> int:
            async with gate:
                return len(await self.sources.get(ref))

        return sum(await asyncio.gather(*[one(ref) for ref in self.refs(name)]))


@asynccontextmanager
async def bare_edge(
    cloud_url: str,
    folder: Path,
    number: int,
    *,
    site_key: str | None = None,
    api_key: str | None = None,
    sharing: bool = True,
) -> AsyncGenerator[BareEdge, None]:
    """An edge that has synced with its cloud, and shares, and knows no neighbours yet."""
    edge, key = f"{number:016x}", None if site_key is None else SiteKey(site_key)
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(CloudLink(cloud_url, api_key=api_key))
        contexts = Contexts(folder / edge, OWN)
        await contexts.sync(link)
        held = Held(folder / edge / "held", 1 << 28)
        held.scan()
        neighbours = Neighbours(edge, FINGERPRINT, site_key=key, sharing=sharing)
        stack.push_async_callback(neighbours.aclose)
        sources = Sources(link, held, neighbours)
        stack.push_async_callback(sources.flush)
        app = create_app(Introduction(edge, FINGERPRINT), sources, contexts, site_key=key)
        url = await stack.enter_async_context(serving_here(app))
        yield BareEdge(edge, url, contexts, held, neighbours, sources, link)


async def introduce(*edges: BareEdge) -> None:
    """Let all of them know each other, and themselves, as a list in a configuration would."""
    for one in edges:
        for other in edges:
            one.neighbours.add(other.url, other.url)
        await one.neighbours.probe()


@asynccontextmanager
async def serving_here(app: ASGIApp) -> AsyncGenerator[str, None]:
    """Serve `app` in this event loop on a free port of 127.0.0.1; gives its URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    serving = asyncio.create_task(server.main_loop())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        await server.shutdown()
