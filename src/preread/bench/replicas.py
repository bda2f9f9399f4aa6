"""Replicas on Ray that are killed at random while they publish: what is lost, what is made twice, and how fast it goes.

A cluster is started here. One document at a time is published first and at the end, so that one replica works: that is
one worker's rate. Between these, as many documents at a time as there are replicas, while `kill -9` takes one of them
every so often, wherever it is. Each tenth document is asked for twice at once, under two names. At last every name's
segments are read from the store and checked.

A chunk is made twice if two attempts say that they stored it; a document, if nobody who asked for it was told that it
was stored before.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from preread import limits
from preread.cloud.events import Progress, Published, Request
from preread.cloud.publish import Owner
from preread.cloud.ray.cluster import LOCAL, Replicas, Size, connected
from preread.cloud.ray.model import EngineModel
from preread.cloud.ray.publisher import ReplicaEnded, ReplicaPublisher
from preread.edge.machine import machine
from preread.store.objects import Objects, open_store
from preread.values import ObjectRef
from preread.wire import catalogue
from preread.wire import draft as drafts
from preread.wire import manifest as manifests
from preread.wire.catalogue import Entry

_TITLE: Final = b"ray::ServeReplica:"
_TWICE_IN: Final = 10
_SETTLED_S: Final = 15.0
_WORDS: Final = "lamp part valve page pump filter code week key red blue open close press turn clean check".split()


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        documents: published by all replicas together; `alone`: by one, before and again after.
        words: of each document.
        replicas: how many.
        kill_s: mean seconds between two kills; 0: nobody is killed.
    """

    documents: int
    alone: int
    words: int
    replicas: int
    kill_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        published, asked: names that are whole, and that were asked for.
        kills, ended: processes that were killed, and attempts that this ended.
        chunks, chunks_twice: that were told as stored; of these, by two attempts.
        documents_twice: that were read by two who asked at once.
        alone_s, together_s: seconds a document, of one replica and of all.
        gain: how many times one worker's rate.
    """

    asked: int
    published: int
    kills: int
    ended: int
    chunks: int
    chunks_twice: int
    documents_twice: int
    alone_s: float
    together_s: float
    gain: float


class _Watched:
    """Calls replicas, and counts what they say that they stored."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self.stored: Counter[tuple[bytes, int]] = Counter()
        self.ended = 0

    async def call(self, ask: bytes, owner: Owner) -> AsyncGenerator[Progress | Published, None]:
        told = self._replicas.make(ask, owner)
        content = ask.partition(b'"text"')[2]  # the name comes before it
        try:
            async for event in told:
                if isinstance(event, Progress) and event.stage == "encode":
                    self.stored[content, event.done] += 1
                yield event
        except ReplicaEnded:
            self.ended += 1
            raise
        finally:
            await told.aclose()


def bench(model: str, name: str, options: Options, folder: Path, console: Console) -> Result:
    """Publish, kill, check; print a table and one line of JSON."""
    store = open_store(str(folder))
    wanted = EngineModel(model, name, 2048, 1, ("lossless", "q8"))
    with connected(LOCAL):
        replicas = Replicas(name, wanted, str(folder), Size(options.replicas, options.replicas, 1.0))
        result = asyncio.run(_run(replicas, store, options))
    _show(name, options, result, console)
    return result


