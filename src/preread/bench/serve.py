"""An edge under load, and other servers beside it: requests and tokens a second, and how long users wait.

A cloud, an emulated link and an edge, each a process of its own, and a client of OpenAI's API in this one. Documents
are asked about as often as Zipf's law says (s = 1), each time with another question; all systems are asked the same, in
the same order. Users ask again as soon as they are answered (closed loop), or requests come as a Poisson process does,
whatever happened to those before (open loop).

Only one system has load at a time: each state is measured in blocks that alternate between the systems, beginning with
another one each time, so that whatever disturbs the machine disturbs all of them. A block ends with its last answer:
its time holds a beginning and an end at which fewer requests are under way, and queues do not outlast it. Before
another system's turn the edge has time to finish what it is loading. States:

- cold: nothing was asked since the start. The edge has names, token ids and manifests of what is published, and no KV.
  A peer that is given by its address is taken as it is found: it was perhaps asked before. Contexts are asked about
  again, as Zipf's law has it, so that a cold start is what is measured, and not only first questions.
- warm: every context was asked about before, by one request each, the most popular ones last.
- cut: as cold, but the edge started when nothing passed the link any more, so that it computes what it needs. Peers are
  started anew where a command does that; others have no such row, and the one from when they were cold counts.
"""

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from preread.bench import plot
from preread.bench.corpus import draw
from preread.bench.deployment import Report, Setting, window_tokens
from preread.bench.load import (
    OURS,
    STATES,
    Answer,
    Block,
    State,
    arrivals_s,
    doubts,
    ratios,
    rotated,
    split,
    summed,
    table,
    zipf,
)
from preread.bench.peers import Beside
from preread.bench.systems import System, http, started
from preread.edge.machine import machine
from preread.errors import PrereadError, RemoteError, TransportError, UsageError

_TOLD_FAILURES: Final = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        setting, beside: what is set up, and what stands beside it.
        states: which of them.
        users: in a closed loop; None: requests come at `rate` a second.
        rates: further loads in the warm state, requests a second; `plot` draws them.
        requests: to each system, in each state and at each of `rates`.
        blocks: in which these are sent.
        contexts: documents; prompt_tokens, answer_tokens: of each request.
        peer_kv_mb: what peers have for KV cache, to be told.
        seed: of what is asked when.
    """

    setting: Setting
    beside: Beside = field(default_factory=Beside)
    states: tuple[State, ...] = STATES
    users: int | None = 8
    rate: float | None = None
    rates: tuple[float, ...] = ()
    requests: int = 100
    blocks: int = 4
    contexts: int = 20
    prompt_tokens: int = 25
    answer_tokens: int = 32
    peer_kv_mb: float | None = None
    plot: Path | None = None
    seed: int = 0

    @property
    def window_tokens(self) -> int:
        """KV cache that one request takes, at least."""
        return window_tokens(self.setting.context_tokens + self.prompt_tokens + self.answer_tokens)


@dataclass(frozen=True, slots=True)
class Phase:
    """So many requests in one state under one load, the same to every system; `first` is the number of its first."""

    state: State
    users: int | None
    rate: float | None
    first: int


def phases(options: Options) -> list[Phase]:
    """What is measured, in this order: the states, and after the warm one all further rates in it."""
    loads: list[tuple[State, int | None, float | None]] = []
    for state in STATES:
        if state in options.states:
            loads.append((state, options.users, options.rate))
        if state == "warm":
            loads += [(state, None, rate) for rate in options.rates]
    return [Phase(*load, number * options.requests) for number, load in enumerate(loads)]


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Publish, measure, print a table and last one line of JSON, which is also returned.

    Raises:
        UsageError: the documents cannot be made, or an option makes no sense.
        RemoteError: a request failed; the table and the JSON were printed.
        PrereadError: a part could not be started.
    """
    if options.plot is not None:
        plot.check(options.plot)
    if options.plot is not None and not options.rates:
        raise UsageError("--plot draws latency against rates: say which with --rates 0.5,1,2")
    order = phases(options)
    corpus = draw(
        options.setting.model, options.seed, options.contexts, options.setting.context_tokens,
        options.requests * len(order) + options.contexts, options.prompt_tokens,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="preread-serve-") as scratch:
        window = options.window_tokens
        async with started(options.setting, options.beside, corpus, window, Path(scratch), report) as systems:
            blocks = await _measured(options, order, systems, console)
            kv_memory_mb = await _kv_memory_mb(options, systems)
    return tell(options, blocks, kv_memory_mb, console)


async def _measured(
    options: Options, order: Sequence[Phase], systems: Sequence[System], console: Console
) -> list[Block]:
    found, was = list[Block](), ""
    for phase in order:
        able = [system for system in systems if phase.state != "cut" or system.runs.restarts]
        if phase.state != was:
            await _into(phase.state, was, able, options)
            was = phase.state
        chance = random.Random(f"{options.seed}/{phase.first}")
        documents = zipf(chance, options.requests, options.contexts)
        for turn, numbers in enumerate(split(options.requests, options.blocks)):
            times_s = None if phase.rate is None else arrivals_s(chance, len(numbers), phase.rate)
            for place in rotated(len(able), turn):
                found.append(await block(able[place], phase, documents, numbers, times_s, options))
                console.print(_line(found[-1]), style="dim")
                await able[place].runs.settle()
    return found


