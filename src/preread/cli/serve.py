"""`preread cloud` and `preread edge`: the two servers."""

import logging
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preread import loop
from preread.cli import arguments, keys, options
from preread.cli.terminal import say
from preread.engine.registry import DEFAULT
from preread.errors import UsageError
from preread.plan.choose import MAX_DLOSS, MAX_MODE_DLOSS
from preread.plan.poll import SYNC_S

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from preread.cli.listen import Stop
    from preread.cli.listener import Listener
    from preread.cloud.origins import Named
    from preread.cloud.reading import Help
    from preread.edge.edge import AsyncEdge
    from preread.edge.serving import Limits
    from preread.engine.llamacpp import LlamaCpp
    from preread.store.objects import Objects

_log = logging.getLogger(__name__)


def cloud(
    model: options.Model = DEFAULT,
    store: Annotated[str, typer.Option(metavar="FOLDER|s3://…", help="Where published contexts are kept.")] = "./store",
    host: options.Hosts = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    api_key: options.ClientKeys = None,
    api_key_file: options.ClientKeyFile = None,
    insecure: options.Insecure = False,
    uds: options.Uds = None,
    uds_mode: options.UdsMode = "600",
    cert: options.Cert = None,
    key: options.CertKey = None,
    client_ca: options.ClientCa = None,
    allow_host: options.AllowHost = None,
    allow_origin: options.AllowOrigin = None,
    ctx_size: options.Window = 0,
    threads: options.Threads = 0,
    rungs: Annotated[
        str | None,
        typer.Option(metavar="RUNG,…", help="Qualities to publish in; by default lossless and all that are fitted."),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option("--llm", metavar="NAME|PATH|hf:…", help="A large model that helps to read; see publish --mode."),
    ] = None,
    mapping: Annotated[
        list[Path] | None,
        typer.Option("--map", metavar="FILE", help="What `preread fit map` wrote for both; may be repeated."),
    ] = None,
    guide: Annotated[
        list[Path] | None,
        typer.Option("--guide", metavar="FILE", help="What `preread fit guide` wrote for both; may be repeated."),
    ] = None,
    taught: Annotated[
        list[Path] | None,
        typer.Option("--taught", metavar="FILE", help="What `preread fit teach` wrote; may be repeated."),
    ] = None,
    max_dloss: Annotated[
        float,
        typer.Option(
            "--max-dloss", min=0, metavar="NATS", help="Publish other than exact KV only if it raises the loss no more."
        ),
    ] = MAX_MODE_DLOSS,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|auto|HOST:PORT",
            help="Read and encode in replicas on a Ray cluster: one that is started here, this machine's, or that one.",
        ),
    ] = None,
    replicas: Annotated[
        str | None,
        typer.Option(metavar="N|FEWEST-MOST", help="Of each model, with --ray; between two numbers as the queue asks."),
    ] = None,
    replica_cpus: Annotated[
        float, typer.Option(min=0.1, metavar="CPUS", help="Processors of each replica, with --ray; parts of one count.")
    ] = 1.0,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="NAME|PATH|hf:…", help="Another model, with --ray; may be repeated."),
    ] = None,
    messenger: options.Messenger = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--origin",
            metavar="URL",
            help="Edges fetch segments from here: the bucket, or a cache before it, that everybody may read.",
        ),
    ] = None,
    presign: Annotated[
        int | None,
        typer.Option(metavar="S", help="Have edges fetch segments from the bucket, by addresses signed for so long."),
    ] = None,
    drain_s: options.DrainS = 0.0,
    finish_s: options.FinishS = 5.0,
) -> None:
    """Run a cloud: it reads documents once and serves their KV cache.

    Before it publishes for the first time with a model, it fits the codec to that model, which takes minutes; see
    `preread fit codec`.
    """
    from preread.cli import scale
    from preread.cli.listen import Stop
    from preread.cli.listener import Place, listening
    from preread.cloud import origins
    from preread.store.messenger import check as check_messenger
    from preread.store.objects import open_store

    names = None if rungs is None else arguments.rung_names(rungs)
    if messenger is not None:
        check_messenger(messenger)
    clients = keys.of_clients(api_key, api_key_file, "read")
    if (llm is None) != (not mapping and not guide):
        raise UsageError(
            "a large model reads by a mapping or a guide: give --llm and --map or --guide together, see `preread fit`"
        )
    if ray is None and (replicas or also):
        raise UsageError("--replicas and --also are for models on a Ray cluster: give --ray, or leave them away")
    if ray is not None and (llm or taught):
        raise UsageError("large models do not help to read on Ray yet: leave --llm, --map, --guide and --taught away")
    place = Place(host, port, uds, uds_mode, cert, key, client_ca)
    with ExitStack() as stack:
        there = stack.enter_context(listening(place, clients, allow_host, allow_origin, insecure=insecure))
        if clients is not None and not clients.may("publish"):
            _log.warning("no key may publish: write publish:KEY for one that may")
        objects = open_store(store)
        loop.run(_check_free(objects))  # before a model is fetched in vain
        elsewhere = loop.run(origins.named(objects, tuple(origin or ()), presign))
        if ray is not None:
            scale.needs_ray("--ray")
            wanted = scale.models([model, *(also or [])], ctx_size, threads, names, replica_cpus)
            size, stop = scale.size(replicas, replica_cpus), Stop(drain_s, finish_s)
            if loop.run(scale.serve(there, ray, wanted, objects, store, size, stop, messenger, elsewhere)):
                raise KeyboardInterrupt
            return
        for one in (model, llm):
            if one is not None:
                options.pulled(one)  # before others can connect: Ctrl-C ends it at once
        engines = _engines(model, llm, ctx_size, threads, mapping or [], guide or [], taught or [], max_dloss)
        interrupted = loop.run(
            _serve_cloud(there, engines, objects, names, store, Stop(drain_s, finish_s), messenger, elsewhere)
        )
    if interrupted:
        raise KeyboardInterrupt


