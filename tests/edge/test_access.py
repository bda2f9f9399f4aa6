"""Whom an edge listens to: keys for questions, names that it is called by, pages of other origins."""

from typing import Any

import httpx2
import pytest

from preread.edge.app import create_app
from preread.store.auth import Keys
from preread.store.guard import Access

QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
PAGE = "http://localhost:3000"


def asked(edge: Any, access: Access, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
    """What an edge answers; the host is localhost unless `headers` say otherwise."""

    async def main() -> httpx2.Response:
        transport = httpx2.ASGITransport(create_app(edge.opened, access))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = QUESTION if method == "POST" else None
            return await client.request(method, path, headers=headers, json=body)

    answer: httpx2.Response = edge.run(main)
    return answer


def test_only_a_key_for_questions_asks(edge: Any) -> None:
    access = Access(Keys.of(["asker", "read:reader", "publish:writer"], "ask"))

    def status(key: str, scheme: str = "Bearer") -> int:
        headers = {"Authorization": f"{scheme} {key}", "Host": "edge.elsewhere"}
        return asked(edge, access, "POST", "/v1/chat/completions", headers).status_code

    assert status("asker") == status("asker", "bearer") == 200
    assert status("reader") == status("writer") == 403
    refused = asked(edge, access, "GET", "/v1/models", {"Authorization": "Bearer writer"})
    assert "has the scope publish, read; this needs ask" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/health")]
)
def test_without_keys_a_page_that_lets_its_name_point_here_is_told_nothing(edge: Any, method: str, path: str) -> None:
    evil = asked(edge, Access(), method, path, {"Host": "evil.example"})
    assert evil.status_code == 421 and "--allow-host" in evil.json()["error"]["message"]
    for access, host in ((Access(), "localhost:8080"), (Access(hosts=frozenset({"*"})), "evil.example")):
        assert asked(edge, access, method, path, {"Host": host}).status_code == 200


def test_a_page_of_an_allowed_origin_asks_and_one_of_another_does_not(edge: Any) -> None:
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-stainless-os"}
    access = Access(origins=frozenset({PAGE}))
    preflight = asked(edge, access, "OPTIONS", "/v1/chat/completions", {"Origin": PAGE} | wanted)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    near = wanted | {"Access-Control-Request-Private-Network": "true"}
    preflight = asked(edge, access, "OPTIONS", "/v1/chat/completions", {"Origin": PAGE} | near)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-private-network"] == "true"
    answer = asked(edge, access, "POST", "/v1/chat/completions", {"Origin": PAGE})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE
    for other, origin in ((access, "https://evil.example"), (Access(), PAGE)):
        preflight = asked(edge, other, "OPTIONS", "/v1/chat/completions", {"Origin": origin} | wanted)
        assert preflight.status_code >= 400 and "access-control-allow-origin" not in preflight.headers
