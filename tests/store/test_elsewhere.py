"""Segments from a bucket or a cache that a cloud names: over real HTTP, with real faults."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from preread.cloud import origins as named
from preread.cloud.app import create_app
from preread.cloud.publish import refuse
from preread.errors import UsageError
from preread.store.egress import CloudLink
from preread.store.guard import Access
from preread.store.objects import Objects, open_store
from preread.testing.cloud import serving
from preread.testing.store import objects_of, publish
from preread.values import ObjectRef
from preread.wire import origins as wire
from preread.wire.origins import Origins


@dataclass
class Bucket:
    """A public bucket over a store's folder, and what is asked of it."""

    folder: Path
    asked: list[Request] = field(default_factory=list)
    answer: Callable[[bytes], Response] = Response
    url: str = ""

    async def serve(self, request: Request) -> Response:
        self.asked.append(request)
        file = self.folder / request.path_params["key"]
        return self.answer(file.read_bytes()) if file.is_file() else Response(status_code=404)


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path))


@pytest.fixture
def segments(store: Objects) -> list[ObjectRef]:
    keys = sorted(objects_of(store, publish(store, "manual", "a text of some length")))
    ids = [id for kind, id in keys if kind == "segments"]
    sizes = [asyncio.run(store.size("segments", id)) or 0 for id in ids]
    return [ObjectRef("segments", id, size_bytes) for id, size_bytes in zip(ids, sizes, strict=True)]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    there = Bucket(tmp_path)
    with serving(Starlette(routes=[Route("/public/{key:path}", there.serve)])) as url:
        there.url = f"{url}/public"
        yield there


def fetched(app: Starlette, refs: list[ObjectRef], *, elsewhere: bool = True) -> tuple[list[bytes], list[str]]:
    """What an edge gets, and what it asked the cloud for."""
    asked: list[str] = []

    async def counted(scope: dict[str, object], receive: object, send: object) -> None:
        if scope["type"] == "http":
            asked.append(str(scope["path"]))
        await app(scope, receive, send)  # type: ignore[arg-type]

    async def main(url: str) -> list[bytes]:
        async with CloudLink(url, api_key="secret", elsewhere=elsewhere) as link:
            await link.learn_origins()
            got = [await link.get(ref) for ref in refs]
            assert link.received_bytes >= sum(ref.size_bytes for ref in refs if ref.kind == "segments")
            return got

    with serving(counted) as url:  # type: ignore[arg-type]
        return asyncio.run(main(url)), asked


def cloud(store: Objects, origins: Origins, sign: Callable[[str], Awaitable[str]] | None = None) -> Starlette:
    return create_app(store, refuse, Access(), elsewhere=named.Named(origins, sign))


def test_segments_come_from_the_origin_and_everything_else_from_the_cloud(
    store: Objects, segments: list[ObjectRef], bucket: Bucket
) -> None:
    (entry,) = asyncio.run(store.names())
    manifest = ObjectRef("manifests", entry.manifest.id, entry.manifest.size_bytes)
    got, asked = fetched(cloud(store, Origins((bucket.url,))), [*segments, manifest])
    assert [len(data) for data in got] == [ref.size_bytes for ref in [*segments, manifest]]
    assert asked == ["/v1/origins", f"/v1/manifests/{manifest.id}"]
    assert [one.url.path for one in bucket.asked] == [f"/public{wire.segment_path(ref.id)}" for ref in segments]
    assert not any("authorization" in one.headers for one in bucket.asked)


@pytest.mark.parametrize(
    "answer",
    [
        lambda data: Response(status_code=403),
        lambda data: Response(status_code=503),
        lambda data: Response(data[:-1]),
        lambda data: Response(bytes(len(data))),
        lambda data: StreamingResponse(iter([bytes(len(data) + 1)])),
        lambda data: StreamingResponse(iter([bytes(10)]), headers={"Content-Length": str(len(data))}),  # breaks off
        lambda data: Response(status_code=302, headers={"Location": "http://127.0.0.1:1/"}),
        lambda data: Response(status_code=404),
    ],
)
def test_whatever_is_wrong_with_an_origin_the_cloud_is_asked_after_all(
    store: Objects, segments: list[ObjectRef], bucket: Bucket, answer: Callable[[bytes], Response]
) -> None:
    bucket.answer = answer
    got, asked = fetched(cloud(store, Origins((bucket.url,))), segments)
    assert got == [asyncio.run(store.read("segments", ref.id)) for ref in segments]
    assert asked[1:] == [f"/v1/segments/{ref.id}" for ref in segments] and bucket.asked


def test_an_origin_that_is_not_there_is_tried_once_and_left_alone(store: Objects, segments: list[ObjectRef]) -> None:
    got, asked = fetched(cloud(store, Origins(("http://127.0.0.1:1",))), segments)
    assert len(got) == len(segments) == len(asked) - 1


def test_an_edge_asks_no_origin_where_it_is_told_so_and_none_of_its_own_network(
    store: Objects, segments: list[ObjectRef], bucket: Bucket
) -> None:
    for origins, elsewhere in ((Origins((bucket.url,)), False), (Origins(("http://169.254.169.254",)), True)):
        got, _ = fetched(cloud(store, origins), segments, elsewhere=elsewhere)
        assert len(got) == len(segments) and not bucket.asked


def test_signed_addresses_are_asked_for_and_only_those_that_begin_as_was_said(
    store: Objects, segments: list[ObjectRef], bucket: Bucket
) -> None:
    async def sign(key: str) -> str:
        return f"{bucket.url}/{key}?signature=x%2Fy"

    got, asked = fetched(cloud(store, Origins((bucket.url,), signed=True), sign), segments)
    assert got == [asyncio.run(store.read("segments", ref.id)) for ref in segments]
    assert len(asked) == 1 + len(segments) and len(bucket.asked) == len(segments)
    assert all(one.url.query == "signature=x%2Fy" and "authorization" not in one.headers for one in bucket.asked)

    async def astray(key: str) -> str:
        return f"http://169.254.169.254/{key}"

    got, asked = fetched(cloud(store, Origins((bucket.url,), signed=True), astray), segments)
    assert len(got) == len(segments) and len(bucket.asked) == len(segments)


def test_an_edge_of_before_gets_everything_from_a_cloud_that_signs(store: Objects, segments: list[ObjectRef]) -> None:
    async def sign(key: str) -> str:
        raise AssertionError("nobody asked for that")

    app = cloud(store, Origins(("http://127.0.0.1:1",), signed=True), sign)
    got, _ = fetched(app, segments, elsewhere=False)
    assert len(got) == len(segments)


def test_what_no_edge_would_go_to_cannot_be_named(store: Objects) -> None:
    for public, signed_s, why in (
        (("http://cdn.example",), None, "not HTTPS"),
        (("https://10.0.0.1",), None, "private network"),
        (("https://a.example",) * 5, None, "at most 4"),
        (("https://a.example",), 60, "not both"),
        ((), 60, "no bucket"),
        ((), 0, "signed for 1 to"),
    ):
        with pytest.raises(UsageError, match=why):
            asyncio.run(named.named(store, public, signed_s))
    assert asyncio.run(named.named(store, ("https://a.example/p/",), None)).origins.origins == ("https://a.example/p",)
