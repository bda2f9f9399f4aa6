"""The site's key is proved, never sent: edges with it share, and nobody else learns anything that helps."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preread.cloud import events
from preread.cloud.app import create_app as create_cloud
from preread.edge.proof import RENEWED_S, Prover
from preread.errors import CorruptData, RemoteError
from preread.store.egress import NeighbourLink
from preread.store.objects import open_store
from preread.testing.cloud import FINGERPRINT, RandomPublisher, serving
from preread.testing.edges import BareEdge, bare_edge, introduce, serving_here
from preread.wire.neighbour import Claim, Introduction, SiteKey

SECRET, OTHER = "site-secret-0123456789", "another-secret-0123456789"
Work = Callable[[list[BareEdge]], Awaitable[None]]


@pytest.fixture(scope="module")
def cloud_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publisher = RandomPublisher(store, ("lossless",), chunk_tokens=64)
    asyncio.run(publisher(events.Request("manual", "m" * 400, form="text"), lambda *_: None))
    with serving(create_cloud(store, publisher)) as url:
        yield url


def with_edges(cloud_url: str, folder: Path, keys: tuple[str | None, ...], work: Work) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), AsyncExitStack() as stack:
            opening = [bare_edge(cloud_url, folder, number, site_key=key) for number, key in enumerate(keys)]
            await work([await stack.enter_async_context(edge) for edge in opening])

    asyncio.run(main())


class Eavesdropper:
    """A neighbour that passes everything on to another edge, keeps what it hears, and may answer by itself."""

    def __init__(self, target: str = "") -> None:
        self.target, self.heard = target, list[Request]()

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.relay)])

    async def relay(self, request: Request) -> Response:
        self.heard.append(request)
        if not self.target:
            return JSONResponse({"edge": "f" * 16, "model": FINGERPRINT, "nonce": "1" * 32, "proof": "2" * 64})
        async with httpx2.AsyncClient(trust_env=False) as client:
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            answer = await client.get(f"{self.target}{request.url.path}", headers=headers)
        return Response(answer.content, answer.status_code)


def test_edges_of_one_site_share_and_the_key_is_not_in_what_they_say(cloud_url: str, tmp_path: Path) -> None:
    async def work(edges: list[BareEdge]) -> None:
        first, second = edges
        await introduce(*edges)
        whole = await first.load("manual")
        before = first.link.received_bytes
        assert await second.load("manual") == whole
        (near,) = second.neighbours.usable()
        assert near.received_bytes and first.link.received_bytes == before

    with_edges(cloud_url, tmp_path, (SECRET, SECRET), work)


@pytest.mark.parametrize("keys", [(SECRET, OTHER), (SECRET, None), (None, SECRET)])
def test_edges_without_the_same_key_neither_ask_nor_serve(
    cloud_url: str, tmp_path: Path, keys: tuple[str | None, ...]
) -> None:
    async def work(edges: list[BareEdge]) -> None:
        await introduce(*edges)
        assert [edge.neighbours.usable() for edge in edges] == [[], []]
        assert await edges[0].load("manual") == await edges[1].load("manual")

    with_edges(cloud_url, tmp_path, keys, work)


def test_a_stranger_hears_neither_the_key_nor_what_an_edge_wants(cloud_url: str, tmp_path: Path) -> None:
    async def work(edges: list[BareEdge]) -> None:
        (edge,) = edges
        fake = Eavesdropper()
        async with serving_here(fake.app) as url:
            edge.neighbours.add(url, url)
            await edge.neighbours.probe()
            await edge.load("manual")
        assert {request.url.path for request in fake.heard} == {"/v1/edge"}
        said = repr([request.headers.raw for request in fake.heard])
        assert SECRET not in said and "Bearer" not in said and "proof" not in said

    with_edges(cloud_url, tmp_path, (SECRET,), work)


def test_nobody_can_stand_between_two_edges(cloud_url: str, tmp_path: Path) -> None:
    """A proof names the address that was dialled: one that was passed on is of no use."""

    async def work(edges: list[BareEdge]) -> None:
        first, second = edges
        await first.load("manual")
        between = Eavesdropper(first.url)
        async with serving_here(between.app) as url:
            second.neighbours.add(url, url)
            await second.neighbours.probe()
            assert second.neighbours.usable() == []
            await second.load("manual")
        assert {request.url.path for request in between.heard} == {"/v1/edge"}

    with_edges(cloud_url, tmp_path, (SECRET, SECRET), work)


def test_what_was_overheard_opens_nothing_else(cloud_url: str, tmp_path: Path) -> None:
    async def work(edges: list[BareEdge]) -> None:
        edge, other = edges
        refs = edge.refs("manual")
        link = NeighbourLink(edge.url, "c" * 16, SiteKey(SECRET))
        said = await link.introduction()
        await link.get(refs[0])
        host, port = "127.0.0.1", int(edge.url.rpartition(":")[2])
        wanted = link._wanted(f"/v1/segments/{refs[0].id}", (), refs[0].size_bytes)
        assert wanted.prove is not None
        ((_, overheard),) = wanted.prove(host, port)
        async with httpx2.AsyncClient(trust_env=False) as client:

            async def status(url: str, authorization: str) -> int:
                return (await client.get(url, headers={"Authorization": authorization})).status_code

            assert await status(f"{edge.url}/v1/segments/{refs[0].id}", overheard) == 200, "it was seen in the clear"
            assert await status(f"{edge.url}/v1/segments/{refs[1].id}", overheard) == 401
            assert await status(f"{other.url}/v1/segments/{refs[0].id}", overheard) == 401
            answered = (await client.get(f"{edge.url}/v1/edge", headers={"Authorization": overheard})).json()
            shown = str(Claim(said.edge, said.nonce, answered["proof"]))
            assert await status(f"{edge.url}/v1/segments/{refs[0].id}", shown) == 401, "an answer is no request"
            for wrong in ("", f"Bearer {SECRET}", "Preread-Site", str(Claim("c" * 16, secrets.token_hex(16)))):
                assert await status(f"{edge.url}/v1/segments/{refs[0].id}", wrong) == 401
        await link.aclose()

    with_edges(cloud_url, tmp_path, (SECRET, SECRET), work)


def test_a_proof_is_good_for_some_minutes() -> None:
    key, now = SiteKey(SECRET), 0.0
    prover = Prover(key, Introduction("b" * 16, FINGERPRINT), lambda: now)
    asker = Claim("a" * 16, "1" * 32)

    def request() -> str:
        said = prover.introduce(str(asker), "here")
        return str(Claim(asker.edge, asker.nonce, key.request(asker, said.edge, said.nonce, "here", "/x")))

    first = request()
    assert prover.admits(first, "here", "/x")
    now = RENEWED_S
    second = request()
    assert second != first and prover.admits(first, "here", "/x") and prover.admits(second, "here", "/x")
    now = 2 * RENEWED_S
    assert request() and not prover.admits(first, "here", "/x") and prover.admits(second, "here", "/x")
    now = 5 * RENEWED_S
    assert not prover.admits(second, "here", "/x"), "however rarely somebody asks"


def test_who_cannot_prove_is_told_apart(cloud_url: str, tmp_path: Path) -> None:
    async def work(edges: list[BareEdge]) -> None:
        keyed, plain = edges
        async with NeighbourLink(plain.url, "c" * 16, SiteKey(SECRET)) as link:
            with pytest.raises(CorruptData, match="does not prove"):
                await link.introduction()
        async with NeighbourLink(keyed.url, "c" * 16) as link:
            with pytest.raises(RemoteError, match="give --site-key"):
                await link.introduction()

    with_edges(cloud_url, tmp_path, (SECRET, None), work)
