"""What an edge serves to its neighbours, over real HTTP: what it holds, what it may fetch, and nothing else."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from preread.cloud.app import create_app as create_cloud
from preread.cloud.events import Request
from preread.edge import share
from preread.store.objects import Objects, open_store
from preread.testing.cloud import FINGERPRINT, RandomPublisher, serving
from preread.testing.edges import BareEdge, bare_edge, introduce, serving_here
from preread.testing.proxy import Blackout, Proxy, Refuse
from preread.values import ObjectId
from preread.wire.digest import object_id

IF_CACHED = {"Cache-Control": "max-age=10, Only-If-Cached"}
Work = Callable[[BareEdge, httpx2.AsyncClient, Proxy], Awaitable[None]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publisher = RandomPublisher(store, ("lossless", "q4"), chunk_tokens=64)
    asyncio.run(publisher(Request("manual", "m" * 200, form="text"), lambda *_: None))
    return store


@pytest.fixture(scope="module")
def cloud_url(store: Objects) -> Iterator[str]:
    with serving(create_cloud(store, RandomPublisher(store))) as url:
        yield url


def run(cloud_url: str, folder: Path, work: Work, **options: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(30))
            port = int(cloud_url.rpartition(":")[2])
            uplink = await stack.enter_async_context(Proxy(("127.0.0.1", port)))
            edge = await stack.enter_async_context(bare_edge(uplink.url, folder, 1, **options))
            http = httpx2.AsyncClient(base_url=edge.url, trust_env=False, timeout=20)
            await work(edge, await stack.enter_async_context(http), uplink)

    asyncio.run(main())


def test_held_segments_with_their_headers(cloud_url: str, tmp_path: Path) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        ref = edge.refs("manual")[0]
        data = await edge.sources.get(ref)
        uplink.faults = [Blackout()]
        path = f"/v1/segments/{ref.id}"
        for headers in ({}, IF_CACHED):
            answer = await http.get(path, headers=headers)
            assert (answer.status_code, answer.content) == (200, data)
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["etag"] == f'"{ref.id}"'
        part = await http.get(path, headers={"Range": "bytes=3-9"})
        assert (part.status_code, part.content) == (206, data[3:10])
        assert (await http.head(path)).headers["content-length"] == str(len(data))
        assert (await http.get(path, headers={"If-None-Match": f'"{ref.id}"'})).status_code == 304
        await edge.sources.flush()
        assert (await http.get(path)).content == data

    run(cloud_url, tmp_path, work)


def test_what_is_not_held_is_fetched_from_the_cloud_once_and_then_held(cloud_url: str, tmp_path: Path) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        ref = edge.refs("manual", "q4")[0]
        path, before = f"/v1/segments/{ref.id}", uplink.stats.bytes_down
        refused = await http.get(path, headers=IF_CACHED)
        assert refused.status_code == 504 and refused.json()["error"]["code"] == "not_held"
        assert uplink.stats.bytes_down == before and not edge.sources.disk.holds(ref)
        answers = await asyncio.gather(*[http.get(path) for _ in range(12)])
        assert {object_id(answer.content) for answer in answers} == {ref.id}
        assert uplink.stats.bytes_down - before < ref.size_bytes + 1000
        assert (await http.get(path, headers=IF_CACHED)).status_code == 200

    run(cloud_url, tmp_path, work)


def test_nothing_else_is_served(cloud_url: str, tmp_path: Path, store: Objects) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        stray = await store.put("segments", b"of no context that this edge knows")
        entry = edge.contexts.named("manual").entry
        paths = [
            f"/v1/segments/{stray.id}",
            f"/v1/segments/{entry.manifest.id}",
            f"/v1/manifests/{entry.manifest.id}",
            f"/v1/tokens/{entry.tokens.id}",
            "/v1/catalogue",
            "/v1/models",
            "/v1/chat/completions",
            "/health",
            "/v1/segments/..%2f..%2fuses.json",
        ]
        before = uplink.stats.bytes_up
        for path in paths:
            answer = await http.get(path)
            assert answer.status_code == 404 and answer.headers["cache-control"] == "no-store", path
        assert (await http.get("/v1/segments/x")).status_code == 400
        for method in ("PUT", "POST", "DELETE"):
            assert (await http.request(method, f"/v1/segments/{stray.id}")).status_code == 405
        assert uplink.stats.bytes_up == before, "the cloud was asked"
        # even where such a file lies in the folder
        edge.held.keep(stray, b"of no context that this edge knows")
        assert (await http.get(f"/v1/segments/{stray.id}")).status_code == 404

    run(cloud_url, tmp_path, work)


def test_who_it_is(cloud_url: str, tmp_path: Path) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        assert (await http.get("/v1/edge")).json() == {"edge": edge.edge, "model": FINGERPRINT}

    run(cloud_url, tmp_path, work)


def test_with_a_site_key_everybody_else_is_refused(cloud_url: str, tmp_path: Path) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        ref = edge.refs("manual")[0]
        for headers in ({}, {"Authorization": "Bearer site-secret-0123456789"}):
            answer = await http.get(f"/v1/segments/{ref.id}", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Preread-Site")
        await introduce(edge)

    run(cloud_url, tmp_path, work, site_key="site-secret-0123456789")


def test_nobody_can_make_an_edge_lose_its_own_or_fetch_for_ever(cloud_url: str, tmp_path: Path) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        own, others = edge.refs("manual", "lossless"), edge.refs("manual", "q4")
        for ref in own:
            await edge.sources.get(ref)
        await edge.sources.flush()
        edge.held.room_bytes = edge.held.used_bytes + 10
        assert all([(await http.get(f"/v1/segments/{ref.id}")).status_code == 200 for ref in others])
        await edge.sources.flush()
        assert all(ref.id in edge.held for ref in own) and not any(ref.id in edge.held for ref in others)
        before = uplink.stats.bytes_down
        again = [await http.get(f"/v1/segments/{ref.id}") for ref in others]
        assert {answer.status_code for answer in again} == {503} and uplink.stats.bytes_down == before
        assert {int(answer.headers["retry-after"]) for answer in again} == {600}

    run(cloud_url, tmp_path, work)


def test_what_this_edge_wants_itself_is_its_own_however_it_came(cloud_url: str, tmp_path: Path) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        first, second, third, *_ = edge.refs("manual")
        assert (await http.get(f"/v1/segments/{first.id}")).status_code == 200
        await asyncio.gather(http.get(f"/v1/segments/{second.id}"), edge.sources.get(second))
        assert (await http.get(f"/v1/segments/{third.id}")).status_code == 200
        await edge.sources.flush()
        await edge.sources.get(third)
        assert edge.held._guests == {first.id}

    run(cloud_url, tmp_path, work)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2000)), max_size=40))
def test_what_was_fetched_lately_is_not_fetched_again(asked: list[tuple[str, float]]) -> None:
    fetched, at_s = share.Fetched(), dict[str, float]()
    for name, now_s in sorted(asked, key=lambda one: one[1]):
        allowed = fetched.allows(ObjectId(name), now_s)
        assert allowed is (name not in at_s or now_s - at_s[name] >= 600)
        if allowed:
            fetched.note(ObjectId(name), now_s)
            at_s[name] = now_s


@pytest.mark.parametrize("fault", [Refuse(), Blackout()])
def test_a_cloud_that_is_gone_is_told(cloud_url: str, tmp_path: Path, fault: Any) -> None:
    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        await edge.link.aclose()
        uplink.faults = [fault]
        answer = await http.get(f"/v1/segments/{edge.refs('manual')[1].id}")
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "unreachable"

    run(cloud_url, tmp_path, work)


def test_no_request_goes_in_circles(cloud_url: str, tmp_path: Path) -> None:
    """Two edges that each take the other for the owner: what one is asked for, it asks only the cloud for."""

    async def work(edge: BareEdge, http: httpx2.AsyncClient, uplink: Proxy) -> None:
        async with bare_edge(uplink.url, tmp_path, 2) as other:
            await introduce(edge, other)
            for one in (edge, other):
                one.neighbours._sharing = False  # so that each takes the other for the owner of everything
            uplink.faults = [Blackout()]
            await asyncio.gather(edge.link.aclose(), other.link.aclose())
            neighbours = [*edge.neighbours.usable(), *other.neighbours.usable()]
            before = [one.received_bytes for one in neighbours]
            asked = [http.get(f"/v1/segments/{ref.id}") for ref in edge.refs("manual")]
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {504}
            assert len(neighbours) == 2
            assert [one.received_bytes for one in neighbours] == before, "a neighbour was asked"
            assert all(one.usable for one in neighbours), "a neighbour was asked in vain"

    run(cloud_url, tmp_path, work)


def test_too_many_are_told_to_ask_the_cloud(cloud_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "MOST_REQUESTS", 2)
    entered, door = asyncio.Event(), asyncio.Event()
    waiting = 0

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            entered.set()
        await door.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with serving_here(share.Pace(slow, None)) as url, httpx2.AsyncClient(trust_env=False) as http:
            two = [asyncio.create_task(http.get(url)) for _ in "ab"]
            await entered.wait()
            assert (await http.get(url)).status_code == 503
            door.set()
            assert [answer.status_code for answer in await asyncio.gather(*two)] == [200, 200]
            assert (await http.get(url)).status_code == 200

    asyncio.run(main())


def test_pace() -> None:
    """Bodies of 3 x 1,000 bytes at 10,000 bytes a second: the last leaves after 0.3 s at the earliest."""

    async def body(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"x" * 1000})

    async def main() -> None:
        pace, began, sent_s = share.Pace(body, 10_000), time.monotonic(), list[float]()

        async def send(message: Message) -> None:
            sent_s.append(time.monotonic() - began)

        async def receive() -> Message:
            return {"type": "http.request"}

        scope = {"type": "http"}
        await asyncio.gather(*[pace(scope, receive, send) for _ in range(3)])
        assert [sent >= least for sent, least in zip(sent_s, (0.1, 0.2, 0.3), strict=True)] == [True] * 3
        pace._free_at = time.monotonic() + 60
        answers = list[Message]()

        async def keep(message: Message) -> None:
            answers.append(message)

        await pace(scope, receive, keep)
        assert answers[0]["status"] == 503, "who would wait for long is told to ask the cloud"

    asyncio.run(main())
