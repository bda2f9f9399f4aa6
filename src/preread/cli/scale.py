"""`preread cloud --ray`: the cloud whose models run in replicas on a Ray cluster."""

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread import limits
from preread.cli import options
from preread.cli.endpoint import Stop
from preread.cli.terminal import contexts, say
from preread.engine.registry import DEFAULT
from preread.errors import UsageError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from preread.cli.listener import Listener
    from preread.cloud.origins import Named
    from preread.cloud.ray.cluster import Replicas, Size
    from preread.cloud.ray.model import EngineModel
    from preread.store.objects import Objects

_MOST_REPLICAS = 1024


@dataclass(frozen=True, slots=True)
class Cluster:
    """Whether replicas on a Ray cluster read and encode, and which."""

    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|auto|HOST:PORT",
            help="Read and encode in replicas on a Ray cluster: one that is started here, this machine's, or that one.",
        ),
    ] = None
    replicas: Annotated[
        str | None,
        typer.Option(metavar="N|FEWEST-MOST", help="Of each model, with --ray; between two numbers as the queue asks."),
    ] = None
    replica_cpus: Annotated[
        float, typer.Option(min=0.1, metavar="CPUS", help="Processors of each replica, with --ray; parts of one count.")
    ] = 1.0
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="NAME|PATH|hf:…", help="Another model, with --ray; may be repeated."),
    ] = None


NONE: Final = Cluster()


def needs_ray(what: str) -> None:
    """Refuse what cannot be without Ray.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("ray") is None:
        raise UsageError(f"{what} needs Ray Serve, which is not installed: pip install 'preread[ray]'")


def models(
    references: Sequence[str], ctx_size: int, threads: int, rungs: tuple[str, ...] | None, cpus: float
) -> "list[EngineModel]":
    """What replicas load; each by a name of its own.

    Raises:
        UsageError: two have the same name.
    """
    from preread.cloud.ray.model import EngineModel

    found = []
    for reference in references:
        path = options.pulled(reference)  # it is fetched once, where the replicas share this machine's folder
        name, file = options.shown_name(reference, path), Path(reference)
        where = str(file.expanduser().absolute()) if reference.endswith(".gguf") and file.exists() else reference
        found.append(EngineModel(where, name, ctx_size, threads or max(1, math.floor(cpus)), rungs))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise UsageError(f"two models are called alike: {', '.join(names)}; give each once")
    return found


def size(replicas: str | None, cpus: float) -> "Size":
    """How many replicas: N, or FEWEST-MOST; by default from 1 to as many as this machine's processors are shares.

    Raises:
        UsageError: it is neither.
    """
    from preread.cloud.ray.cluster import Size

    if replicas is None:
        return Size(1, max(1, math.floor(limits.cpus() / cpus)), cpus)
    fewest, dash, most = replicas.partition("-")
    if not (fewest.isdecimal() and (most.isdecimal() or not dash)):
        raise UsageError(f"--replicas is a number, or two of them, FEWEST-MOST, and not {replicas[:40]!r}")
    low, high = int(fewest), int(most or fewest)
    if not 1 <= low <= high <= _MOST_REPLICAS:
        raise UsageError(f"--replicas {replicas}: at least 1, at most {_MOST_REPLICAS}, the fewest first")
    return Size(low, high, cpus)


def place(store: str) -> str:
    """The store's address, as replicas in other folders and on other machines open it.

    Raises:
        UsageError: nobody else can.
    """
    if store == "memory:":
        raise UsageError("replicas cannot share --store memory:; name a folder that all machines have, or s3://…")
    return store if "://" in store else str(Path(store).expanduser().absolute())


async def serve(
    there: "Listener",
    address: str,
    wanted: "Sequence[EngineModel]",
    objects: "Objects",
    store: str,
    of: "Size",
    stop: Stop,
    messenger: str | None,
    elsewhere: "Named",
) -> bool:
    """Serve until a signal says to stop; True: it was Ctrl-C. Of several models the first is the default."""
    from preread.cli import listen
    from preread.cloud.app import Served, create_app
    from preread.cloud.ray.publisher import ReplicaPublisher
    from preread.engine.worker import Worker, within
    from preread.store.messenger import messages

    told = ""

    @asynccontextmanager
    async def opening() -> "AsyncGenerator[Starlette, None]":
        nonlocal told
        async with objects.held(), messages(objects, store, messenger), AsyncExitStack() as stack:
            worker = Worker("ray")
            stack.callback(worker.close)
            running = await stack.enter_async_context(within(worker, _running(address, wanted, place(store), of)))
            served = {name: Served(ReplicaPublisher(objects, one.make), one.count) for name, one in running.items()}
            names = {one.fingerprint: name for name, one in running.items()}
            first = served[wanted[0].name]
            where = f"{there.urls}, store {store}, {contexts(len(await objects.names()))}"
            told = f"{', '.join(served)} on Ray at {address}, {where}"
            width = of.most * len(served)
            yield create_app(objects, first.publisher, there.access, first.counter, names, served, width, elsewhere)

    return await listen.serve(opening(), there.sockets, lambda: say(f"preread cloud: {told}"), there.secured, stop)


@contextmanager
def _running(address: str, wanted: "Sequence[EngineModel]", store: str, of: "Size") -> "Iterator[dict[str, Replicas]]":
    from preread.cloud.ray.cluster import Replicas, connected

    with connected(address):
        yield {one.name: Replicas(one.name, one, store, of) for one in wanted}


def bench(
    model: options.Model = DEFAULT,
    documents: Annotated[int, typer.Option("--documents", min=1, help="Published by all replicas together.")] = 200,
    alone: Annotated[int, typer.Option("--alone", min=1, help="Published by one, before and again after.")] = 20,
    words: Annotated[int, typer.Option("--words", min=1, help="Of each document.")] = 250,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Replicas; each has one thread.")] = 2,
    kill_s: Annotated[float, typer.Option("--kill-s", min=0, help="Mean seconds between two kills; 0: none.")] = 30.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Replicas on Ray that are killed at random while they publish: what is lost or made twice, how fast it is."""
    needs_ray("bench ray")
    from rich.console import Console

    from preread.bench.replicas import Options
    from preread.bench.replicas import bench as bench_replicas

    path = options.pulled(model)
    chosen = Options(documents, alone, words, workers, kill_s, seed)
    with TemporaryDirectory() as folder:
        bench_replicas(str(path), options.shown_name(model, path), chosen, Path(folder), Console(width=160))
