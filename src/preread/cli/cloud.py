"""`preread cloud`: reads documents once, and serves their KV cache."""

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread import loop
from preread.cli import arguments, options, scale
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


@dataclass(frozen=True, slots=True)
class Helpers:
    """What helps the model to read: a large one with what was fitted for both, and what its contexts were taught."""

    llm: Annotated[
        str | None,
        typer.Option("--llm", metavar="NAME|PATH|hf:…", help="A large model that helps to read; see publish --mode."),
    ] = None
    mapping: Annotated[
        list[Path] | None,
        typer.Option("--map", metavar="FILE", help="What `preread fit map` wrote for both; may be repeated."),
    ] = None
    guide: Annotated[
        list[Path] | None,
        typer.Option("--guide", metavar="FILE", help="What `preread fit guide` wrote for both; may be repeated."),
    ] = None
    taught: Annotated[
        list[Path] | None,
        typer.Option("--taught", metavar="FILE", help="What `preread fit teach` wrote; may be repeated."),
    ] = None
    max_dloss: Annotated[
        float,
        typer.Option(
            "--max-dloss", min=0, metavar="NATS", help="Publish other than exact KV only if it raises the loss no more."
        ),
    ] = MAX_MODE_DLOSS


_ENDPOINT: Final = Endpoint(port=8000)
_NOBODY: Final = Helpers()


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
    helpers: Helpers = _NOBODY,
    cluster: scale.Cluster = scale.NONE,
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
    from preread.cli.listener import listening
    from preread.cloud import origins
    from preread.store.messenger import check as check_messenger
    from preread.store.objects import open_store

    names = None if rungs is None else arguments.rung_names(rungs)
    if messenger is not None:
        check_messenger(messenger)
    if (helpers.llm is None) != (not helpers.mapping and not helpers.guide):
        raise UsageError(
            "a large model reads by a mapping or a guide: give --llm and --map or --guide together, see `preread fit`"
        )
    if cluster.ray is None and (cluster.replicas or cluster.also):
        raise UsageError("--replicas and --also are for models on a Ray cluster: give --ray, or leave them away")
    if cluster.ray is not None and (helpers.llm or helpers.taught):
        raise UsageError("large models do not help to read on Ray yet: leave --llm, --map, --guide and --taught away")
    with ExitStack() as stack:
        there = stack.enter_context(listening(endpoint, "read"))
        if there.access.keys is not None and not there.access.keys.may("publish"):
            _log.warning("no key may publish: write publish:KEY for one that may")
        objects = open_store(store)
        loop.run(_check_free(objects))  # before a model is fetched in vain
        elsewhere = loop.run(origins.named(objects, tuple(origin or ()), presign))
        if cluster.ray is not None:
            scale.needs_ray("--ray")
            wanted = scale.models([model, *(cluster.also or [])], ctx_size, threads, names, cluster.replica_cpus)
            size = scale.size(cluster.replicas, cluster.replica_cpus)
            if loop.run(scale.serve(there, cluster.ray, wanted, objects, store, size, stop, messenger, elsewhere)):
                raise KeyboardInterrupt
            return
        for one in (model, helpers.llm):
            if one is not None:
                options.pulled(one)  # before others can connect: Ctrl-C ends it at once
        engines = _engines(model, ctx_size, threads, helpers)
        interrupted = loop.run(_serve_cloud(there, engines, objects, names, store, stop, messenger, elsewhere))
    if interrupted:
        raise KeyboardInterrupt


@contextmanager
def _engines(model: str, ctx_size: int, threads: int, helpers: Helpers) -> "Iterator[tuple[LlamaCpp, Help]]":
    """The engine whose KV is published, and what helps it to read."""
    from preread.cloud.reading import Help
    from preread.fit import guided, map, teach

    with ExitStack() as stack:
        engine = stack.enter_context(engine_for(model, ctx_size, threads))
        large = helpers.llm and stack.enter_context(engine_for(helpers.llm, ctx_size, threads, streamed=False))
        mappings = tuple(map.load(file) for file in helpers.mapping or ())
        taught = tuple(teach.load(file) for file in helpers.taught or ())
        guides = tuple(guided.load(file) for file in helpers.guide or ())
        yield engine, Help(large or None, mappings, taught, helpers.max_dloss, guides)


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
