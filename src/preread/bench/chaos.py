"""Requests under random faults: is every answer right, and does it come in time?

A cloud, a fault proxy and an edge, each a process of its own; a schedule of faults (`faults.py`), whose turns are each
played by as many clients as there are, at once (`crowd.py`); and an engine of this process that says what is right
(`reference.py`), and computes only while no request is under way. Each answer of temperature 0 over the lossless rung
is compared with it, letter by letter; another one is right too, and "forked", from a token on that is as likely as the
right one within what rounding decides with this model. A request is late when it takes more than 1.5 × what computing
all requests of its turn one after another takes here, and 0.5 s (`verdicts.py`): with one client, what that request
alone takes.

What is not counted against the edge: the time that it is stopped itself (`edge-sleep`); a request that is cut off by a
kill of the edge, as long as the client's second try, after the restart, is answered; an answer about the text that a
name had before, shortly after it was replaced ("stale" counts them).

Each client has an address of its own, where the system lets it (on Linux all of 127.0.0.0/8 is this machine): an edge
tells callers apart by it, and lets one that asks much at once wait.
"""

import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path
from typing import Final

import httpx2
from rich.console import Console

from preread.bench import crowd
from preread.bench.crowd import Query
from preread.bench.faults import QUESTIONS, Document, Turn, schedule, standing
from preread.bench.processes import Server
from preread.bench.reference import TOP, Reference, asked, body, referring
from preread.bench.verdicts import Outcome, Said, Tally, awake_s, judged, prompt_tokens
from preread.cloud import client
from preread.edge.machine import machine
from preread.errors import TransportError
from preread.testing.proxy import Link, ProxyProcess
from preread.testing.tiny import NAME as TINY
from preread.testing.tiny import write_tiny

