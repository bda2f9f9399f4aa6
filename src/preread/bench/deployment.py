"""A cloud that has published documents, an emulated link to it, and an edge behind that: each a process of its own.

It knows processes and the cloud's API; it must not know what the edge is asked.
"""

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from preread.bench.corpus import name as document_name
from preread.bench.load import OURS
from preread.bench.processes import Server
from preread.cloud import client
from preread.cloud.events import Published
from preread.cloud.profiles import keep
from preread.codec import profile_bytes as profiles
from preread.errors import EngineError, TransportError
from preread.fit.sample import TAIL_TOKENS
from preread.store.objects import open_store
from preread.testing.proxy import Link, ProxyProcess

Report = Callable[[str, int, int | None], None]
_KNOWN_S: Final = 120.0
_QUIET_S, _MOST_QUIET_S = 0.2, 10.0
_LEAST_CLOUD_TOKENS: Final = 1024
_TEMPLATE_TOKENS, _BLOCK_TOKENS = 128, 256


@dataclass(frozen=True, slots=True)
class Setting:
    """What is set up.

    Attributes:
        model, name: GGUF file, and what to call it.
        context_tokens: that every document has.
        rungs: what is published; the edge chooses by itself.
        profile: a file, for rungs that need one.
        mbps, rtt_ms: of the link.
        kv_memory_bytes: what the edge is to have for KV cache; None: as it decides.
        edge_options: further arguments of `preread edge`.
    """

    model: Path
    name: str
    context_tokens: int = 1000
    rungs: tuple[str, ...] = ("lossless", "q8", "q4")
    profile: Path | None = None
    mbps: float = 100
    rtt_ms: float = 20
    kv_memory_bytes: int | None = None
    edge_options: tuple[str, ...] = ()

    def edge_arguments(self, cloud: str, window_tokens: int) -> list[str]:
        """The command line of the edge; what was given as options holds against what the bench says."""
        memory = [] if self.kv_memory_bytes is None else ["--kv-memory", str(self.kv_memory_bytes >> 20)]
        own = ["--model", str(self.model.resolve()), "-c", str(window_tokens), "--cloud", cloud, *memory]
        return ["--log-level", "warning", "edge", *own, *self.edge_options]


def window_tokens(tokens: int) -> int:
    """KV cache for one request of so many tokens, and for what a chat's template adds to it."""
    return (tokens + _TEMPLATE_TOKENS + _BLOCK_TOKENS - 1) // _BLOCK_TOKENS * _BLOCK_TOKENS


class Deployment:
    """The running parts. There is no edge before `fresh`; its `url` stays the same."""

    name, restarts = OURS, True

    def __init__(self, edge: Server, folder: Path, proxy: ProxyProcess, link: Link, documents: int) -> None:
        self._edge, self._folder, self._proxy = edge, folder, proxy
        self._link, self._documents = link, documents
        self.url = edge.url

    async def fresh(self, *, cut: bool = False) -> None:
        """An edge that has just started and holds no KV: all that it has is names, token ids and manifests.

        With `cut`, it started when nothing passed the link any more, and nothing will.

        Raises:
            TransportError: it does not start, or does not come to know what is published.
        """
        self._edge.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        await asyncio.to_thread(self._proxy.set_link, self._link)
        await self._start()
        if cut:
            self._edge.kill()
            await asyncio.to_thread(self._proxy.set_link, Link(0, self._link.rtt_ms))
            await self._start()

    async def settle(self) -> None:
        """Wait until nothing comes down the link any more: what the edge does afterwards is nobody else's burden."""
        seen, deadline = -1, asyncio.get_running_loop().time() + _MOST_QUIET_S
        while (now := (await asyncio.to_thread(lambda: self._proxy.stats)).bytes_down) != seen:
            seen = now
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_QUIET_S)

    def resident_bytes(self) -> int:
        """Memory that the edge's process has resident now; 0 where the system does not say."""
        return self._edge.resident_bytes()

    async def properties(self) -> dict[str, Any]:
        """What the edge says at /props.

        Raises:
            TransportError: it does not answer.
        """
        return await self._told("/props")

    async def _start(self) -> None:
        self._edge.start()
        await self._edge.ready()
        try:
            async with asyncio.timeout(_KNOWN_S):
                while True:
                    health = await self._told("/health")
                    if (health["contexts"], health["missing"]) == (self._documents, 0):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            told = " | ".join(self._edge.log[-5:])
            raise TransportError(f"the benchmark's edge does not learn what is published: {told}") from None

    async def _told(self, path: str) -> dict[str, Any]:
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=_KNOWN_S) as http:
                told: dict[str, Any] = (await http.get(f"{self.url}{path}")).json()
                return told
        except httpx2.HTTPError as error:
            raise TransportError(f"the benchmark's edge does not answer: {error!r}; {self._edge.log[-3:]}") from error


@asynccontextmanager
async def deployed(
    setting: Setting, documents: Sequence[str], window_tokens: int, scratch: Path, report: Report
) -> AsyncGenerator[Deployment, None]:
    """Start a cloud, have it publish the documents as system prompts of chats, and put a link and an edge before it.

    `window_tokens`: KV cache of the edge.

    Raises:
        UsageError: the profile is no such file, or the cloud refuses something.
        PrereadError: a part does not start, or a document has other than `context_tokens` tokens.
    """
    store, model = scratch / "store", setting.model.resolve()
    if setting.profile is not None:
        await keep(open_store(str(store)), profiles.loads(setting.profile.read_bytes()))
    cloud_tokens = max(setting.context_tokens + TAIL_TOKENS, _LEAST_CLOUD_TOKENS)
    cloud = Server(
        ["--log-level", "error", "cloud", "--model", str(model), "-c", str(cloud_tokens), "--store", str(store),
         "--rungs", ",".join(setting.rungs)],
        scratch / "cloud-cache", model.parent, nice=5,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        stack.callback(cloud.kill)
        cloud.start()
        await cloud.ready()
        for number, document in enumerate(documents):
            report("publish", number, len(documents))
            await asyncio.to_thread(_publish, cloud.url, document_name(number), document, setting.context_tokens)
        link = Link(setting.mbps, setting.rtt_ms)
        proxy = stack.enter_context(ProxyProcess(cloud.port, link))
        folder = scratch / "edge-cache"
        edge = Server(setting.edge_arguments(proxy.url, window_tokens), folder, model.parent)
        stack.callback(edge.kill)
        yield Deployment(edge, folder, proxy, link, len(documents))


def _publish(cloud: str, name: str, document: str, tokens: int) -> None:
    for event in client.publish(cloud, name, text=document, form="chat"):
        if isinstance(event, Published) and event.entry.token_count != tokens:
            raise EngineError(
                f"the cloud takes {name} for {event.entry.token_count} tokens, and the benchmark for {tokens}: "
                "this is a bug in preread"
            )