@contextmanager
def _engines(
    model: str,
    llm: str | None,
    ctx_size: int,
    threads: int,
    mappings: list[Path],
    guides: list[Path],
    taught: list[Path],
    max_dloss: float,
) -> "Iterator[tuple[LlamaCpp, Help]]":
    """The engine whose KV is published, and what helps it to read."""
    with ExitStack() as stack:
        engine = stack.enter_context(engine_for(model, ctx_size, threads))
        large = llm and stack.enter_context(engine_for(llm, ctx_size, threads, streamed=False))
        yield engine, _help(large or None, mappings, guides, taught, max_dloss)


def _help(
    large: "LlamaCpp | None", mappings: list[Path], guides: list[Path], taught: list[Path], max_dloss: float
) -> "Help":
    from preread.cloud.reading import Help
    from preread.fit import guided, map, teach

    return Help(
        large,
        tuple(map.load(file) for file in mappings),
        tuple(teach.load(file) for file in taught),
        max_dloss,
        tuple(guided.load(file) for file in guides),
    )


@contextmanager
def engine_for(model: str, ctx_size: int, threads: int, *, streamed: bool = True) -> "Iterator[LlamaCpp]":
    """A tested engine whose KV can be published, and that a profile can be fitted with; or, unless `streamed`, any.

    Raises:
        UsageError: it cannot, by the model's nature.
        PrereadError: as loading does.
    """
    from preread.engine.llamacpp import LlamaCpp
    from preread.engine.selftest import self_test
    from preread.fit.sample import TAIL_TOKENS

    path = options.pulled(model)
    name = options.shown_name(model, path)
    _log.info("loading %s", name)
    engine = LlamaCpp.open(path, name=name, window_tokens=ctx_size, threads=threads, scored_tokens=TAIL_TOKENS)
    try:
        self_test(engine)
        if streamed and engine.no_injection:
            raise UsageError(f"{name} cannot be streamed: {engine.no_injection}; choose another --model")
        yield engine
    finally:
        engine.close()


