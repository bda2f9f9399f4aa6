"""Many clouds on one bucket whose service fails: is anything ever half there, and is anything lost?

Writers are processes of their own. Between each and the service is a link that cuts connections, is slow, stops, and
answers 503. Each publishes and removes contexts of random KV, some of which share all their objects with those of
others, while another process deletes what nothing leads to, as fast as it can. Meanwhile this process reads the bucket
directly: whatever is published must be there whole, whenever it looks; what was acknowledged must be in the log.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from preread.cloud import events
from preread.errors import PrereadError, UsageError
from preread.store import upkeep
from preread.store.objects import Objects, open_store
from preread.testing.buckets import SERVICES, Service, served
from preread.testing.cloud import RandomPublisher
from preread.testing.proxy import Blackout, Fault, Link, Proxy, Reset, Slicer, Truncate

_NAMES: Final = 12
_TEXTS: Final = 5
_YOUNG_S: Final = 20.0
"""Publications here take less, so that most are not disturbed, and what is given up is soon deleted."""


@dataclass(slots=True)
class Found:
    """What was counted: what writers did, by outcome; times that all was looked at; and what was wrong."""

    done: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    most_names: int = 0
    wrong: list[str] = field(default_factory=list)


async def run(server: str, seconds: float, writers: int) -> Found:
    """Have writers at work for so long; what came of it.

    Raises:
        UsageError: there is no such service, or it is not installed.
    """
    if server not in SERVICES:
        raise UsageError(f"{server!r} is no service that is known here: choose one of {', '.join(SERVICES)}")
    service, found = SERVICES[server], Found()
    with served(service) as port:
        os.environ |= service.told(f"http://127.0.0.1:{port}")
        store = open_store(service.address)
        # one process writes where a service has no conditional writes; publications are beside each other in it
        roles = [*map(str, range(writers)), "gc"] if service.creates_once else [f"all{writers}"]
        await asyncio.gather(
            _look(store, found, time.monotonic() + seconds),
            *[_through_faults(port, service, role, seconds, found) for role in roles],
        )
        checked = await upkeep.check(open_store(service.address), lambda *_: None)
        found.wrong += checked.damage
    return found


async def _look(store: Objects, found: Found, until_s: float) -> None:
    """See again and again whether all that is published is there."""
    while time.monotonic() < until_s:
        try:
            await store.look()
            names = {entry.name: entry for entry in await store.names()}
            missing = await upkeep.check(store, lambda *_: None, quick=True)
            await store.look()
            after = {entry.name: entry for entry in await store.names()}
        except PrereadError as error:
            found.wrong.append(f"looking: {error}")
            continue
        still = {name for name, entry in names.items() if after.get(name) == entry}
        # what was removed or replaced while it was looked at may be gone
        found.wrong += [line for line in missing.damage if any(f"context {name!r}" in line for name in still)]
        found.looks += 1
        found.most_names = max(found.most_names, len(names))
        await asyncio.sleep(0.5)


async def _through_faults(port: int, service: Service, role: str, seconds: float, found: Found) -> None:
    """One process that writes through a link that fails."""
    async with Proxy(("127.0.0.1", port), Link(rtt_ms=2)) as proxy, _refusing(proxy.port) as refusing:
        failing = asyncio.create_task(_fail(proxy))
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "preread.bench.bucket", role, str(seconds), service.address],
            env=os.environ | service.told(f"http://127.0.0.1:{refusing}"),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        failing.cancel()
        await asyncio.wait([failing])
        lines = said.decode().splitlines()
        if process.returncode != 0 or not lines:
            found.wrong.append(f"writer {role} ended with {process.returncode}")
        else:
            found.done.update(json.loads(lines[-1]))


async def _fail(proxy: Proxy) -> None:
    """Break the link now and then, in another way each time."""
    luck = random.Random(proxy.port)
    faults: list[Fault] = [Reset(0), Reset(300), Truncate(200), Blackout(1.0), Slicer(400, 20.0)]
    while True:
        await asyncio.sleep(luck.uniform(1.0, 4.0))
        proxy.faults = (luck.choice(faults),)
        await asyncio.sleep(luck.uniform(0.1, 1.0))
        proxy.faults = ()


@asynccontextmanager
async def _refusing(port: int) -> AsyncGenerator[int, None]:
    """In front of a port: some connections are answered with 503, whatever is asked."""
    luck = random.Random(port)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            if luck.random() < 0.05:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
            else:
                there, back = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def write(role: str, seconds: float, address: str) -> Mapping[str, int]:
    """What one process does; how often each thing ended in which way."""
    store, done, until_s = open_store(address), Counter[str](), time.monotonic() + seconds
    async with store.held():
        if role == "gc":
            await _collect(store, done, until_s)
        elif role.startswith("all"):
            works = [_publish(store, f"{role}{number}", done, until_s) for number in range(int(role[3:]))]
            await asyncio.gather(*works, _collect(store, done, until_s))
        else:
            await _publish(store, role, done, until_s)
    return done


async def _collect(store: Objects, done: Counter[str], until_s: float) -> None:
    while time.monotonic() < until_s:
        try:
            done["objects deleted by gc"] += (await upkeep.collect(store, lambda *_: None, young_s=_YOUNG_S)).objects
            done["gc runs"] += 1
        except PrereadError:
            done["gc runs that failed"] += 1
        await asyncio.sleep(0.2)


async def _publish(store: Objects, role: str, done: Counter[str], until_s: float) -> None:
    luck, publisher = random.Random(role), RandomPublisher(store, rungs=("q4",))
    while time.monotonic() < until_s:
        name, text = f"name {luck.randrange(_NAMES)}", f"text {luck.randrange(_TEXTS)} of some length"
        what = luck.choice(["publish", "publish", "remove", "give up"])
        try:
            if what == "publish":
                entry = (await publisher(events.Request(name, text, form="text"), lambda *_: None)).entry
                await store.look()
                found = await store.entry(name)
                done["published" if found == entry else "published, and replaced or removed by another"] += 1
            elif what == "remove":
                done["removed" if await store.remove_name(name) else "nothing to remove"] += 1
            else:
                await store.put("segments", luck.randbytes(2000))
                done["given up"] += 1
        except PrereadError as error:
            done[f"refused: {type(error).__name__}"] += 1


if __name__ == "__main__":
    print(json.dumps(asyncio.run(write(sys.argv[1], float(sys.argv[2]), sys.argv[3]))))