async def _run(replicas: Replicas, store: Objects, options: Options) -> Result:
    watched, source = _Watched(replicas), random.Random(options.seed)
    publisher = ReplicaPublisher(store, watched.call)
    texts = [_text(source, options.words) for _ in range(options.documents + 2 * options.alone)]
    names = {f"document {n}": text for n, text in enumerate(texts)}
    first, rest = list(names)[: options.alone], list(names)[options.alone :]
    many, last = rest[: options.documents], rest[options.documents :]
    told = dict[str, Published]()

    async def publish(name: str, text: str) -> None:
        told[name] = await publisher(Request(name, text, form="text"), lambda *_: None)

    async def some(chosen: Sequence[str], width: int, again: bool = False) -> float:
        """Seconds a document, so many at a time."""
        started, waiting, more = time.monotonic(), iter(chosen), list[asyncio.Task[None]]()

        async def work() -> None:
            for one in waiting:
                if again and int(one.rpartition(" ")[2]) % _TWICE_IN == 0:
                    more.append(asyncio.create_task(publish(f"{one} again", names[one])))
                await publish(one, names[one])

        await asyncio.gather(*[work() for _ in range(width)])
        await asyncio.gather(*more)
        return (time.monotonic() - started) / len(chosen)

    await asyncio.gather(*[publish(f"warm {n}", f"Replica {n} is warm. " * 20) for n in range(options.replicas)])
    alone = [await some(first, 1)]
    killer = _Killer(replicas.app.encode(), source, options.kill_s)
    killing = asyncio.create_task(killer.run())
    together_s = await some(many, options.replicas, again=True)
    killing.cancel()
    await asyncio.wait([killing])
    while len(processes(killer.title)) < options.replicas:  # who starts takes a core
        await asyncio.sleep(1)
    await asyncio.sleep(_SETTLED_S)
    alone.append(await some(last, 1))
    alone_s = sum(alone) / 2
    whole = [await is_whole(store, entry) for entry in await store.names()]
    both = [(told[one], told[other]) for one in names if (other := f"{one} again") in told]
    counts = watched.stored.values()
    return Result(
        asked=len(told),
        published=sum(whole),
        kills=killer.kills,
        ended=watched.ended,
        chunks=len(counts),
        chunks_twice=sum(count > 1 for count in counts),
        documents_twice=sum(not (one.notes or other.notes) for one, other in both),
        alone_s=alone_s,
        together_s=together_s,
        gain=alone_s / together_s,
    )


class _Killer:
    """Ends a replica's process every so often, whatever it does."""

    def __init__(self, app: bytes, source: random.Random, every_s: float) -> None:
        self.title = _TITLE + app + b":"
        self._source, self._every_s = source, every_s
        self.kills = 0

    async def run(self) -> None:
        while self._every_s:
            await asyncio.sleep(self._every_s * self._source.uniform(0.5, 1.5))
            if found := processes(self.title):
                with suppress(ProcessLookupError):
                    os.kill(self._source.choice(found), signal.SIGKILL)
                    self.kills += 1


def processes(title: bytes) -> list[int]:
    """Processes that Ray has given this title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(title):
                found.append(int(folder.name))
    return sorted(found)


async def is_whole(store: Objects, entry: Entry) -> bool:
    """Whether all that a name leads to is in the store, and is what it is called."""
    data = await store.keep(catalogue.manifest_ref(entry))
    if data is None:
        return False
    manifest = manifests.loads(data)
    cells = [cell for row in drafts.rows(manifest) for rung in row for cell in rung]
    refs = [ObjectRef("segments", cell.id, cell.size_bytes) for cell in cells]
    kept = [await store.keep(ref) for ref in [*refs, manifests.tokens_ref(manifest)]]
    return None not in kept


def _text(source: random.Random, words: int) -> str:
    return " ".join(source.choice(_WORDS) for _ in range(words))


def _show(name: str, options: Options, result: Result, console: Console) -> None:
    table = Table(title=f"{name}, {options.replicas} replicas of one thread, {limits.cpus()} cores")
    for heading in ("asked", "published", "killed", "tried again", "chunks", "twice", "s alone", "s together", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(
        str(result.asked),
        str(result.published),
        str(result.kills),
        str(result.ended),
        str(result.chunks),
        f"{result.chunks_twice}, {result.documents_twice}",
        f"{result.alone_s:.2f}",
        f"{result.together_s:.2f}",
        f"{result.gain:.2f}",
    )
    console.print(table)
    told = {"bench": "ray", "model": name, "options": asdict(options), "machine": asdict(machine()), **asdict(result)}
    print(json.dumps(told))
