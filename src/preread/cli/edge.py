"""`preread edge`: answers questions about shared contexts, which it streams in."""

import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from preread import loop
from preread.cli import arguments, keys, options
from preread.cli.endpoint import AT_ONCE, Endpoint, Stop
from preread.cli.grouped import grouped
from preread.cli.terminal import contexts, say
from preread.engine.registry import DEFAULT
from preread.errors import UsageError
from preread.plan.choose import MAX_DLOSS
from preread.plan.poll import SYNC_S

if TYPE_CHECKING:
    from preread.cli.listener import Listener
    from preread.edge.edge import AsyncEdge
    from preread.edge.serving import Limits

_log = logging.getLogger(__name__)

_ENDPOINT: Final = Endpoint(port=8080)


@grouped
def edge(
    model: options.Model = DEFAULT,
    cloud: options.OptionalCloud = None,
    endpoint: Endpoint = _ENDPOINT,
    cloud_key: options.EdgesCloudKey = None,
    cloud_key_file: options.EdgesCloudKeyFile = None,
    rung: options.Rung = None,
    max_dloss: options.MaxDloss = MAX_DLOSS,
    deadline: options.Deadline = None,
    refine: options.Refine = None,
    ctx_size: options.Window = 0,
    threads: options.Threads = 0,
    kv_memory: options.KvMemory = None,
    keep_conversations: options.KeepConversations = 3600.0,
    drafts: options.Drafts = True,
    cache_ram: options.CacheRam = None,
    decisions: options.Decisions = None,
    family: options.Gates = None,
    sync_s: options.SyncS = SYNC_S,
    names: options.Names = None,
    disk_cache: options.DiskCache = 4096,
    pin: options.Pin = None,
    prefetch: options.Prefetch = "recent",
    subscribe: options.Subscribe = None,
    origins: options.Origins = True,
    neighbours: options.Neighbours = None,
    mdns: options.Mdns = False,
    share: options.Share = None,
    share_mbps: options.ShareMbps = None,
    site_key: options.SiteKey = None,
    site_key_file: options.SiteKeyFile = None,
    max_queue: options.MaxQueue = 256,
    max_tokens: options.MaxTokens = 1024,
    stop: Stop = AT_ONCE,
) -> None:
    """Run an edge: an OpenAI-compatible server that streams shared contexts in and keeps prompts to itself."""
    from preread.cli.listener import listening
    from preread.edge.edge import AsyncEdge
    from preread.edge.options import Near, Wishes
    from preread.edge.serving import Limits
    from preread.wire.neighbour import SiteKey

    to_cloud, site_secret = keys.own(cloud_key, cloud_key_file, cloud), keys.own(site_key, site_key_file)
    arguments.check_rung(rung)
    arguments.check_rung(refine)
    wishes, near_urls = Wishes(*arguments.subscriptions(subscribe, pin, prefetch)), arguments.urls(neighbours)
    with ExitStack() as stack:
        there = stack.enter_context(listening(endpoint, "ask"))
        anywhere = endpoint.insecure or site_secret is not None
        shared = None if share is None else stack.enter_context(_sharing_socket(share, anywhere=anywhere))
        address = None if shared is None else shared.getsockname()[:2]
        secret = None if site_secret is None else SiteKey(site_secret)
        near = Near(disk_cache << 20, wishes, near_urls, mdns, secret, address)
        path = options.pulled(model)
        opened = AsyncEdge(
            model,
            cloud,
            api_key=to_cloud,
            rung=rung,
            max_dloss=max_dloss,
            deadline_s=deadline,
            refine=refine,
            window_tokens=ctx_size,
            threads=threads,
            kv_memory_bytes=None if kv_memory is None else kv_memory << 20,
            drafts=drafts,
            keep_conversations_s=keep_conversations,
            cache_ram_bytes=None if cache_ram is None else cache_ram << 20,
            sync_s=sync_s,
            names=arguments.prefixes(names),
            decisions=decisions,
            gates=tuple(family or ()),
            near=near,
            origins=origins,
            via=options.via(),
        )
        _log.info("loading %s", options.shown_name(model, path))
        most_bytes_s = None if share_mbps is None else share_mbps * 1e6 / 8
        limits = Limits(max_queue, max_tokens)
        interrupted = loop.run(_serve_edge(there, limits, opened, shared, most_bytes_s, stop))
    if interrupted:
        raise KeyboardInterrupt


def _sharing_socket(share: str, *, anywhere: bool) -> socket.socket:
    """Take the address that an edge shares at; unless `anywhere`, only if it is reached from this machine alone.

    Raises:
        UsageError: it is not, or it is taken, or none.
    """
    from preread.cli import listen

    sock = listen.bind(*arguments.host_and_port(share), "--share")
    try:
        if not anywhere:
            listen.check_closed([sock], "a secret with --site-key-file or PREREAD_SITE_KEY")
    except UsageError:
        sock.close()
        raise
    return sock


async def _serve_edge(
    there: "Listener",
    limits: "Limits",
    opened: "AsyncEdge",
    shared: socket.socket | None,
    share_bytes_s: float | None,
    stop: Stop,
) -> bool:
    from preread.cli import listen
    from preread.edge.app import create_app
    from preread.edge.share import create_share_app

    def ready() -> None:
        node, cloud = opened.node, opened.options.cloud
        away = " (cannot be reached)" if node.contexts.unreachable else ""
        if not node.contexts.asked_cloud.is_set():
            away = " (being asked)"
        link = f"cloud {cloud}{away}" if cloud else "no cloud"
        sharing = f", sharing on {listen.url(shared)}" if shared else ""
        where = f"{there.urls}, {link}, {contexts(len(node.contexts.entries()))}{sharing}"
        say(f"preread edge: {node.engine.spec.name} on {where}")

    @asynccontextmanager
    async def sharing() -> AsyncGenerator[None, None]:
        if shared is None:
            yield
            return
        app = create_share_app(opened, bytes_s=share_bytes_s)
        async with listen.beside(app, shared):
            yield

    app = create_app(opened, there.access, limits=limits, beside=sharing)
    return await listen.serve(nullcontext(app), there.sockets, ready, there.secured, stop)
