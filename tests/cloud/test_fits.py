"""Fits over real HTTP: pushed, listed, given by digest, refused, and who may do what."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from preread.align import mapping_bytes
from preread.cloud import client, fits
from preread.cloud.app import create_app
from preread.codec import profile_bytes
from preread.errors import Absent, CorruptData, UsageError
from preread.store.auth import Keys
from preread.store.egress import CloudLink
from preread.store.guard import Access
from preread.store.objects import Objects, open_store
from preread.testing.cloud import FINGERPRINT, MODEL, RandomPublisher, serving
from preread.testing.fits import FILES, LARGE, MAPPING, SHAPE, SMALL
from preread.testing.profile import plain_profile
from preread.testing.store import publish, put_profile_of
from preread.values import Fingerprint, ObjectId, ObjectRef
from preread.wire import fits as wire
from preread.wire.digest import object_id
from preread.wire.fits import FitKind

MODELS = {SMALL: "small", LARGE: "large"}


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def url(store: Objects) -> Iterator[str]:
    with serving(create_app(store, RandomPublisher(store), models=MODELS)) as url:
        yield url


@pytest.fixture
def raw(url: str) -> Iterator[httpx2.Client]:
    headers = {"Content-Type": fits.MEDIA}
    with httpx2.Client(base_url=url, trust_env=False, headers=headers) as raw:
        yield raw


def fetched(url: str, id: ObjectId, size_bytes: int) -> bytes:
    async def get() -> bytes:
        async with CloudLink(url) as link:
            return await link.get(ObjectRef("fits", id, size_bytes))

    return asyncio.run(get())


@pytest.mark.parametrize("kind", FILES)
def test_what_is_pushed_is_listed_and_comes_back_by_its_digest(url: str, kind: FitKind) -> None:
    data = FILES[kind]
    pushed = client.push_fit(url, data)
    (listed,) = client.fits(url)
    assert (listed.kind, listed.id, listed.size_bytes) == (kind, object_id(data), len(data)) and listed.created
    assert (listed.model, listed.large_model) == ("small", "large" if kind in ("map", "guide", "family") else None)
    assert (pushed.id, pushed.measured) == (listed.id, listed.measured)
    assert fetched(url, listed.id, listed.size_bytes) == data


def test_who_asks_as_the_first_release_does_is_told_of_no_kind_that_it_would_refuse(url: str) -> None:
    for data in FILES.values():
        client.push_fit(url, data)
    told = wire.loads(httpx2.get(f"{url}/v1/fits").content).fits
    assert {fit.kind for fit in told} == {"codec", "map", "guide", "decisions"}
    assert len(client.fits(url)) == len(told) + 1


def test_pushing_again_changes_nothing(url: str) -> None:
    for data in FILES.values():
        client.push_fit(url, data)
    before = client.fits(url)
    for data in FILES.values():
        client.push_fit(url, data)
    assert client.fits(url) == before and len(before) == len(FILES)


def test_a_profile_that_is_pushed_becomes_that_of_its_model(url: str, store: Objects) -> None:
    former = put_profile_of(store, SMALL, b"what was there before")
    data = FILES["codec"]
    client.push_fit(url, data)
    assert asyncio.run(store.profile_of(SMALL)) == ObjectRef("profiles", object_id(data), len(data))
    assert asyncio.run(store.size("profiles", former.id)) is None


def test_profiles_that_a_cloud_has_anyway_are_listed_unless_they_are_damaged_or_of_another(
    url: str, store: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    data = FILES["codec"]
    put_profile_of(store, SMALL, data)
    put_profile_of(store, LARGE, data)
    put_profile_of(store, FINGERPRINT, b"no profile")
    (listed,) = client.fits(url)
    assert (listed.kind, listed.fingerprint) == ("codec", SMALL) and listed.measured[0].what == "b4"
    assert fetched(url, listed.id, len(data)) == data
    assert "left out of the fits" in caplog.text


def test_names_of_models_come_from_what_is_published_too(url: str, store: Objects) -> None:
    client.push_fit(url, mapping_bytes.dumps(replace(MAPPING, small=FINGERPRINT, large=Fingerprint("0" * 64))))
    assert client.fits(url)[0].model is None
    publish(store, "manual", "a text")
    assert [(fit.model, fit.large_model) for fit in client.fits(url)] == [(MODEL, None)]


def test_a_fit_is_removed_but_for_the_profile_of_a_model(url: str) -> None:
    for data in FILES.values():
        client.push_fit(url, data)
    for kind, data in FILES.items():
        if kind == "codec":
            with pytest.raises(UsageError, match="push another"):
                client.remove_fit(url, object_id(data))
        else:
            client.remove_fit(url, object_id(data))
    assert [fit.kind for fit in client.fits(url)] == ["codec"]
    with pytest.raises(UsageError, match="there is no fit"):
        client.remove_fit(url, object_id(FILES["map"]))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"nonsense", "does not end as an archive"),
        (FILES["map"][:-1], "does not end as an archive"),
        (FILES["codec"] + b"\0", "its head implies"),
        (FILES["decisions"].replace(b"1.9", b"0.0"), ">= 0.01"),
        (b"", "does not end as an archive"),
    ],
)
def test_hostile_bytes_are_refused_with_a_reason(raw: httpx2.Client, data: bytes, told: str) -> None:
    answer = raw.put(f"/v1/fits/{object_id(data)}", content=data)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    assert wire.loads(raw.get("/v1/fits").content).fits == ()
    assert raw.get(f"/v1/fits/{object_id(data)}").status_code == 404


def test_bytes_under_another_name_are_refused(raw: httpx2.Client) -> None:
    answer = raw.put(f"/v1/fits/{'0' * 64}", content=FILES["map"])
    assert answer.status_code == 400 and "[digest]" in answer.json()["error"]["message"]
    assert raw.put("/v1/fits/map.npz", content=FILES["map"]).status_code == 400
    assert wire.loads(raw.get("/v1/fits").content).fits == ()


def test_what_a_web_page_may_send_without_asking_is_refused(raw: httpx2.Client) -> None:
    for media in ("text/plain", "application/json", ""):
        answer = raw.put(f"/v1/fits/{object_id(FILES['map'])}", content=FILES["map"], headers={"Content-Type": media})
        assert answer.status_code == 415


def test_what_is_too_large_is_refused_before_it_is_read(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "MAX_FIT_BYTES", 1000)
    data = b"x" * 5_000_000
    with serving(create_app(store, RandomPublisher(store))) as url, httpx2.Client(base_url=url, trust_env=False) as raw:
        headers = {"Content-Type": fits.MEDIA}
        told = raw.put(f"/v1/fits/{object_id(data)}", content=data, headers=headers)
        untold = raw.put(f"/v1/fits/{object_id(data)}", content=iter([data[:900], data]), headers=headers)
    assert told.status_code == untold.status_code == 413


def test_bodies_that_come_at_once_have_a_bound(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "MOST_COMING_BYTES", 1000)
    data = FILES["map"]
    with serving(create_app(store, RandomPublisher(store))) as url, httpx2.Client(base_url=url, trust_env=False) as raw:
        headers = {"Content-Type": fits.MEDIA}
        answer = raw.put(f"/v1/fits/{object_id(data)}", content=data, headers=headers)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        small = FILES["decisions"]
        for _ in range(8):  # together more than the bound: what was read is given back
            assert raw.put(f"/v1/fits/{object_id(small)}", content=small, headers=headers).status_code == 200


def test_a_cloud_that_lists_all_that_it_may_takes_only_what_replaces_something(
    url: str, store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_profile_of(store, SMALL, FILES["codec"])
    monkeypatch.setattr(fits, "MAX_FITS", 1)
    with pytest.raises(UsageError, match="fits rm"):
        client.push_fit(url, FILES["guide"])
    other = profile_bytes.dumps(plain_profile(SMALL, SHAPE, 4, {"b2": (0.2, 0.02)}))
    for data in (FILES["codec"], other, other):
        client.push_fit(url, data)
        assert [fit.id for fit in client.fits(url)] == [object_id(data)]
    monkeypatch.setattr(fits, "MAX_FITS", 2)
    client.push_fit(url, FILES["guide"])
    client.push_fit(url, FILES["guide"])  # it is there
    assert len(client.fits(url)) == 2


def test_reading_takes_a_key_and_pushing_one_that_may_publish(store: Objects) -> None:
    keys = Keys.of(["publish:writer", "reader"], "read")
    with serving(create_app(store, RandomPublisher(store), Access(keys))) as url:
        data = FILES["guide"]
        for key, told in ((None, "needs an API key"), ("reader", "has the scope read")):
            with pytest.raises(UsageError, match=told):
                client.push_fit(url, data, api_key=key)
        client.push_fit(url, data, api_key="writer")
        assert len(client.fits(url, api_key="reader")) == 1
        with pytest.raises(UsageError, match="has the scope read"):
            client.remove_fit(url, object_id(data), api_key="reader")
        for path in ("/v1/fits", f"/v1/fits/{object_id(data)}"):
            assert httpx2.get(url + path, trust_env=False).status_code == 401
        given = httpx2.get(
            f"{url}/v1/fits/{object_id(data)}", headers={"Authorization": "Bearer reader"}, trust_env=False
        )
        assert given.content == data and given.headers["cache-control"].startswith("private")


def test_a_fit_is_given_in_parts_and_never_changes(raw: httpx2.Client, url: str) -> None:
    data = FILES["codec"]
    client.push_fit(url, data)
    path = f"/v1/fits/{object_id(data)}"
    part = raw.get(path, headers={"Range": "bytes=3-9"})
    assert part.status_code == 206 and part.content == data[3:10]
    assert raw.get(path, headers={"If-None-Match": f'"{object_id(data)}"'}).status_code == 304
    assert "immutable" in raw.head(path).headers["cache-control"]


def test_an_older_cloud_is_told_to_be_one() -> None:
    async def old(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        body = json.dumps({"error": {"message": "Not Found", "type": "x", "param": None, "code": "not_found"}}).encode()
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    with serving(old, lifespan="off") as url:
        for ask in (lambda: client.fits(url), lambda: client.push_fit(url, FILES["decisions"])):
            with pytest.raises(Absent, match="older than this command"):
                ask()


def test_a_list_that_is_none_is_refused() -> None:
    async def other(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(other, lifespan="off") as url, pytest.raises(CorruptData):
        client.fits(url)