async def _check_free(objects: "Objects") -> None:
    async with objects.held():
        pass


async def _serve_cloud(
    there: "Listener",
    engines: "AbstractContextManager[tuple[LlamaCpp, Help]]",
    objects: "Objects",
    rungs: tuple[str, ...] | None,
    store: str,
    stop: "Stop",
    messenger: str | None,
    elsewhere: "Named",
) -> bool:
    from preread.cli import listen
    from preread.cloud.app import Served, create_app
    from preread.cloud.counting import EngineCounter
    from preread.cloud.serve import EnginePublisher
    from preread.engine.worker import Worker, within
    from preread.store.messenger import messages

    told = ""

    @asynccontextmanager
    async def opening() -> "AsyncGenerator[Starlette, None]":
        nonlocal told
        async with objects.held(), messages(objects, store, messenger), AsyncExitStack() as stack:
            worker, reader = Worker(), Worker("reader")
            stack.callback(worker.close)
            engine, help = await stack.enter_async_context(within(worker, engines))
            stack.callback(reader.close)
            told = f"{engine.spec.name} on {there.urls}, store {store}, {_contexts(len(await objects.names()))}"
            publisher = EnginePublisher(engine, worker, objects, rungs, help)
            counter = EngineCounter(engine, reader, objects, rungs)
            models = {one.spec.fingerprint: one.spec.name for one in (engine, help.large) if one is not None}
            served = {engine.spec.name: Served(publisher, counter)}
            yield create_app(objects, publisher, there.access, counter, models, served, elsewhere=elsewhere)

    return await listen.serve(opening(), there.sockets, lambda: say(f"preread cloud: {told}"), there.secured, stop)


def edge(
    model: options.Model = DEFAULT,
    cloud: options.OptionalCloud = None,
    host: options.Hosts = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8080,
    api_key: options.ClientKeys = None,
    api_key_file: options.ClientKeyFile = None,
    insecure: options.Insecure = False,
    uds: options.Uds = None,
    uds_mode: options.UdsMode = "600",
    cert: options.Cert = None,
    key: options.CertKey = None,
    client_ca: options.ClientCa = None,
    allow_host: options.AllowHost = None,
    allow_origin: options.AllowOrigin = None,
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
    drain_s: options.DrainS = 0.0,
    finish_s: options.FinishS = 5.0,
) -> None:
    """Run an edge: an OpenAI-compatible server that streams shared contexts in and keeps prompts to itself."""
    from preread.cli.listen import Stop
    from preread.cli.listener import Place, listening
    from preread.edge.edge import AsyncEdge
    from preread.edge.options import Near, Wishes
    from preread.edge.serving import Limits
    from preread.wire.neighbour import SiteKey

    clients = keys.of_clients(api_key, api_key_file, "ask")
    to_cloud, site_secret = keys.own(cloud_key, cloud_key_file, cloud), keys.own(site_key, site_key_file)
    arguments.check_rung(rung)
    arguments.check_rung(refine)
    wishes, near_urls = Wishes(*arguments.subscriptions(subscribe, pin, prefetch)), arguments.urls(neighbours)
    place = Place(host, port, uds, uds_mode, cert, key, client_ca)
    with ExitStack() as stack:
        there = stack.enter_context(listening(place, clients, allow_host, allow_origin, insecure=insecure))
        anywhere = insecure or site_secret is not None
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
        limits, stop = Limits(max_queue, max_tokens), Stop(drain_s, finish_s)
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
    stop: "Stop",
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
        where = f"{there.urls}, {link}, {_contexts(len(node.contexts.entries()))}{sharing}"
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


def _contexts(count: int) -> str:
    return "1 context" if count == 1 else f"{count} contexts"
