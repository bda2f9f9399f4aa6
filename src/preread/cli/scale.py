"""`preread cloud --ray`: the cloud whose models run in replicas on a Ray cluster."""

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from preread import limits
from preread.cli import options
from preread.cli.terminal import say
from preread.errors import UsageError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from preread.cli.listen import Stop
    from preread.cli.listener import Listener
    from preread.cloud.ray.cluster import Replicas, Size
    from preread.cloud.ray.model import EngineModel
    from preread.store.objects import Objects

_MOST_REPLICAS = 1024


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
    stop: "Stop",
) -> bool:
    """Serve until a signal says to stop; True: it was Ctrl-C. Of several models the first is the default."""
    from preread.cli import listen
    from preread.cloud.app import Served, create_app
    from preread.cloud.ray.publisher import ReplicaPublisher
    from preread.engine.worker import Worker, within

    told = ""

    @asynccontextmanager
    async def opening() -> "AsyncGenerator[Starlette, None]":
        nonlocal told
        async with objects.held(), AsyncExitStack() as stack:
            worker = Worker("ray")
            stack.callback(worker.close)
            running = await stack.enter_async_context(within(worker, _running(address, wanted, place(store), of)))
            served = {name: Served(ReplicaPublisher(objects, one.make), one.count) for name, one in running.items()}
            names = {one.fingerprint: name for name, one in running.items()}
            first = served[wanted[0].name]
            count = len(await objects.names())
            contexts = "1 context" if count == 1 else f"{count} contexts"
            told = f"{', '.join(served)} on Ray at {address}, {there.urls}, store {store}, {contexts}"
            width = of.most * len(served)
            yield create_app(objects, first.publisher, there.access, first.counter, names, served, width)

    return await listen.serve(opening(), there.sockets, lambda: say(f"preread cloud: {told}"), there.secured, stop)


@contextmanager
def _running(address: str, wanted: "Sequence[EngineModel]", store: str, of: "Size") -> "Iterator[dict[str, Replicas]]":
    from preread.cloud.ray.cluster import Replicas, connected

    with connected(address):
        yield {one.name: Replicas(one.name, one, store, of) for one in wanted}
