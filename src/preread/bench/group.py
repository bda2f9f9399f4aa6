"""The edges of one site as processes of their own: started cold, shown their link, asked all at the same moment.

It knows processes and the edges' API; it must not know what is measured, or how the link is emulated.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from preread.bench.processes import Server
from preread.errors import RemoteError, TransportError

_PATIENCE_S: Final = 300.0
_ACQUAINTED_S: Final = 30.0
_IS_THERE: Final = "is there"
"""What an edge logs of a neighbour that has introduced itself."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all edges have alike: options of `preread edge`, and `folder`, where each group gets fresh cache folders."""

    model: Path
    cloud: str
    rung: str
    window_tokens: int
    threads: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: token ids after a context."""

    context: str
    prompt: tuple[int, ...]
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw of one answer, and what the edge said about it.

    Attributes:
        ttft_s: seconds until the first event of the answer, at the client.
        way: as in the edge's `timings`, as are the others.
        reason: why nothing was streamed, where that is so.
        computed_n: tokens of the context that the edge computed itself.
        bytes_received: from the cloud and from neighbours.
    """

    ttft_s: float
    way: str
    reason: str | None
    computed_n: int
    bytes_received: int


class Group:
    """Running edges, and a client that has a connection to each."""

    def __init__(self, servers: Sequence[Server], client: httpx2.AsyncClient) -> None:
        self._servers, self._client = servers, client

    async def ask(self, number: int, asked: Asked) -> Answer:
        """Ask one edge.

        Raises:
            TransportError, RemoteError: it does not answer, or not with an answer.
        """
        request = {
            "prompt": asked.prompt, "context": asked.context, "max_tokens": asked.answer_tokens, "temperature": 0,
            "stream": True,
        }  # fmt: skip
        server = self._servers[number]
        started, ttft_s, told = time.monotonic(), None, ""
        try:
            async with self._client.stream("POST", f"{server.url}/v1/completions", json=request) as response:
                if response.status_code != 200:
                    raise RemoteError(f"edge {number} of the benchmark refuses: {(await response.aread()).decode()}")
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        ttft_s = ttft_s or time.monotonic() - started
                        told = line.removeprefix("data: ")
        except httpx2.HTTPError as error:
            log = " | ".join(server.log[-5:])
            raise TransportError(f"edge {number} of the benchmark does not answer: {error!r}; {log}") from error
        timings: dict[str, Any] = json.loads(told or "{}").get("timings") or {}
        if ttft_s is None or not timings:
            raise RemoteError(f"edge {number} of the benchmark broke off: {told}")
        computed_n = timings["context_n"] - timings["cache_n"]
        return Answer(ttft_s, timings["way"], timings["reason"], computed_n, timings["bytes_received"])

    async def ask_all(self, asked: Sequence[Asked]) -> list[Answer]:
        """Ask each edge its question, all at the same moment; raises as `ask` does."""
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(self.ask(number, one)) for number, one in enumerate(asked)]
        return [task.result() for task in asking]


@asynccontextmanager
async def grouped(setting: Setting, count: int, *, neighbours: bool) -> AsyncGenerator[Group, None]:
    """So many edges with nothing in their caches; with `neighbours`, each knows all others.

    Nothing is fetched ahead of need, and the catalogue is asked for once: what crosses the link is for answers.

    Raises:
        TransportError: one does not start, or they do not come to know each other.
    """
    shares = _free_ports(count) if neighbours else []
    servers = [_server(setting, number, shares) for number in range(count)]
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=_PATIENCE_S))
        for server in servers:
            await server.ready()
        if neighbours:
            await _acquainted(servers)
        yield Group(servers, client)


def _server(setting: Setting, number: int, shares: Sequence[int]) -> Server:
    arguments = [
        "edge", "--model", str(setting.model), "--ctx-size", str(setting.window_tokens),
        "--threads", str(setting.threads), "--cloud", setting.cloud, "--rung", setting.rung,
        "--sync-s", "86400", "--prefetch", "off", "--disk-cache", "4096",
    ]  # fmt: skip
    if shares:
        others = ",".join(f"http://127.0.0.1:{port}" for at, port in enumerate(shares) if at != number)
        arguments += ["--share", f"127.0.0.1:{shares[number]}", "--neighbours", others]
    return Server(arguments, setting.folder / f"edge{number}", setting.model.parent)


async def _acquainted(servers: Sequence[Server]) -> None:
    """Wait until every edge has met all others, as their logs say: those that start sooner find them a little later."""
    try:
        async with asyncio.timeout(_ACQUAINTED_S):
            while any(sum(_IS_THERE in line for line in one.log) < len(servers) - 1 for one in servers):
                await asyncio.sleep(0.05)
    except TimeoutError:
        logs = " | ".join(line for server in servers for line in server.log[-3:])
        raise TransportError(f"edges of the benchmark do not find each other: {logs}") from None


def _free_ports(count: int) -> list[int]:
    """Ports that differ from each other, as long as nobody else takes one before its edge does."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]
