"""Whom a cloud listens to: keys and their scopes, names that it is called by, pages of other origins."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from preread.cloud.app import create_app
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher, serving

DOCUMENT = {"name": "manual", "text": "A long shared context."}
PAGE = "https://app.example"


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def keyed(store: Objects) -> Iterator[httpx2.Client]:
    access = Access(Keys.of(["reader", "publish:writer", "ask:asker"], "read"), origins=frozenset({PAGE}))
    with serving(create_app(store, RandomPublisher(store), access)) as url:
        with httpx2.Client(base_url=url, trust_env=False) as client:
            yield client


@pytest.fixture
def keyless(store: Objects) -> Iterator[httpx2.Client]:
    access = Access(hosts=frozenset({"cloud.example"}))
    with serving(create_app(store, RandomPublisher(store), access)) as url:
        with httpx2.Client(base_url=url, trust_env=False) as client:
            yield client


def bearer(key: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {key}"}


def code_of(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_a_key_that_an_edge_needs_to_read_neither_publishes_nor_removes(keyed: httpx2.Client) -> None:
    assert keyed.post("/v1/contexts", json=DOCUMENT, headers=bearer("writer")).status_code == 200
    before = keyed.get("/v1/catalogue", headers=bearer("reader")).content
    overwriting = keyed.post("/v1/contexts", json=DOCUMENT | {"text": "Call 666."}, headers=bearer("reader"))
    removing = keyed.delete("/v1/contexts/manual", headers=bearer("reader"))
    for refused in (overwriting, removing):
        assert (refused.status_code, code_of(refused)) == (403, "insufficient_scope")
        assert "scope read; this needs publish" in refused.json()["error"]["message"]
        assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="publish"'
    assert keyed.get("/v1/catalogue", headers=bearer("writer")).content == before


def test_a_key_for_questions_reads_nothing(keyed: httpx2.Client) -> None:
    for path in ("/v1/catalogue", "/v1/segments/" + "a" * 64, "/nowhere"):
        assert keyed.get(path, headers=bearer("asker")).status_code == 403
    assert keyed.head("/v1/catalogue", headers=bearer("asker")).status_code == 403


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEARER"])
def test_bearer_in_any_case(keyed: httpx2.Client, scheme: str) -> None:
    assert keyed.get("/v1/catalogue", headers=bearer("reader", scheme)).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]", "Cloud.Example:8000"])
def test_without_keys_known_names_are_answered(keyless: httpx2.Client, host: str) -> None:
    assert keyless.get("/v1/catalogue", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "localhost, x"])
def test_without_keys_a_page_that_lets_its_name_point_here_is_told_nothing(keyless: httpx2.Client, host: str) -> None:
    keyless.post("/v1/contexts", json=DOCUMENT)
    asked = {"Host": host}
    answers = [
        keyless.get("/v1/catalogue", headers=asked),
        keyless.get("/health", headers=asked),
        keyless.post("/v1/contexts", json=DOCUMENT, headers=asked),
        keyless.delete("/v1/contexts/manual", headers=asked),
    ]
    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (421, "unknown_host")
        assert "--allow-host" in answer.json()["error"]["message"]
    assert len(keyless.get("/v1/catalogue").json()["contexts"]) == 1


def test_with_keys_any_name_is_answered(keyed: httpx2.Client) -> None:
    answer = keyed.get("/v1/catalogue", headers=bearer("reader") | {"Host": "cloud.elsewhere"})
    assert answer.status_code == 200


def test_a_page_of_an_allowed_origin_may_ask_and_still_needs_a_key(keyed: httpx2.Client) -> None:
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-any"}
    preflight = keyed.options("/v1/contexts", headers={"Origin": PAGE} | wanted)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = keyed.get("/v1/catalogue", headers={"Origin": PAGE})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE
    answered = keyed.get("/v1/catalogue", headers={"Origin": PAGE} | bearer("reader"))
    assert answered.status_code == 200 and answered.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "null"])
def test_a_page_of_another_origin_may_not(keyed: httpx2.Client, keyless: httpx2.Client, origin: str) -> None:
    wanted = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for client in (keyed, keyless):
        preflight = client.options("/v1/contexts", headers=wanted)
        assert preflight.status_code >= 400 and "access-control-allow-origin" not in preflight.headers
        assert "access-control-allow-origin" not in client.get("/health", headers=wanted).headers
