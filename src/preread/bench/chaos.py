"""Requests under random faults: is every answer right, and does it come in time?

A cloud, a fault proxy and an edge, each a process of its own; a schedule of faults (`faults.py`); and an engine of
this process that says what is right (`reference.py`). Each answer of temperature 0 over the lossless rung is compared
with it, letter by letter. A request is late when it takes more than 1.5 × what computing it here takes, and 0.5 s.

What is not counted against the edge: the time that it is stopped itself (`edge-sleep`); a request that is cut off by a
kill of the edge, as long as the client's second try, after the restart, is answered; an answer about the text that a
name had before, shortly after it was replaced ("stale" counts them).
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import httpx2
from rich.console import Console

from preread.bench.faults import QUESTIONS, Document, Turn, schedule, standing
from preread.bench.processes import Server
from preread.bench.reference import TOP, Reference, asked, body, referring
from preread.cloud import client
from preread.edge.machine import machine
from preread.errors import TransportError
from preread.testing.proxy import Link, ProxyProcess
from preread.testing.tiny import NAME as TINY
from preread.testing.tiny import write_tiny

Report = Callable[[str, int, int | None], None]
Verdict = Literal["ok", "wrong", "error", "late"]
_PATIENCE_S: Final = 60.0
_SETTLE_S: Final = 60.0
_PACE_TURNS: Final = 20


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        model: GGUF file; with `name` "tiny", the one whose tokenizer the model of random weights gets.
        name: what the model is called.
        requests, seed: of the schedule.
        context_tokens: fewest and most tokens of a context, more or less.
        answer_tokens: tokens of each answer.
        shelf_mib: the edge's memory for contexts that are not in use; with much of it, few are loaded.
        only: play this turn alone.
        start: begin with this turn.
    """

    model: Path
    name: str
    requests: int
    seed: int
    context_tokens: tuple[int, int] = (64, 400)
    answer_tokens: int = 4
    shelf_mib: int = 1
    only: int | None = None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went; times in seconds, `local_s` is what computing the answer here takes."""

    index: int
    fault: str
    verdict: Verdict
    seconds: float
    local_s: float
    way: str = ""
    reason: str = ""
    stale: bool = False
    tries: int = 1


@dataclass(slots=True)
class Tally:
    """What a run has counted."""

    outcomes: Counter[Verdict] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    retried: int = 0
    forgotten: int = 0

    def take(self, outcome: Outcome) -> None:
        """Count one."""
        self.outcomes[outcome.verdict] += 1
        self.ways[outcome.way or "none"] += 1
        self.stale += outcome.stale
        self.retried += outcome.tries > 1

    def summary(self) -> dict[str, object]:
        """The bench's last line."""
        requests = self.outcomes.total()
        return {
            "bench": "chaos",
            "requests": requests,
            "wrong": self.outcomes["wrong"],
            "errors": self.outcomes["error"],
            "late": self.outcomes["late"],
            "ok_fraction": round(self.outcomes["ok"] / requests, 6) if requests else 0.0,
            "faults": dict(sorted(self.faults.items())),
            "ways": dict(sorted(self.ways.items())),
            "stale": self.stale,
            "retried": self.retried,
            "forgotten": self.forgotten,
        }


@dataclass(frozen=True, slots=True)
class _Said:
    """What came back for a request."""

    seconds: float
    text: str | None
    tokens: tuple[str, ...] = ()
    prompt_tokens: int = 0
    timings: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Play the schedule, print each request that went badly, and last one line of JSON, which is also returned.

    Raises:
        PrereadError: a part could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="preread-chaos-") as scratch:
        async with AsyncExitStack() as stack:
            stage = await _stage(options, Path(scratch), stack, console)
            turns = schedule(options.seed, options.requests, *options.context_tokens)
            first = options.start if options.only is None else options.only
            turn = standing(turns, first) if first else next(turns)
            count = 1 if options.only is not None else options.requests - first
            began = time.monotonic()
            for done in range(count):
                outcome = await stage.play(turn)
                if outcome.verdict != "ok":
                    console.print(_told(outcome, options), style="bold red", markup=False, highlight=False)
                report("requests", done + 1, count)
                if done + 1 < count:
                    turn = next(turns)
            seconds = time.monotonic() - began
    result = stage.tally.summary() | {
        "model": options.name, "seed": options.seed, "seconds": round(seconds, 1), "machine": asdict(machine())
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


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
    flags = ["--rung", "lossless", "--cache-ram", str(options.shelf_mib), "--sync-s", "0.5"]
    edge = Server(["edge", *common, "--cloud", proxy.url, *flags], scratch / "edge-cache", options.model.parent)
    stack.callback(edge.kill)
    console.print(f"starting a cloud and an edge with {options.name} …", style="dim")
    await cloud.ready()
    edge.start()
    reference = await stack.enter_async_context(
        referring(model, options.name, cloud.url, scratch / "reference", window, threads, options.answer_tokens)
    )
    http = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=_PATIENCE_S))
    await edge.ready()
    return _Stage(cloud, edge, proxy, reference, http, options.answer_tokens)


