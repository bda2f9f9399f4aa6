"""Clients that are killed at random moments: nothing is computed for them any more, and nothing of them stays.

Each client is a process of its own that asks once, reads its answer, and ends by SIGKILL: while it waits for others,
while its context loads, while its prompt is computed, while it is answered. They come in groups of a few, so that some
have to wait; one in four groups dies all at once. After the last kill of each, the edge's own /metrics say what was
still computed, and who has cells and sequences. The edge's cache has room for one window, so that contexts are loaded
again and again, and a prompt that needs nearly all of it is answered at the end as it was before.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from preread.bench.aftermath import Aftermath, Kind, Phase, Reading, aftermath, failings, phase, reading
from preread.bench.corpus import Corpus, draw
from preread.bench.corpus import name as document_name
from preread.bench.deployment import Report, Setting, deployed
from preread.edge.machine import machine
from preread.errors import RemoteError, TransportError
from preread.testing.tiny import NAME as TINY
from preread.testing.tiny import write_tiny

Told = dict[str, object]
_GROUPS: Final = (1, 2, 4, 4)
_WINDOW, _CONTEXTS, _CONTEXT_TOKENS = 2048, 5, 400
_QUESTIONS, _QUESTION_TOKENS, _LONG, _LONGEST = 80, 24, 40, 72
_ANSWER_TOKENS: Final[dict[Kind, int]] = {"plain": 150, "about": 150, "long": 75}
_LAST_TOKENS, _AT_ONCE, _TEXTS = 16, 0.25, 0
_MBPS, _RTT_MS = 20.0, 10.0
_LOOK_S, _SETTLE_S, _PATIENCE_S = 0.02, 10.0, 120.0
_EDGE_OPTIONS: Final = ("--keep-conversations", "0", "--cache-ram", "0", "--no-drafts")
"""Nothing stays but contexts, and a step has one token of an answer: guesses that come true would be more."""

_CHAT: Final = "/v1/chat/completions"
_CLIENT: Final = """
import os, signal, socket, sys
signal.alarm(600)
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
link.sendall(sys.stdin.buffer.read())
os.write(1, b"s")
seen = b""
for mark, text in (b"t", b"data: {"), (b"e", b"[DONE]"):
    while text not in seen and (data := link.recv(65536)):
        seen = seen[-8:] + data
    if text in seen:
        os.write(1, mark)
signal.pause()
"""
"""It tells when it has asked (s), when its first token (t) and when its last one (e) has come."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run: so many clients are killed (`times`), when and what they ask follows from the seed."""

    model: Path
    name: str
    times: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Question:
    kind: Kind
    body: dict[str, Any]

    def request(self, port: int) -> bytes:
        """As it is sent."""
        body = json.dumps(self.body).encode()
        head = f"POST {_CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _question(kind: Kind, chance: random.Random, corpus: Corpus) -> _Question:
    text = "\n".join(chance.sample(corpus.questions, _LONG if kind == "long" else 1))
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0}
    if kind == "about":
        body["context"] = document_name(chance.randrange(_CONTEXTS))
    return _Question(kind, body | {"max_tokens": _ANSWER_TOKENS[kind], "ignore_eos": True})


