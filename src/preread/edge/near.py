"""What an edge holds on disk and which neighbours it has, opened together around an edge that is already open."""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from preread import files
from preread.edge.neighbours import Neighbours
from preread.edge.node import Node
from preread.edge.options import Near
from preread.edge.prefetch import Prefetch
from preread.edge.sources import Sources
from preread.edge.uses import Uses
from preread.errors import UsageError
from preread.store.held import Held
from preread.store.mdns import Announced, Found, discovering
from preread.tasks import running
from preread.wire.neighbour import Introduction

_ID = re.compile(r"[0-9a-f]{16}")
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_near(node: Node, near: Near, folder: Path) -> AsyncGenerator[Introduction, None]:
    """Give a node its disk and its neighbours, as `node.sources`; who it is to them.

    Args:
        node: an open one; `node.sources` and `node.uses` are replaced.
        near: what is wanted.
        folder: where segments and counts of uses are kept, a folder for each model below it.

    Raises:
        UsageError: a neighbour's URL is none, or `mdns` cannot be used.
    """
    fingerprint = node.engine.spec.fingerprint
    below = folder / fingerprint[:16]
    edge = await asyncio.to_thread(_edge_id, below) if near.disk_bytes else secrets.token_hex(8)
    async with AsyncExitStack() as stack:
        held = Held(below, near.disk_bytes) if near.disk_bytes else None
        if held is not None:
            await asyncio.to_thread(held.scan)
        neighbours = None
        if near.neighbours or near.mdns:
            sharing = near.share is not None
            neighbours = Neighbours(edge, fingerprint, site_key=near.site_key, sharing=sharing, urls=near.neighbours)
            stack.push_async_callback(neighbours.aclose)
            await neighbours.probe()
            await stack.enter_async_context(running(neighbours.keep_probing()))
        if neighbours is not None and near.mdns:
            announced = Announced(edge, fingerprint, near.share)
            await stack.enter_async_context(discovering(announced, _telling(neighbours)))
        node.sources = Sources(node.link, held, neighbours)
        stack.push_async_callback(node.sources.flush)
        if held is not None:
            node.uses = Uses(below / "uses.json")
            await asyncio.to_thread(node.uses.restore)
            prefetch = Prefetch(node, node.sources, held, node.uses, near.wishes)
            stack.push_async_callback(prefetch.save)
            await stack.enter_async_context(running(prefetch.keep_going()))
        yield Introduction(edge, fingerprint)


def _telling(neighbours: Neighbours) -> Found:
    def found(name: str, url: str | None) -> None:
        if url is None:
            neighbours.remove(name)
            return
        try:
            neighbours.add(name, url)
        except UsageError as error:
            _log.info("an edge announces an address that cannot be used: %s", error)

    return found


def _edge_id(folder: Path) -> str:
    """This edge's id, the same after a restart: other edges take it for the owner of what it holds."""
    path = folder / "edge"
    try:
        kept = path.read_text("ascii")
        if _ID.fullmatch(kept):
            return kept
    except (OSError, ValueError):
        pass
    made = secrets.token_hex(8)
    try:
        files.put_below(path, made.encode("ascii"))
    except OSError as error:
        _log.info("this edge has another id after a restart: %s", error)
    return made