def _told(outcome: Outcome, options: Options) -> str:
    return (
        f"request {outcome.index} {outcome.verdict}: fault {outcome.fault}, {outcome.seconds:.2f} s "
        f"(local {outcome.local_s:.2f} s), {outcome.way or 'no answer'}; {outcome.reason}; "
        f"again: --seed {options.seed} --only {outcome.index}"
    )


class _Stage:
    """The parts of a run, and what happens to them."""

    def __init__(
        self,
        cloud: Server,
        edge: Server,
        proxy: ProxyProcess,
        reference: Reference,
        http: httpx2.AsyncClient,
        answer_tokens: int,
    ) -> None:
        self._cloud, self._edge, self._proxy = cloud, edge, proxy
        self._reference, self._http, self._answer_tokens = reference, http, answer_tokens
        self._published: dict[str, Document] = {}
        self._slept_s = 0.0
        self.tally = Tally()

    async def play(self, turn: Turn) -> Outcome:
        """One request, with what happens before and meanwhile, and its outcome."""
        if turn.publish or turn.remove:
            await self._change(turn)
        if turn.index % _PACE_TURNS == 0:
            await self._reference.pace(turn.document)
        if turn.fresh:
            self.tally.faults[turn.episode.kind] += 1
            if not turn.after_s:
                await self._set_in(turn)
        self._slept_s = 0.0
        asking = asyncio.create_task(self._ask(turn))
        await self._meanwhile(turn, asking)
        said, tries = await asking, 1
        if not self._edge.runs:
            await self._restart_edge()
            if said.text is None:
                said, tries = await self._ask(turn), 2
        outcome = await self._judge(turn, said, tries)
        if turn.last:
            await self._clear(turn)
        if turn.replaces is not None:
            await self._learn(turn.replaces)
        self.tally.take(outcome)
        return outcome

    async def _ask(self, turn: Turn) -> _Said:
        request = {**asked(turn.document, turn.question), "temperature": 0, "max_tokens": self._answer_tokens}
        request |= {"logprobs": True, "top_logprobs": TOP}
        started = time.monotonic()
        try:
            answer = await self._http.post(f"{self._edge.url}/v1/chat/completions", json=request)
        except httpx2.TimeoutException:
            # It is stuck: where, it says at its end, and then it is started again.
            stuck = "\n".join(await self._edge.abort())
            await self._restart_edge()
            return _Said(_PATIENCE_S, None, failure=f"nothing within {_PATIENCE_S:g} s\n{stuck}\n")
        except httpx2.HTTPError as error:
            return _Said(time.monotonic() - started, None, failure=f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started - self._slept_s
        if answer.status_code != 200:
            return _Said(seconds, None, failure=f"{answer.status_code}: {answer.text}")
        said = answer.json()
        choice, timings = said["choices"][0], said.get("timings", {})
        tokens = tuple(one["token"] for one in choice["logprobs"]["content"])
        return _Said(seconds, choice["message"]["content"], tokens, said["usage"]["prompt_tokens"], timings)

    async def _judge(self, turn: Turn, said: _Said, tries: int) -> Outcome:
        way, reason = str(said.timings.get("way", "")), said.failure or str(said.timings.get("reason") or "")
        tokens = said.prompt_tokens or turn.document.tokens
        right, local_s = self._reference.right(turn.document.name, turn.question), self._reference.local_s(tokens)
        verdict: Verdict = "ok"
        if said.text is None:
            verdict = "error"
        elif not (versions := {version for version, one in right.items() if one.agrees(said.text, said.tokens)}):
            texts = {version: one.text for version, one in right.items()}
            verdict, reason = "wrong", f"said {said.text!r}, right is {texts}; {reason}"
        elif said.seconds > _bound_s(local_s):
            # Perhaps the machine is slower just now: what does the same take here at once?
            await self._reference.pace(self._published[turn.document.name])
            local_s = max(local_s, self._reference.last_pace_s * tokens)
            verdict = "late" if said.seconds > _bound_s(local_s) else "ok"
        stale = said.text is not None and verdict != "wrong" and turn.document.version not in versions
        return Outcome(turn.index, turn.episode.kind, verdict, said.seconds, local_s, way, reason, stale, tries)

    async def _meanwhile(self, turn: Turn, asking: asyncio.Task[_Said]) -> None:
        """What happens while the request is under way; or then, if it is answered sooner."""
        await asyncio.wait([asking], timeout=turn.after_s)
        kind = turn.episode.kind
        if turn.fresh and turn.after_s:
            await self._set_in(turn)
        if kind in ("cloud-sleep", "edge-sleep") and turn.fresh:
            server = self._cloud if kind == "cloud-sleep" else self._edge
            server.stop()
            if server is self._edge and not asking.done():
                self._slept_s = turn.episode.sleep_s
            await asyncio.sleep(turn.episode.sleep_s)
            server.wake()
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

    async def _restart_edge(self) -> None:
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
        return int((await self._http.get(f"{self._edge.url}/health")).json()["contexts"])


def _bound_s(local_s: float) -> float:
    return 1.5 * local_s + 0.5
