"""How soon changes reach many edges, whatever happens to their connections, and what those take while nothing changes.

The edges are no models: each is what an edge knows of its cloud, kept in step by the edge's own code over a link of its
own, with a folder of its own. The cloud is a process of its own that publishes random KV through its API; between them
is a relay that counts bytes and breaks connections. A change is a publication or a removal, and its time is from when
that is asked for, or from when the fault is over where one is under way, until an edge lists it or lists it no more.
"""

import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from preread import loop, tls
from preread.cloud import client
from preread.edge.contexts import Contexts
from preread.edge.machine import machine
from preread.edge.syncing import keep_in_step
from preread.errors import RemoteError, TransportError
from preread.plan.poll import MONTH_BYTES, MONTH_S, SILENCE_S, SPREAD_S, SYNC_S
from preread.store.egress import CloudLink
from preread.tasks import running
from preread.testing.edges import OWN
from preread.testing.proxy import Blackout, Fault, ProxyProcess, Refuse, Reset

Told = dict[str, object]
_WORDS_HEADERS_BYTES: Final = 144
"""Of a word and of its receipt: IPv6 and TCP with timestamps."""

_LOOK_S, _PATIENCE_S, _START_S = 0.002, 180.0, 60.0
_MEDIAN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        edges: that are connected.
        changes: that are made while all is well.
        rounds: how often each fault is tried.
        idle_s: how long bytes are counted while nothing changes; 0: not at all.
        secured: over TLS.
        seed: which changes are made follows from it.
    """

    edges: int = 50
    changes: int = 20
    rounds: int = 3
    idle_s: float = 300.0
    secured: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """How soon changes reached all edges in one situation, seconds."""

    what: str
    changes: int
    median_s: float
    p90_s: float
    worst_s: float


class Cloud:
    """The cloud's process, on a port of 127.0.0.1 that stays the same."""

    def __init__(self, store: Path, identity: tls.Identity | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        files = [] if identity is None else [str(identity.certificate), str(identity.key)]
        self._command = [sys.executable, "-m", "preread.bench.push", str(store), str(self.port), *files]
        self.url = f"http{'' if identity is None else 's'}://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            TransportError: it does not.
        """
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        for _ in range(int(_START_S / 0.02)):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.02)
        raise TransportError("the benchmark's cloud did not start")

    def kill(self) -> None:
        """As `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Site:
    """The edges, the relay before them, and the cloud."""

    def __init__(self, edges: Sequence[Contexts], relay: ProxyProcess, cloud: Cloud, chance: random.Random) -> None:
        self.edges, self.relay, self.cloud, self._chance = edges, relay, cloud, chance
        self._published, self._count = list[str](), 0

    async def change(self) -> Callable[[Contexts], bool]:
        """Publish something, or take something back; whether an edge knows of that."""
        if len(self._published) > 3 and self._chance.random() < 0.5:
            name = self._published.pop(self._chance.randrange(len(self._published)))
            await asyncio.to_thread(client.remove, self.cloud.url, name)
            return lambda edge: edge.entry(name) is None
        self._count += 1
        name = f"context {self._count}"
        self._published.append(name)
        await asyncio.to_thread(lambda: list(client.publish(self.cloud.url, name, text=f"text {self._count}")))
        return lambda edge: edge.entry(name) is not None

    async def reached(self, known: Callable[[Contexts], bool], since_s: float) -> list[float]:
        """Seconds after `since_s` at which each edge knew.

        Raises:
            TransportError: one did not.
        """
        waiting, times = set(range(len(self.edges))), list[float]()
        while waiting:
            now_s = time.monotonic()
            knowing = {number for number in waiting if known(self.edges[number])}
            times += [max(0.0, now_s - since_s)] * len(knowing)
            waiting -= knowing
            if now_s - since_s > _PATIENCE_S:
                raise TransportError(f"{len(waiting)} of {len(self.edges)} edges never heard of a change")
            await asyncio.sleep(_LOOK_S)
        return times

    async def connected(self) -> list[float]:
        """A change while all is well."""
        since_s = time.monotonic()
        changing = asyncio.ensure_future(self.change())
        return await self.reached(await changing, since_s)

    async def behind(self, faults: Sequence[Fault], for_s: float) -> list[float]:
        """A change behind a broken link, from when that is whole again."""
        self.relay.set_faults(faults)
        known = await self.change()
        await asyncio.sleep(for_s)
        since_s = time.monotonic()
        self.relay.set_faults(())
        return await self.reached(known, since_s)

    async def killed(self, away_s: float) -> list[float]:
        """A change as soon as a cloud that was killed is there again."""
        self.relay.set_faults((Refuse(),))  # as a machine without the cloud does; the relay would tell of each
        self.cloud.kill()
        await asyncio.sleep(away_s)
        await self.cloud.start()
        self.relay.set_faults(())
        return await self.connected()

    async def idle(self, for_s: float) -> float:
        """Bytes a second that an edge takes while nothing changes, without headers of TCP and IP."""
        await asyncio.sleep(2 * SPREAD_S)  # what the last change makes edges fetch
        before = self.relay.stats
        await asyncio.sleep(for_s)
        after = self.relay.stats
        moved = after.bytes_up + after.bytes_down - before.bytes_up - before.bytes_down
        return moved / for_s / len(self.edges)


@asynccontextmanager
async def _site(options: Options, folder: Path) -> AsyncGenerator[Site, None]:
    """All of it, when every edge listens."""
    identity = None
    if options.secured:
        from preread.testing.authority import Authority

        house = Authority(folder)
        tls.trust(house.file)
        identity = house.issue("cloud")
    cloud = Cloud(folder / "store", identity)
    async with AsyncExitStack() as stack:
        stack.callback(cloud.kill)
        await cloud.start()
        relay = stack.enter_context(ProxyProcess(cloud.port))
        edges = list[Contexts]()
        for number in range(options.edges):
            link = CloudLink(f"{cloud.url.partition(':')[0]}://127.0.0.1:{relay.port}")
            stack.push_async_callback(link.aclose)
            contexts = Contexts(folder / f"edge{number}", OWN)
            sync = partial(contexts.sync, link)
            await stack.enter_async_context(running(keep_in_step(contexts, link, sync, SYNC_S, "nothing is done")))
            edges.append(contexts)
        site = Site(edges, relay, cloud, random.Random(options.seed))
        for _ in range(2):
            await site.connected()
        yield site


async def bench(options: Options, console: Console) -> Told:
    """Change, break and count; print a table, and last one line of JSON, which is also returned.

    Raises:
        RemoteError: changes came too late, or idle edges took too much; the JSON was printed.
        TransportError: an edge never heard of a change, or a part could not be started.
    """
    rows = list[Row]()
    idle_bytes_s = None
    with tempfile.TemporaryDirectory(prefix="preread-push-") as scratch:
        async with _site(options, Path(scratch)) as site:
            situations: list[tuple[str, int, Callable[[], Awaitable[list[float]]]]] = [
                ("connected", options.changes, site.connected),
                ("cut by the change itself", options.rounds, lambda: site.behind((Reset(0),), 0.1)),
                ("cut and refused, 10 s", options.rounds, lambda: site.behind((Reset(0), Refuse()), 10.0)),
                ("silent, 20 s", options.rounds, lambda: site.behind((Blackout(),), 20.0)),
                ("silent, 60 s", options.rounds, lambda: site.behind((Blackout(),), 60.0)),
                ("cloud killed, back at once", options.rounds, lambda: site.killed(0.0)),
                ("cloud killed, back after 15 s", options.rounds, lambda: site.killed(15.0)),
            ]
            if options.idle_s:
                idle_bytes_s = await site.idle(options.idle_s)
            for what, times, situation in situations:
                taken_s = [taken for _ in range(times) for taken in await situation()]
                if taken_s:
                    rows.append(_row(what, times, taken_s))
                    console.print(f"{what}: {rows[-1].median_s:.2f} s", style="dim")
    return tell(options, rows, idle_bytes_s, console)


def _row(what: str, changes: int, taken_s: list[float]) -> Row:
    in_order = sorted(taken_s)
    return Row(what, changes, statistics.median(in_order), in_order[int(0.9 * (len(in_order) - 1))], in_order[-1])


def tell(options: Options, rows: Sequence[Row], idle_bytes_s: float | None, console: Console) -> Told:
    """Print a table and one line of JSON, which is also returned.

    Raises:
        RemoteError: changes came too late to edges that were connected, or an idle edge took too much.
    """
    table = Table(title=f"{options.edges} edges: seconds until a change is known")
    for name in ("situation", "changes", "median", "9 of 10", "all"):
        table.add_column(name, justify="left" if name == "situation" else "right")
    for row in rows:
        table.add_row(row.what, str(row.changes), f"{row.median_s:.2f}", f"{row.p90_s:.2f}", f"{row.worst_s:.2f}")
    console.print(table)
    told: Told = {"bench": "push", **asdict(options), "rows": [asdict(row) for row in rows]}
    failings = [row.what for row in rows if row.what == "connected" and row.median_s > _MEDIAN_S]
    if idle_bytes_s is not None:
        month = idle_bytes_s * MONTH_S
        whole = month + MONTH_S / SILENCE_S * _WORDS_HEADERS_BYTES
        console.print(
            f"an idle edge: {month / 1e6:.2f} MB in 30 days, {whole / 1e6:.1f} MB with headers of TCP and IPv6"
        )
        told |= {"idle_month_bytes": round(month), "idle_month_bytes_with_headers": round(whole)}
        failings += ["idle"] if whole > MONTH_BYTES else []
    print(json.dumps(told | {"machine": asdict(machine())}), flush=True)
    if failings:
        raise RemoteError(f"too late or too much: {', '.join(failings)}")
    return told


def _serve(store: str, port: str, *files: str) -> None:
    import uvicorn

    from preread.cloud.app import create_app
    from preread.store.objects import open_store
    from preread.testing.cloud import RandomPublisher

    objects = open_store(store)
    secured: dict[str, Any] = {"ssl_certfile": files[0], "ssl_keyfile": files[1]} if files else {}
    app = create_app(objects, RandomPublisher(objects))
    loop.run(uvicorn.Server(uvicorn.Config(app, port=int(port), log_level="error", **secured)).serve())


if __name__ == "__main__":
    _serve(*sys.argv[1:])
