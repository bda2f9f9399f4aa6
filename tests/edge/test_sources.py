"""Disk, neighbours and cloud together, over real HTTP: one cold fetch for a site, and neighbours that cannot harm."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from preread.cloud import events
from preread.cloud.app import create_app as create_cloud
from preread.edge import sources as sources_module
from preread.edge.sources import NotHeld, Sources
from preread.errors import CorruptData, PrereadError, TransportError
from preread.plan import usual
from preread.store.held import Held
from preread.store.http11 import Patience
from preread.store.objects import open_store
from preread.testing.cloud import FINGERPRINT, RandomPublisher, serving
from preread.testing.edges import BareEdge, bare_edge, introduce, serving_here
from preread.testing.proxy import Blackout, Link, Proxy
from preread.values import ObjectRef
from preread.wire.digest import object_id

LIAR = "f" * 16
SIZES: dict[str, int] = {}
"""Of segments, so that a neighbour can lie well."""


@dataclass(frozen=True, slots=True)
class Node:
    """Edges behind one uplink."""

    uplink: Proxy
    folder: Path
    stack: AsyncExitStack

    async def edge(self, number: int, site_key: str | None = None) -> BareEdge:
        return await self.stack.enter_async_context(bare_edge(self.uplink.url, self.folder, number, site_key=site_key))

    async def edges(self, count: int) -> list[BareEdge]:
        found = [await self.edge(number) for number in range(count)]
        await introduce(*found)
        return found


@pytest.fixture(scope="module")
def cloud_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publisher = RandomPublisher(store, ("lossless",), chunk_tokens=512, window_tokens=10**6)
    for name, letters in (("manual", 12_000), ("leaflet", 2_000)):
        asyncio.run(publisher(events.Request(name, "x" * letters, form="text"), lambda *_: None))
    with serving(create_cloud(store, publisher)) as url:
        yield url


@asynccontextmanager
async def node(cloud_url: str, folder: Path, link: Link | None = None) -> AsyncGenerator[Node, None]:
    async with AsyncExitStack() as stack:
        port = int(cloud_url.rpartition(":")[2])
        uplink = await stack.enter_async_context(Proxy(("127.0.0.1", port), link or Link()))
        yield Node(uplink, folder, stack)


def run(cloud_url: str, folder: Path, work: Callable[[Node], Awaitable[None]], link: Link | None = None) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), node(cloud_url, folder, link) as here:
            await work(here)

    asyncio.run(main())


@pytest.mark.parametrize("count", [2, 4])
def test_a_cold_context_comes_over_the_uplink_once(
    cloud_url: str, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or what stands still for a quarter of a second, as a busy machine does, is asked of the cloud as well.
    monkeypatch.setattr(sources_module, "_SILENCE_S", 3600)
    monkeypatch.setattr(usual, "_SHORTEST_S", 3600)

    async def work(here: Node) -> None:
        alone = await here.edge(99)
        before = here.uplink.stats.bytes_down
        whole = await alone.load("manual")
        one_edge = here.uplink.stats.bytes_down - before
        assert whole == sum(ref.size_bytes for ref in alone.refs("manual")) <= one_edge < 1.05 * whole
        edges = await here.edges(count)
        before = here.uplink.stats.bytes_down
        assert await asyncio.gather(*[edge.load("manual") for edge in edges]) == [whole] * count
        assert here.uplink.stats.bytes_down - before <= 1.1 * one_edge

    run(cloud_url, tmp_path, work, Link(mbps=40, rtt_ms=10))


def test_one_after_the_other_needs_the_uplink_once_too(cloud_url: str, tmp_path: Path) -> None:
    async def work(here: Node) -> None:
        edges = await here.edges(4)
        before = here.uplink.stats.bytes_down
        whole = {await edge.load("manual") for edge in edges}
        assert here.uplink.stats.bytes_down - before <= 1.1 * whole.pop() and not whole
        assert all(edge.sources.disk.received_bytes for edge in edges), "somebody was not asked for what it holds"

    run(cloud_url, tmp_path, work)


def test_an_edge_that_joins_gets_what_the_others_hold(cloud_url: str, tmp_path: Path) -> None:
    async def work(here: Node) -> None:
        first = await here.edge(1)
        whole = await first.load("manual")
        second = await here.edge(2)
        await introduce(first, second)
        before = here.uplink.stats.bytes_down
        assert await second.load("manual") == whole
        assert here.uplink.stats.bytes_down - before < 1000, "it owns some segments, but the first one holds them"

    run(cloud_url, tmp_path, work)


def test_disk_comes_first_and_survives_a_restart(cloud_url: str, tmp_path: Path) -> None:
    async def work(here: Node) -> None:
        async with bare_edge(here.uplink.url, tmp_path, 1) as edge:
            await edge.load("leaflet")
        async with bare_edge(here.uplink.url, tmp_path, 1) as edge:
            before = here.uplink.stats.bytes_down
            assert edge.sources.supplies()[0].name == "disk"
            assert all(edge.sources.supplies()[0].holds(ref) for ref in edge.refs("leaflet"))
            await edge.load("leaflet")
            assert here.uplink.stats.bytes_down == before
            damaged = edge.refs("leaflet")[0]
            path = tmp_path / edge.edge / "held" / damaged.id[:2] / damaged.id
            path.write_bytes(b"?" * damaged.size_bytes)
            assert len(await edge.sources.get(damaged)) == damaged.size_bytes
            assert here.uplink.stats.bytes_down > before
            await edge.sources.flush()
            assert path.read_bytes() != b"?" * damaged.size_bytes

    run(cloud_url, tmp_path, work)


def test_a_disk_rests_while_somebody_waits_for_a_first_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = Held(tmp_path, 10**9)
    things = [os.urandom(1000) for _ in range(8)]
    refs = [ObjectRef("segments", object_id(data), len(data)) for data in things]

    async def main() -> None:
        disk = sources_module.Disk(held)
        with disk.resting():
            disk.keep(refs[0], things[0])
            await asyncio.sleep(0.1)
            assert disk.holds(refs[0]) and await disk.get(refs[0]) == things[0], "it is here all the same"
            assert refs[0].id not in held
        await disk.flush()
        assert refs[0].id in held
        monkeypatch.setattr(sources_module, "MOST_PENDING_BYTES", 5000)
        with disk.resting():
            for ref, data in zip(refs[1:5], things[1:5], strict=True):
                disk.keep(ref, data)
            await disk.flush()
            assert all(ref.id in held for ref in refs[1:5]), "more than half of its room is taken: it writes"
            monkeypatch.setattr(sources_module, "MOST_REST_S", 0.05)
            disk.keep(refs[5], things[5])
            await disk.flush()
            assert refs[5].id in held, "it has rested long enough"

    asyncio.run(main())


def test_what_a_planner_sees(cloud_url: str, tmp_path: Path) -> None:
    async def work(here: Node) -> None:
        edges = await here.edges(3)
        mine = edges[0].sources
        disk, *near, cloud = mine.supplies()
        names = [disk.name, *sorted(one.name for one in near), cloud.name]
        assert names == ["disk", f"near:{edges[1].edge}", f"near:{edges[2].edge}", "cloud"]
        refs = edges[0].refs("manual")
        owners = [sum(one.holds(ref) is None for one in near) for ref in refs]
        assert set(owners) == {0, 1}, "each segment has one owner, which may be this edge"
        assert all(cloud.holds(ref) is True and disk.holds(ref) is False for ref in refs)
        asked = next(ref for ref, owned in zip(refs, owners, strict=True) if owned)
        data = await next(one for one in near if one.holds(asked) is None).get(asked)
        assert disk.holds(asked) and await disk.get(asked) == data
        assert sum(one.received_bytes for one in near) == len(data)
        with pytest.raises(NotHeld):
            await disk.get(refs[refs.index(asked) - 1])

    run(cloud_url, tmp_path, work)


def test_nothing_is_asked_of_a_cloud_that_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(TransportError, match="no cloud"):
            await Sources(None).get(ObjectRef("segments", "0" * 64, 1))  # type: ignore[arg-type]
        assert Sources(None).supplies() == ()

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(8))
def test_what_has_just_arrived_is_not_asked_for_again(tmp_path: Path, turns: int) -> None:
    """A neighbour's request may come at any turn of the loop, also right after the cloud's answer did."""
    data = os.urandom(1000)
    ref = ObjectRef("segments", object_id(data), len(data))

    class Slow:
        asked, received_bytes = 0, 0

        def __init__(self) -> None:
            self.answer = asyncio.Event()

        async def get(self, ref: ObjectRef) -> bytes:
            self.asked += 1
            await self.answer.wait()
            return data

    async def main() -> None:
        link, held = Slow(), Held(tmp_path, 1 << 20)
        held.scan()
        sources = Sources(link, held)  # type: ignore[arg-type]
        first = asyncio.create_task(sources.get(ref))
        while not link.asked:
            await asyncio.sleep(0)
        link.answer.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await sources.get(ref) == await first == data
        assert link.asked == 1
        await sources.flush()

    asyncio.run(main())


def test_neighbours_give_what_they_hold_when_the_cloud_is_gone(cloud_url: str, tmp_path: Path) -> None:
    async def work(here: Node) -> None:
        first, second = await here.edges(2)
        await first.load("leaflet")
        await second.load("leaflet")
        for id in second.held.ids():
            second.held.drop([id])
        here.uplink.faults = [Blackout()]
        owned = [ref for ref in second.refs("leaflet") if second.neighbours.candidates(ref.id)[0] is not None]
        assert owned
        for ref in owned:
            assert len(await second.sources.get(ref)) == ref.size_bytes

    run(cloud_url, tmp_path, work)


# Neighbours that do harm, or would


async def wrong(request: Request) -> Response:
    return Response(os.urandom(SIZES[request.path_params["id"]]))


async def long(request: Request) -> Response:
    return Response(os.urandom(10**6))


async def silent(request: Request) -> Response:
    await asyncio.sleep(3600)
    return Response()


async def drip(request: Request) -> Response:
    async def body() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    return StreamingResponse(body(), headers={"Content-Length": str(SIZES[request.path_params["id"]])})


async def failing(request: Request) -> Response:
    return Response(status_code=500)


async def elsewhere(request: Request) -> Response:
    return Response(status_code=302, headers={"Location": "http://127.0.0.1:1/"})


def neighbour(answer: Callable[[Request], Awaitable[Response]], seen: list[Request] | None = None) -> Starlette:
    """An edge as it introduces itself, which answers like this."""

    async def introduce(request: Request) -> Response:
        if seen is not None:
            seen.append(request)
        return JSONResponse({"edge": LIAR, "model": FINGERPRINT})

    async def segment(request: Request) -> Response:
        if seen is not None:
            seen.append(request)
        return await answer(request)

    return Starlette(routes=[Route("/v1/edge", introduce), Route("/v1/segments/{id}", segment)])


async def owned_by_liar(edge: BareEdge, url: str) -> list[ObjectRef]:
    edge.neighbours.add(url, url)
    await edge.neighbours.probe()
    refs = edge.refs("manual")
    SIZES.update((ref.id, ref.size_bytes) for ref in refs)
    owned = [ref for ref in refs if (first := edge.neighbours.candidates(ref.id)[0]) and first.edge == LIAR]
    assert 0 < len(owned) < len(refs)
    return owned


@pytest.mark.parametrize("answer", [wrong, long, silent, drip, failing, elsewhere])
def test_a_bad_neighbour_costs_little_and_is_left_alone(
    cloud_url: str,
    tmp_path: Path,
    answer: Callable[[Request], Awaitable[Response]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources_module, "_SILENCE_S", 0.2)
    monkeypatch.setattr("preread.store.egress._NEAR", Patience(0.5, 3600, 3600, 1))  # so that only the cloud's helps
    seen: list[Request] = []

    async def work(here: Node) -> None:
        edge = await here.edge(1)
        async with serving_here(neighbour(answer, seen)) as url:
            owned = await owned_by_liar(edge, url)
            for ref in owned:
                assert len(await edge.sources.get(ref)) == ref.size_bytes
            segments = [request for request in seen if "segments" in request.url.path]
            if answer not in (failing, elsewhere):
                assert edge.neighbours.usable() == [] and len(segments) == 1
            assert await edge.load("manual") == sum(ref.size_bytes for ref in edge.refs("manual"))
            await edge.neighbours.probe()  # answering that does not make up for it
            assert answer in (failing, elsewhere) or edge.neighbours.usable() == []

    run(cloud_url, tmp_path, work)


@pytest.mark.parametrize("answer", [silent, drip])
def test_a_neighbour_that_was_quick_is_not_waited_for_as_if_it_had_been_slow(
    cloud_url: str, tmp_path: Path, answer: Callable[[Request], Awaitable[Response]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_SILENCE_S", 3600)
    monkeypatch.setattr("preread.store.egress._NEAR", Patience(0.5, 3600, 3600, 1))

    async def work(here: Node) -> None:
        edge = await here.edge(1)
        async with serving_here(neighbour(answer)) as url:
            ref, *_ = await owned_by_liar(edge, url)
            (near,) = edge.neighbours.usable()
            for _ in range(8):
                near._usual.note(0.01)
            assert len(await edge.sources.get(ref)) == ref.size_bytes
            assert edge.neighbours.usable() == []

    run(cloud_url, tmp_path, work)


@pytest.mark.parametrize(("answer", "error"), [(wrong, CorruptData), (drip, TransportError), (failing, PrereadError)])
def test_what_a_planner_learns_of_a_bad_neighbour(
    cloud_url: str,
    tmp_path: Path,
    answer: Callable[[Request], Awaitable[Response]],
    error: type[PrereadError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("preread.store.egress._NEAR", Patience(0.5, 0.5, 0.5, 10**6))

    async def work(here: Node) -> None:
        edge = await here.edge(1)
        async with serving_here(neighbour(answer)) as url:
            ref = (await owned_by_liar(edge, url))[0]
            _, near, _ = edge.sources.supplies()
            with pytest.raises(error):
                await near.get(ref)
            assert near.holds(ref) is (None if answer is failing else False), "it is left alone, if it is at fault"
            assert ref.id not in edge.held

    run(cloud_url, tmp_path, work)


def test_a_neighbour_never_sees_the_clouds_key(cloud_url: str, tmp_path: Path) -> None:
    seen: list[Request] = []

    async def work(here: Node) -> None:
        for number, site_key in enumerate((None, "site-secret-0123456789")):
            async with (
                bare_edge(here.uplink.url, tmp_path, number, api_key="cloud-secret", site_key=site_key) as edge,
                serving_here(neighbour(wrong, seen)) as url,
            ):
                if site_key is None:
                    for ref in await owned_by_liar(edge, url):
                        await edge.sources.get(ref)
                else:
                    edge.neighbours.add(url, url)
                    await edge.neighbours.probe()
            assert seen and all(("authorization" in request.headers) is bool(site_key) for request in seen)
            assert not any(b"-secret" in value for request in seen for _, value in request.headers.raw)
            seen.clear()

    run(cloud_url, tmp_path, work)


def test_edges_of_other_models_and_oneself_are_no_neighbours(cloud_url: str, tmp_path: Path) -> None:
    async def introduce_other(request: Request) -> Response:
        return JSONResponse({"edge": LIAR, "model": "0" * 64})

    async def nonsense(request: Request) -> Response:
        return Response(b'{"edge": 5}')

    async def work(here: Node) -> None:
        edge = await here.edge(1)
        for answer in (introduce_other, nonsense):
            async with serving_here(Starlette(routes=[Route("/v1/edge", answer)])) as url:
                edge.neighbours.add(url, url)
                edge.neighbours.add(edge.url, edge.url)
                edge.neighbours.add("gone", "http://127.0.0.1:1")
                await edge.neighbours.probe()
                assert edge.neighbours.usable() == []
                assert edge.neighbours.candidates(edge.refs("manual")[0].id) == [None]

    run(cloud_url, tmp_path, work)


def test_a_neighbour_that_comes_back_is_used_again(cloud_url: str, tmp_path: Path) -> None:
    async def work(here: Node) -> None:
        first = await here.edge(1)
        async with bare_edge(here.uplink.url, tmp_path, 2) as second:
            await introduce(first, second)
            assert [one.edge for one in first.neighbours.usable()] == [second.edge]
            port = second.url
        await first.neighbours.probe()
        assert first.neighbours.usable() == []
        async with bare_edge(here.uplink.url, tmp_path, 2) as second:
            first.neighbours.add(port, second.url)
            await first.neighbours.probe()
            assert [one.edge for one in first.neighbours.usable()] == [second.edge]

    run(cloud_url, tmp_path, work)