Report = Callable[[str, int, int | None], None]
_PATIENCE_S: Final = 60.0
_SETTLE_S: Final = 60.0
_PACE_TURNS: Final = 20
_HOME: Final = IPv4Address("127.0.0.1")
_AWAKE: Final = (math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        model: GGUF file; with `name` "tiny", the one whose tokenizer the model of random weights gets.
        name: what the model is called.
        requests: of all clients together.
        seed: of the schedule.
        context_tokens: fewest and most tokens of a context, more or less.
        answer_tokens: tokens of each answer.
        offload_mib: the edge's memory for contexts that are not in use; with much of it, few are loaded.
        only: play this turn alone.
        start: begin with this turn.
        clients: so many ask at once, in each turn.
    """

    model: Path
    name: str
    requests: int
    seed: int
    context_tokens: tuple[int, int] = (64, 400)
    answer_tokens: int = 4
    offload_mib: int = 1
    only: int | None = None
    start: int = 0
    clients: int = 1


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Play the schedule, print each request that went badly, and last one line of JSON, which is also returned.

    Raises:
        PrereadError: a part could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="preread-chaos-") as scratch:
        async with AsyncExitStack() as stack:
            stage = await _stage(options, Path(scratch), stack, console)
            sizes, done, began = _sizes(options), 0, time.monotonic()
            for size, turn in zip(sizes, _turns(options), strict=False):
                for outcome in await stage.play(turn, size):
                    if outcome.verdict != "ok":
                        console.print(_told(outcome, options), style="bold red", markup=False, highlight=False)
                done += size
                report("requests", done, sum(sizes))
            seconds = time.monotonic() - began
    result = stage.tally.summary() | {
        "rounding_nats": round(stage.rounding_nats, 3), "model": options.name, "seed": options.seed,
        "clients": options.clients, "seconds": round(seconds, 1),
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


def _turns(options: Options) -> Iterator[Turn]:
    """The turns from the one on that is played first."""
    turns = schedule(options.seed, crowd.turns(options.requests, options.clients), *options.context_tokens)
    first = _first(options)
    return chain([standing(turns, first)], turns) if first else turns


def _sizes(options: Options) -> list[int]:
    """How many requests each turn has that is played."""
    first, requests, clients = _first(options), options.requests, options.clients
    end = crowd.turns(requests, clients) if options.only is None else first + 1
    return [crowd.size(index, requests, clients) for index in range(first, end)]


def _first(options: Options) -> int:
    return options.start if options.only is None else options.only


async def _stage(options: Options, scratch: Path, stack: AsyncExitStack, console: Console) -> "_Stage":
    """Start everything; all of it ends with `stack`."""
    model, window = options.model, (options.context_tokens[1] * 2 + 767) // 256 * 256
    if options.name == TINY:
        model = write_tiny(scratch / f"{TINY}.gguf", model)
    # One thread is enough for it, and bears better that its core is shared with the cloud and the link.
    threads = 1 if options.name == TINY else 0
    common = ["--model", str(model), "-c", str(window), "--threads", str(threads)]
    store = str(scratch / "store")
    cloud = Server(
        ["--log-level", "error", "cloud", *common, "--store", store, "--rungs", "lossless"],
        scratch / "cloud-cache", options.model.parent, nice=5,
    )  # fmt: skip
    stack.callback(cloud.kill)
    cloud.start()
    proxy = stack.enter_context(ProxyProcess(cloud.port))
    # Of the least memory for KV, so that contexts make room for each other, and come again.
    memory = ["--kv-memory", "1", "--cache-ram", str(options.offload_mib)]
    flags = ["--rung", "lossless", "--sync-s", "0.5", *memory]
    edge = Server(["edge", *common, "--cloud", proxy.url, *flags], scratch / "edge-cache", options.model.parent)
    stack.callback(edge.kill)
    console.print(f"starting a cloud and an edge with {options.name} …", style="dim")
    await cloud.ready()
    edge.start()
    reference = await stack.enter_async_context(
        referring(model, options.name, cloud.url, scratch / "reference", window, threads, options.answer_tokens)
    )
    callers = [await stack.enter_async_context(_caller(number)) for number in range(options.clients)]
    await edge.ready()
    return _Stage(options, cloud, edge, proxy, reference, callers)


def _caller(number: int) -> httpx2.AsyncClient:
    """A client that the edge tells apart from others, where one machine has many addresses."""
    address = str(_HOME + number) if sys.platform == "linux" else None
    transport = httpx2.AsyncHTTPTransport(local_address=address, trust_env=False)
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=_PATIENCE_S)


def _told(outcome: Outcome, options: Options) -> str:
    return (
        f"turn {outcome.index}, client {outcome.client} {outcome.verdict}: fault {outcome.fault}, "
        f"{outcome.seconds:.2f} s (local {outcome.local_s:.2f} s), {outcome.way or 'no answer'}; {outcome.reason}; "
        f"again: --requests {options.requests} --clients {options.clients} --seed {options.seed} --only {outcome.index}"
    )


class _Stage:
    """The parts of a run, and what happens to them."""

    def __init__(
        self,
        options: Options,
        cloud: Server,
        edge: Server,
        proxy: ProxyProcess,
        reference: Reference,
        callers: Sequence[httpx2.AsyncClient],
    ) -> None:
        self._options, self._cloud, self._edge, self._proxy = options, cloud, edge, proxy
        self._reference, self._callers = reference, callers
        self._published: dict[str, Document] = {}
        self._asleep = _AWAKE
        self._aborting = asyncio.Lock()
        self.tally = Tally()

    @property
    def rounding_nats(self) -> float:
        """What rounding may decide with this model."""
        return self._reference.rounding_nats

    async def play(self, turn: Turn, clients: int) -> list[Outcome]:
        """One turn: what happens before, its requests, what happens meanwhile, and how each of them went."""
        if turn.publish or turn.remove:
            await self._change(turn)
        if turn.index % _PACE_TURNS == 0:
            await self._reference.pace(turn.document)
        if turn.fresh:
            self.tally.faults[turn.episode.kind] += 1
            if not turn.after_s:
                await self._set_in(turn)
        self._asleep = _AWAKE
        queries = crowd.queries(self._options.seed, turn, self._published.values(), clients)
        asking = [asyncio.create_task(self._ask(query)) for query in queries]
        await self._meanwhile(turn, asking[0])
        said = await asyncio.gather(*asking)
        await self._edge_up()
        if turn.episode.kind == "edge-kill":
            said = await asyncio.gather(*map(self._again, queries, said))
            await self._edge_up()
        if turn.replaces is not None:  # who began late may have been told of it
            await self._learn(turn.replaces)
        outcomes = await self._judge(turn, queries, said)
        if turn.last:
            await self._clear(turn)
        for outcome in outcomes:
            self.tally.take(outcome)
        return outcomes

    async def _ask(self, query: Query) -> Said:
        await asyncio.sleep(query.after_s)
        version = self._published[query.document.name].version
        request = {**asked(query.document, query.question), "temperature": 0, "logprobs": True, "top_logprobs": TOP}
        request |= {"max_tokens": self._options.answer_tokens}
        began = time.monotonic()
        try:
            answer = await self._callers[query.client].post(f"{self._edge.url}/v1/chat/completions", json=request)
        except httpx2.TimeoutException:
            return Said(version, _PATIENCE_S, failure=f"nothing within {_PATIENCE_S:g} s\n{await self._stuck()}\n")
        except httpx2.HTTPError as error:
            return Said(version, time.monotonic() - began, failure=f"{type(error).__name__}: {error}")
        seconds = awake_s(began, time.monotonic(), self._asleep)
        if answer.status_code != 200:
            return Said(version, seconds, failure=f"{answer.status_code}: {answer.text}")
        told = answer.json()
        choice, timings = told["choices"][0], told.get("timings", {})
        tokens = tuple(one["token"] for one in choice["logprobs"]["content"])
        return Said(version, seconds, choice["message"]["content"], tokens, told["usage"]["prompt_tokens"], timings)

    async def _again(self, query: Query, said: Said) -> Said:
        """The second try of who was cut off by a kill."""
        if said.text is not None:
            return said
        return replace(await self._ask(replace(query, after_s=0.0)), tries=2)

    async def _stuck(self) -> str:
        """End an edge that does not answer, once, whoever waits: where it is stuck, it says at its end."""
        async with self._aborting:
            return "\n".join(await self._edge.abort()) if self._edge.runs else "it was ended for another request"

    async def _judge(self, turn: Turn, queries: Sequence[Query], said: Sequence[Said]) -> list[Outcome]:
        tokens = prompt_tokens(queries, said)
        local_s = self._reference.local_s(tokens)
        outcomes = self._judged(turn, queries, said, local_s)
        if all(outcome.verdict != "late" for outcome in outcomes):
            return outcomes
        # Perhaps the machine is slower just now: what does the same take here at once?
        await self._reference.pace(self._published[turn.document.name])
        return self._judged(turn, queries, said, max(local_s, self._reference.last_pace_s * tokens))

    def _judged(self, turn: Turn, queries: Sequence[Query], said: Sequence[Said], local_s: float) -> list[Outcome]:
        right = [self._reference.right(query.document.name, query.question) for query in queries]
        return [judged(turn, *one, local_s, self.rounding_nats) for one in zip(queries, said, right, strict=True)]

    async def _meanwhile(self, turn: Turn, asking: asyncio.Task[Said]) -> None:
        """What happens while the turn's own request is under way; or then, if it is answered sooner."""
        await asyncio.wait([asking], timeout=turn.after_s)
        kind = turn.episode.kind
        if turn.fresh and turn.after_s:
            await self._set_in(turn)
        if kind in ("cloud-sleep", "edge-sleep") and turn.fresh:
            server = self._cloud if kind == "cloud-sleep" else self._edge
            began = time.monotonic()
            server.stop()
            if server is self._edge:
                self._asleep = began, math.inf
            await asyncio.sleep(turn.episode.sleep_s)
            server.wake()
            if server is self._edge:
                self._asleep = began, time.monotonic()
        elif kind == "edge-kill":
            self._edge.kill()
        if turn.replaces is not None:
            await self._publish(turn.replaces)

    async def _set_in(self, turn: Turn) -> None:
        episode = turn.episode
        await asyncio.to_thread(self._proxy.set_link, episode.link)
        await asyncio.to_thread(self._proxy.set_faults, episode.faults)
        if episode.kind == "cloud-kill":
            self._cloud.kill()
        if episode.kind == "disk-full":
            self._edge.fill_disk(True)
        if turn.replaces is not None:
            await self._cloud_up()

    async def _clear(self, turn: Turn) -> None:
        await asyncio.to_thread(self._proxy.set_faults, ())
        if turn.episode.kind == "cloud-kill":
            self._cloud.start()  # it is back when it is back
        if turn.episode.kind == "disk-full":
            self._edge.fill_disk(False)

    async def _change(self, turn: Turn) -> None:
        """Publish and remove while all is well, and wait until the edge has seen it."""
        await asyncio.to_thread(self._proxy.set_link, Link())
        await asyncio.to_thread(self._proxy.set_faults, ())
        await self._cloud_up()
        for name in turn.remove:
            await asyncio.to_thread(client.remove, self._cloud.url, name)
            del self._published[name]
        await self._seen()
        for document in turn.publish:
            await self._publish(document)
            await self._learn(document)
        await self._seen()

    async def _publish(self, document: Document) -> None:
        await self._cloud_up()
        events = client.publish(self._cloud.url, document.name, text=body(document), form="chat")
        await asyncio.to_thread(lambda: list(events))
        self._published[document.name] = document

    async def _learn(self, document: Document) -> None:
        await self._reference.learn(document, range(QUESTIONS))

    async def _cloud_up(self) -> None:
        if not self._cloud.runs:
            self._cloud.start()
        await self._cloud.ready()

    async def _edge_up(self) -> None:
        if self._edge.runs:
            return
        self._edge.start()
        await self._edge.ready()
        if await self._contexts() < len(self._published):
            # It was killed before it had kept them all, and must have the cloud to know them again.
            self.tally.forgotten += 1
            await asyncio.to_thread(self._proxy.set_link, Link())
            await asyncio.to_thread(self._proxy.set_faults, ())
            await self._cloud_up()
            await self._seen()

    async def _seen(self) -> None:
        """Wait until the edge knows as many contexts as are published.

        Raises:
            TransportError: it does not come to know them.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while await self._contexts() != len(self._published):
                    await asyncio.sleep(0.05)
                return
        raise TransportError(f"the edge does not see what the cloud has published: {' | '.join(self._edge.log[-5:])}")

    async def _contexts(self) -> int:
        return int((await self._callers[0].get(f"{self._edge.url}/health")).json()["contexts"])