async def _into(state: State, was: str, systems: Sequence[System], options: Options) -> None:
    """Bring systems into a state."""
    if state != "warm" or not was:
        for system in systems:
            await system.runs.fresh(cut=state == "cut")
    if state == "warm":
        for system in systems:
            async with http() as client:
                for document in reversed(range(options.contexts)):
                    question = system.corpus.questions[-1 - document]
                    await system.ask(client, document, [{"role": "user", "content": question}], 1)
            await system.runs.settle()


async def block(
    system: System,
    phase: Phase,
    documents: Sequence[int],
    numbers: Sequence[int],
    times_s: Sequence[float] | None,
    options: Options,
) -> Block:
    """Send these requests of a phase to a system: by users one after the other, or at these times."""
    answers, failures = list[Answer](), list[str]()
    async with http() as client:

        async def one(number: int) -> None:
            asked = [{"role": "user", "content": system.corpus.questions[phase.first + number]}]
            try:
                answers.append((await system.ask(client, documents[number], asked, options.answer_tokens)).seen)
            except PrereadError as error:
                failures.append(str(error))

        started_s = time.monotonic()
        await (_closed(one, numbers, phase.users or 1) if times_s is None else _open(one, numbers, times_s))
        seconds = time.monotonic() - started_s
    return Block(system.name, phase.state, phase.users, phase.rate, seconds, tuple(answers), tuple(failures))


async def _closed(one: Callable[[int], Awaitable[None]], numbers: Sequence[int], users: int) -> None:
    waiting = iter(numbers)

    async def user() -> None:
        for number in waiting:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(user())


async def _open(one: Callable[[int], Awaitable[None]], numbers: Sequence[int], times_s: Sequence[float]) -> None:
    started_s = time.monotonic()
    async with asyncio.TaskGroup() as group:

        async def later(number: int, at_s: float) -> None:
            await asyncio.sleep(started_s + at_s - time.monotonic())
            await one(number)

        for number, at_s in zip(numbers, times_s, strict=True):
            group.create_task(later(number, at_s))


async def _kv_memory_mb(options: Options, systems: Sequence[System]) -> dict[str, float | None]:
    """What each has for KV cache: as an edge says itself, or else as the bench was told."""
    found = {system.name: options.peer_kv_mb for system in systems}
    told = None
    with suppress(TransportError):  # it is gone, which its failures tell of
        told = await systems[0].kv_memory_bytes()
    known = options.setting.kv_memory_bytes if told is None else told
    return found | {OURS: None if known is None else round(known / 1e6, 3)}


def _line(block: Block) -> str:
    rate = len(block.answers) / block.seconds if block.seconds > 0 else 0.0
    failed = f", {len(block.failures)} failed" if block.failures else ""
    return f"{block.system} {block.state}: {len(block.answers)} answers in {block.seconds:.1f} s, {rate:.2f}/s{failed}"


def tell(
    options: Options, blocks: Sequence[Block], kv_memory_mb: dict[str, float | None], console: Console
) -> dict[str, object]:
    """Print what was measured; last one line of JSON, which is also returned.

    Raises:
        RemoteError: a request had failed.
        UsageError: the picture cannot be written.
    """
    at, rows = options.setting, summed(blocks, kv_memory_mb)
    title = (
        f"{at.name}: {options.contexts} contexts of {at.context_tokens} tokens, answers of {options.answer_tokens}, "
        f"{at.mbps:g} Mbit/s, {at.rtt_ms:g} ms"
    )
    caption = f"{options.requests} requests to each in each state, in {options.blocks} blocks that alternate"
    console.print(table(rows, title, caption))
    for doubt in doubts(rows, options.answer_tokens):
        console.print(doubt, markup=False, highlight=False)
    if options.plot is not None:
        plot.draw_load([row for row in rows if row.state == "warm" and row.rate is not None], title, options.plot)
    failures = [(block, failure) for block in blocks for failure in block.failures]
    for block, failure in failures[:_TOLD_FAILURES]:
        console.print(f"{block.system} {block.state}: {failure}", style="bold red", markup=False, highlight=False)
    asked: dict[str, Any] = {
        "contexts": options.contexts, "context_tokens": at.context_tokens, "answer_tokens": options.answer_tokens,
        "requests": options.requests, "mbps": at.mbps, "rtt_ms": at.rtt_ms, "seed": options.seed,
    }  # fmt: skip
    result: dict[str, object] = {
        "bench": "serve", "model": at.name, **asked, "rows": [asdict(row) for row in rows],
        "throughput_ratio": ratios(rows, options.users, options.rate), "failed": len(failures),
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    if failures:
        block, failure = failures[0]
        raise RemoteError(
            f"{len(failures)} requests were not answered, the first by {block.system} ({block.state}): {failure}"
        )
    return result
