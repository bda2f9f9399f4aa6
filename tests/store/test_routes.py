"""Objects over real HTTP: caching headers, ranges, conditions, errors."""

import asyncio
import os
from collections.abc import Iterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from preread.errors import PrereadError, RemoteError
from preread.store.objects import Objects, open_store
from preread.store.routes import PRIVATE, object_routes, on_error, on_http_error
from preread.testing.cloud import serving
from preread.values import Kind, ObjectId, ObjectRef
from preread.wire.digest import object_id

DATA = os.urandom(140_000)


class Broken:
    """A store whose disk is gone."""

    async def size(self, kind: Kind, id: ObjectId) -> int | None:
        raise RemoteError("store ./x cannot be read")

    async def read(self, kind: Kind, id: ObjectId, start: int | None = None, stop: int | None = None) -> bytes | None:
        raise RemoteError("store ./x cannot be read")


def app_of(source: Objects | Broken, cache_control: str | None = None) -> Starlette:
    objects = object_routes(source) if cache_control is None else object_routes(source, cache_control)
    handlers = {PrereadError: on_error, HTTPException: on_http_error}
    return Starlette(routes=objects, exception_handlers=handlers)


@pytest.fixture(scope="module")
def store() -> Objects:
    return open_store("memory:")


@pytest.fixture(scope="module")
def client(store: Objects) -> Iterator[httpx2.Client]:
    with serving(app_of(store)) as url, httpx2.Client(base_url=url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def ref(store: Objects) -> ObjectRef:
    return asyncio.run(store.put("segments", DATA))


def test_object_with_its_headers(client: httpx2.Client, ref: ObjectRef) -> None:
    answer = client.get(f"/v1/segments/{ref.id}")
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{ref.id}"'
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(DATA))


def test_head_is_get_without_a_body(client: httpx2.Client, ref: ObjectRef) -> None:
    head, get = client.head(f"/v1/segments/{ref.id}"), client.get(f"/v1/segments/{ref.id}")
    assert head.status_code == 200 and head.content == b""
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}


@pytest.mark.parametrize(
    ("kind", "media"),
    [
        ("tokens", "application/octet-stream"),
        ("profiles", "application/octet-stream"),
        ("manifests", "application/json"),
    ],
)
def test_other_kinds(client: httpx2.Client, store: Objects, kind: Kind, media: str) -> None:
    ref = asyncio.run(store.put(kind, b"{}"))
    answer = client.get(f"/v1/{kind}/{ref.id}")
    assert (answer.content, answer.headers["content-type"]) == (b"{}", media)
    assert client.get(f"/v1/segments/{ref.id}").status_code == 404


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=139999-", 139_999, 140_000),
        ("bytes=-5", 139_995, 140_000),
    ],
)
def test_ranges(client: httpx2.Client, ref: ObjectRef, header: str, start: int, stop: int) -> None:
    answer = client.get(f"/v1/segments/{ref.id}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, DATA[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert answer.headers["etag"] == f'"{ref.id}"'


def test_range_beyond_the_end(client: httpx2.Client, ref: ObjectRef) -> None:
    answer = client.get(f"/v1/segments/{ref.id}", headers={"Range": "bytes=140000-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */140000"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("if_range", "status"), [("etag", 206), ('"other"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)]
)
def test_if_range(client: httpx2.Client, ref: ObjectRef, if_range: str, status: int) -> None:
    value = f'"{ref.id}"' if if_range == "etag" else if_range
    answer = client.get(f"/v1/segments/{ref.id}", headers={"Range": "bytes=0-9", "If-Range": value})
    assert answer.status_code == status


def test_if_none_match(client: httpx2.Client, ref: ObjectRef) -> None:
    path = f"/v1/segments/{ref.id}"
    answer = client.get(path, headers={"If-None-Match": f'"{ref.id}"'})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["cache-control"].endswith("immutable")
    assert client.head(path, headers={"If-None-Match": "*"}).status_code == 304
    assert client.get(path, headers={"If-None-Match": '"else"'}).content == DATA
    absent = object_id(b"absent")
    assert client.get(f"/v1/segments/{absent}", headers={"If-None-Match": "*"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/v1/segments/{object_id(b'absent')}", 404, "not_found"),
        ("/v1/segments/" + "A" * 64, 400, "bad_id"),
        ("/v1/segments/..%2f..%2fetc", 404, "not_found"),
        ("/v1/prompts/" + "a" * 64, 404, "not_found"),
        ("/", 404, "not_found"),
    ],
)
def test_errors_are_json_and_are_not_cached(client: httpx2.Client, path: str, status: int, code: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["cache-control"] == "no-store"


def test_nothing_can_be_written(client: httpx2.Client, ref: ObjectRef) -> None:
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        answer = client.request(method, f"/v1/segments/{ref.id}")
        assert answer.status_code == 405 and answer.json()["error"]["code"] == "method_not_allowed"
        assert "GET" in answer.headers["allow"]


def test_broken_store_is_an_error_of_the_other_side() -> None:
    with serving(app_of(Broken())) as url:
        answer = httpx2.get(f"{url}/v1/segments/{object_id(b'x')}", trust_env=False)
    assert answer.status_code == 502
    assert answer.json()["error"] == {
        "message": "store ./x cannot be read",
        "type": "server_error",
        "param": None,
        "code": "remote_error",
    }


def test_private_objects_are_not_for_shared_caches(store: Objects, ref: ObjectRef) -> None:
    with serving(app_of(store, PRIVATE)) as url:
        assert httpx2.get(f"{url}/v1/segments/{ref.id}", trust_env=False).headers["cache-control"].startswith("private")