async def bench(options: Options, report: Report) -> Told:
    """Kill clients, and print last one line of JSON, which is also returned.

    Raises:
        RemoteError: something went on or stayed; the JSON was printed.
        PrereadError: a part could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="preread-hangups-") as folder:
        scratch, model, edge_options = Path(folder), options.model, [*_EDGE_OPTIONS]
        if options.name == TINY:
            model = write_tiny(scratch / f"{TINY}.gguf", model)
            edge_options += ["--threads", "1"]
        setting = Setting(
            model, options.name, _CONTEXT_TOKENS, ("lossless",), None, _MBPS, _RTT_MS, 0, tuple(edge_options)
        )  # fmt: skip
        drawn = (model, _TEXTS, _CONTEXTS, _CONTEXT_TOKENS, _QUESTIONS, _QUESTION_TOKENS)
        corpus = await asyncio.to_thread(draw, *drawn)
        async with deployed(setting, corpus.documents, _WINDOW, scratch, report) as edge:
            await edge.fresh()
            async with httpx2.AsyncClient(base_url=edge.url, trust_env=False, timeout=_PATIENCE_S) as http:
                began_s = time.monotonic()
                run = _Run(http, urlsplit(edge.url).port or 0, corpus, random.Random(options.seed))
                same = await run.all(options.times, report)
                seconds = time.monotonic() - began_s
    return tell(options, run.phases, run.seen, same, seconds)


@dataclass(slots=True)
class _Client:
    """A process that asks, and what it has told so far."""

    question: _Question
    process: asyncio.subprocess.Process
    told: bytes = b""

    async def listen(self) -> None:
        """Until it is gone."""
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(8):
            self.told += data


@dataclass(slots=True)
class _Run:
    """The groups, one after the other, and what came of them."""

    http: httpx2.AsyncClient
    port: int
    corpus: Corpus
    chance: random.Random
    phases: Counter[Phase] = field(default_factory=Counter)
    seen: list[Aftermath] = field(default_factory=list)

    async def all(self, times: int, report: Report) -> bool:
        """Kill so many clients; whether the edge says the same before and afterwards."""
        usual_s = await self._usual_s()
        right = await self._answer()
        start = await self._look()
        while (done := self.phases.total()) < times:
            report("kills", done, times)
            await self._group(min(self.chance.choice(_GROUPS), times - done), usual_s, start)
        report("kills", times, times)
        return await self._answer() == right

    async def _group(self, count: int, usual_s: float, start: Reading) -> None:
        """Clients that ask at once, each of which is killed at a random moment until its answer would be there."""
        kinds = self.chance.choices([*_ANSWER_TOKENS], k=count)
        questions = [_question(kind, self.chance, self.corpus) for kind in kinds]
        # The square: else most would be killed while they are answered.
        after_s = [usual_s * self.chance.random() ** 2 for _ in kinds]
        if self.chance.random() < _AT_ONCE:
            after_s = count * after_s[:1]
        async with asyncio.TaskGroup() as group:
            starting = [group.create_task(self._client(question)) for question in questions]
        clients, kills = [task.result() for task in starting], list[Reading]()
        try:
            async with asyncio.TaskGroup() as group:
                for client, seconds in zip(clients, after_s, strict=True):
                    group.create_task(client.listen())
                    group.create_task(self._kill(client, seconds, clients, kills))
        finally:
            for client in clients:
                if client.process.returncode is None:
                    client.process.kill()
        self.seen.append(await self._aftermath(start, kills[-1]))

    async def _client(self, question: _Question) -> _Client:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-I", "-S", "-c", _CLIENT, str(self.port))
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(question.request(self.port))
        process.stdin.write_eof()
        return _Client(question, process, await process.stdout.readexactly(1))

    async def _kill(self, client: _Client, after_s: float, clients: Sequence[_Client], kills: list[Reading]) -> None:
        await asyncio.sleep(after_s)
        seen = await self._look()
        client.process.kill()
        kills.append(seen)
        answering = sum(one.told == b"st" and one.process.returncode is None for one in clients)
        self.phases[phase(client.told, client.question.kind, seen, answering)] += 1
        await client.process.wait()

    async def _look(self) -> Reading:
        return reading((await self.http.get("/metrics")).text)

    async def _aftermath(self, start: Reading, last: Reading) -> Aftermath:
        """What came after the last kill, once nothing is under way or left, or there was time enough for that."""
        deadline_s, before = time.monotonic() + _SETTLE_S, None
        while True:
            now = await self._look()
            found = aftermath(start, last, now, _CONTEXTS, _CONTEXT_TOKENS)
            if (found.over and now == before) or time.monotonic() > deadline_s:
                return found
            before = now
            await asyncio.sleep(_LOOK_S)

    async def _usual_s(self) -> float:
        """How long a plain answer takes that nobody shares the engine with."""
        began_s = time.monotonic()
        await self._asked(_question("plain", self.chance, self.corpus).body)
        return time.monotonic() - began_s

    async def _answer(self) -> str:
        """What is said to a prompt that needs nearly all cells of the cache."""
        text = "\n".join(self.corpus.questions[:_LONGEST])
        asked = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": _LAST_TOKENS}
        return str(json.loads(await self._asked(asked))["choices"][0]["message"]["content"])

    async def _asked(self, body: dict[str, Any]) -> str:
        answer = await self.http.post(_CHAT, json=body)
        if answer.status_code != 200:
            raise TransportError(f"the edge answered {answer.status_code}: {answer.text}")
        return answer.text


def tell(options: Options, phases: Counter[Phase], seen: Sequence[Aftermath], same: bool, seconds: float) -> Told:
    """Print one line of JSON, which is also returned.

    Raises:
        RemoteError: something is not as it should be.
    """
    result: Told = {
        "bench": "hangups", "model": options.name, "times": phases.total(), "groups": len(seen), "phases": phases,
        "answer_tokens_after": max(one.answer_tokens for one in seen),
        "prompt_tokens_after": max(one.read_tokens for one in seen),
        "went_on": sum(one.went_on for one in seen),
        "leaked_cells": max(one.leaked_cells for one in seen),
        "leaked_sequences": max((one.leaked_sequences for one in seen), key=abs),
        "late": sum(one.late for one in seen), "same_answer": same,
        "seed": options.seed, "seconds": round(seconds, 1), "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    if bad := failings(seen, same):
        raise RemoteError(f"clients that were killed left something behind: {', '.join(bad)}")
    return result
