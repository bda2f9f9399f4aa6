"""An edge listens before it has heard from its cloud, says what is wrong with it, and leaves it alone while idle."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from preread.cloud import client
from preread.cloud.app import create_app
from preread.edge import residents
from preread.edge.contexts import Contexts
from preread.edge.edge import AsyncEdge
from preread.edge.understand import find_context
from preread.errors import Unavailable, UnknownContext
from preread.plan.beliefs import Beliefs
from preread.plan.poll import SYNC_S
from preread.store.egress import CloudLink
from preread.store.objects import open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.edges import OWN
from preread.testing.proxy import Proxy


def _page(request: Request) -> HTMLResponse:
    return HTMLResponse("<h1>It works!</h1>")


def opened(tiny_model: Path, cloud: str | None, folder: Path) -> AsyncEdge:
    return AsyncEdge(str(tiny_model), cloud, window_tokens=512, threads=1, folder=folder)


def test_a_silent_cloud_keeps_no_edge_from_answering(tiny_model: Path, tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, opened(tiny_model, f"http://127.0.0.1:{port}", tmp_path) as edge:
            answer = await edge.ask("Who are you?", max_tokens=1)
            assert answer.timings.way == "none" and not edge.node.contexts.asked_cloud.is_set()
            assert edge.node.contexts.unreachable == "the cloud was not asked yet"
            assert not await edge.node.settled(0.01)

    asyncio.run(main())


def test_who_asks_right_after_a_start_waits_for_the_first_answer_of_the_cloud(
    cloud: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalogue is here from the last time, and what the cloud has now is being asked for."""
    sync, asked, answered = Contexts.sync, asyncio.Event(), asyncio.Event()

    async def slow(self: Contexts, link: CloudLink) -> float:
        asked.set()
        await answered.wait()
        return await sync(self, link)

    async def main() -> tuple[str, str]:
        async with opened(tiny_model, cloud.url, tmp_path) as edge:
            await edge.node.settled()
        monkeypatch.setattr(Contexts, "sync", slow)
        monkeypatch.setattr(residents, "_MOST_SETTLE_S", 60.0)
        async with opened(tiny_model, cloud.url, tmp_path) as edge:
            edge.node.beliefs = slow_machine()
            await asked.wait()
            asking = asyncio.create_task(edge.ask("Who are you?", context="manual", max_tokens=1))
            while not edge.node.core.stats().loading:
                await asyncio.sleep(0.001)
            answered.set()
            streamed = (await asking).timings.way
            answered.clear()
            edge.node.contexts.asked_cloud.clear()
            edge.node.beliefs = Beliefs.of_machine(1e9)
            await edge.node.forget()
            edge.node.contexts.unreachable = "the cloud was not asked yet"
            return streamed, (await edge.ask("Who are you?", context="manual", max_tokens=1)).timings.way

    assert asyncio.run(main()) == ("streamed", "computed"), "but not for longer than computing takes"


def test_why_a_context_cannot_be_looked_up_is_said(tiny_model: Path, tmp_path: Path) -> None:
    """Nothing listens, another server, a wrong path, TLS to a server without, no cloud; and a cloud, at last."""
    page = Starlette(routes=[Route("/{path:path}", _page)])
    store = open_store(str(tmp_path / "store"))

    async def why(edge: AsyncEdge, cloud: str | None) -> str:
        node = edge.node
        node.link = None if cloud is None else CloudLink(cloud)
        try:
            node.contexts.unreachable = None
            with pytest.raises((Unavailable, UnknownContext)) as caught:
                await find_context("manual", node)
            return f"{type(caught.value).__name__}: {caught.value}"
        finally:
            if node.link is not None:
                await node.link.aclose()
            node.link = None

    async def main(other: str, cloud: str) -> list[str]:
        async with opened(tiny_model, None, tmp_path / "edge") as edge:
            clouds = ["http://127.0.0.1:9", other, f"{cloud}/prefix", cloud.replace("http:", "https:"), cloud]
            told = [await why(edge, url) for url in clouds]
            await edge.node.sync()
            with pytest.raises(Unavailable, match="start it with --cloud URL"):
                await find_context("manual", edge.node)
            return told

    with serving(page) as other, serving(create_app(store, RandomPublisher(store))) as cloud:
        nobody, another, path, tls, known = asyncio.run(main(other, cloud))
    assert "Unavailable" in nobody and "cannot be reached" in nobody
    assert "Unavailable" in another and "does --cloud name a preread cloud?" in another
    assert "Unavailable" in path and "this is not a preread cloud" in path
    assert "Unavailable" in tls and "https://" in tls
    assert known.startswith("UnknownContext: unknown context 'manual'; known contexts: none is published yet")


def test_an_idle_edge_takes_less_than_a_megabyte_a_day(tmp_path: Path) -> None:
    """As docs/operations.md says: one question a minute whether anything has changed."""
    store = open_store(str(tmp_path / "store"))

    async def main(url: str) -> float:
        async with Proxy(("127.0.0.1", int(url.rpartition(":")[2]))) as proxy, CloudLink(proxy.url) as link:
            contexts = Contexts(tmp_path / "edge", OWN)
            await contexts.sync(link)
            before = _bytes(proxy)
            for _ in range(10):
                await contexts.sync(link)
            assert len(contexts.all()) == 3
            return (_bytes(proxy) - before) / 10

    with serving(create_app(store, RandomPublisher(store))) as url:
        for name in ("one", "two", "three"):
            list(client.publish(url, name, text=f"text {name}"))
        each_bytes = asyncio.run(main(url))
    assert 100 < each_bytes and each_bytes * 86_400 / SYNC_S < 1e6, each_bytes


def _bytes(proxy: Any) -> int:
    return int(proxy.stats.bytes_up + proxy.stats.bytes_down)
