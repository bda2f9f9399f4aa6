"""`preread cloud`: reads documents once, and serves their KV cache."""

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread import loop
from preread.cli import arguments, options
from preread.cli.endpoint import AT_ONCE, Endpoint, Stop
from preread.cli.engine import engine_for
from preread.cli.grouped import grouped
from preread.cli.terminal import contexts, say
from preread.engine.registry import DEFAULT
from preread.errors import UsageError
from preread.plan.choose import MAX_MODE_DLOSS

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from preread.cli.listener import Listener
    from preread.cloud.origins import Named
    from preread.cloud.reading import Help
    from preread.engine.llamacpp import LlamaCpp
    from preread.store.objects import Objects

_log = logging.getLogger(__name__)

_ENDPOINT: Final = Endpoint(port=8000)


@grouped
def cloud(
    model: options.Model = DEFAULT,
    store: Annotated[str, typer.Option(metavar="FOLDER|s3://…", help="Where published contexts are kept.")] = "./store",
    endpoint: Endpoint = _ENDPOINT,
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
    stop: Stop = AT_ONCE,
) -> None:
    """Run a cloud: it reads documents once and serves their KV cache.

    Before it publishes for the first time with a model, it fits the codec to that model, which takes minutes; see
    `preread fit codec`.
    """
    from preread.cli import scale
    from preread.cli.listener import listening
    from preread.cloud import origins
    from preread.store.messenger import check as check_messenger
    from preread.store.objects import open_store

    names = None if rungs is None else arguments.rung_names(rungs)
    if messenger is not None:
        check_messenger(messenger)
    if (llm is None) != (not mapping and not guide):
        raise UsageError(
            "a large model reads by a mapping or a guide: give --llm and --map or --guide together, see `preread fit`"
        )
    if ray is None and (replicas or also):
        raise UsageError("--replicas and --also are for models on a Ray cluster: give --ray, or leave them away")
    if ray is not None and (llm or taught):
        raise UsageError("large models do not help to read on Ray yet: leave --llm, --map, --guide and --taught away")
    with ExitStack() as stack:
        there = stack.enter_context(listening(endpoint, "read"))
        if there.access.keys is not None and not there.access.keys.may("publish"):
            _log.warning("no key may publish: write publish:KEY for one that may")
        objects = open_store(store)
        loop.run(_check_free(objects))  # before a model is fetched in vain
        elsewhere = loop.run(origins.named(objects, tuple(origin or ()), presign))
        if ray is not None:
            scale.needs_ray("--ray")
            wanted = scale.models([model, *(also or [])], ctx_size, threads, names, replica_cpus)
            size = scale.size(replicas, replica_cpus)
            if loop.run(scale.serve(there, ray, wanted, objects, store, size, stop, messenger, elsewhere)):
                raise KeyboardInterrupt
            return
        for one in (model, llm):
            if one is not None:
                options.pulled(one)  # before others can connect: Ctrl-C ends it at once
        engines = _engines(model, llm, ctx_size, threads, mapping or [], guide or [], taught or [], max_dloss)
        interrupted = loop.run(_serve_cloud(there, engines, objects, names, store, stop, messenger, elsewhere))
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


async def _check_free(objects: "Objects") -> None:
    async with objects.held():
        pass


async def _serve_cloud(
    there: "Listener",
    engines: "AbstractContextManager[tuple[LlamaCpp, Help]]",
    objects: "Objects",
    rungs: tuple[str, ...] | None,
    store: str,
    stop: Stop,
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
            told = f"{engine.spec.name} on {there.urls}, store {store}, {contexts(len(await objects.names()))}"
            publisher = EnginePublisher(engine, worker, objects, rungs, help)
            counter = EngineCounter(engine, reader, objects, rungs)
            models = {one.spec.fingerprint: one.spec.name for one in (engine, help.large) if one is not None}
            served = {engine.spec.name: Served(publisher, counter)}
            yield create_app(objects, publisher, there.access, counter, models, served, elsewhere=elsewhere)

    return await listen.serve(opening(), there.sockets, lambda: say(f"preread cloud: {told}"), there.secured, stop)
