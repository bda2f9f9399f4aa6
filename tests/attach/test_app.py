"""What passes through `preread attach` passes as it is: bytes, headers, streams, errors, and clients that leave.

The server behind it is a stub here, which says what it got; test_llama_server.py has a real one.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from preread.attach.app import MOST_READ_BYTES, create_app, onward, with_contexts
from preread.attach.attached import Attached
from preread.attach.counts import Counts
from preread.attach.published import Published
from preread.attach.server import Server
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.testing.cloud import serving


class _Upstream:
    """Says what it got; streams until it is told to go on; notices who leaves."""

    def __init__(self) -> None:
        self.go_on, self.left, self.asked = threading.Event(), threading.Event(), threading.Event()
        routes = [
            Route("/stream", self.stream, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/{path:path}", self.echo, methods=["GET", "POST", "PUT", "DELETE"]),
        ]
        self.app = Starlette(routes=routes)

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        told = {
            "method": request.method,
            "target": request.scope["raw_path"].decode() + "?" + request.url.query,
            "headers": {name: value for name, value in request.headers.items()},
            "length": len(body),
            "body": body[:2000].decode("latin-1"),
        }
        own = {"X-Own": "1", "Connection": "x-hop", "X-Hop": "2"}
        return JSONResponse(told, 418 if "teapot" in request.url.path else 200, headers=own)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "small", "object": "model"}]})

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncGenerator[bytes, None]:
            try:
                yield b"data: one\n\n"
                self.asked.set()
                while not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                yield b"data: two\n\n"
            finally:
                if not self.go_on.is_set():
                    self.left.set()

        return StreamingResponse(events(), media_type="text/event-stream")


class _Nothing:
    """Stands where `Published` and `Trust` stand: nothing is published, and nothing may be restored."""

    model, refused, properties = "small", "it is a stub", None

    def all(self) -> list[Any]:
        return []


@asynccontextmanager
async def _attached(url: str, key: str | None = None) -> AsyncGenerator[Attached, None]:
    server, nothing = Server(url, key), cast(Any, _Nothing())
    yield Attached(server, nothing, cast(Published, nothing), nothing, nothing, Counts())
    await server.aclose()


@pytest.fixture
def upstream() -> Iterator[tuple[_Upstream, str]]:
    stub = _Upstream()
    with serving(stub.app) as url:
        yield stub, url


@pytest.fixture
def proxy(upstream: tuple[_Upstream, str]) -> Iterator[str]:
    with serving(create_app(lambda: _attached(upstream[1]))) as url:
        yield url


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_method_target_headers_and_body_go_on_as_they_are(proxy: str, method: str) -> None:
    headers = {"Authorization": "Bearer own", "X-Mine": "1", "Connection": "X-Once", "X-Once": "1", "Accept": "a/b"}
    body = None if method == "GET" else b'{"a": 1.50,  "b":"\\u00e9"}'
    answer = httpx2.request(method, f"{proxy}/a%2Fb/c?q=%20x&q=2", content=body, headers=headers, trust_env=False)
    told = answer.json()
    assert told["method"] == method and told["target"] == "/a%2Fb/c?q=%20x&q=2"
    assert told["body"] == (body or b"").decode()
    assert told["headers"]["authorization"] == "Bearer own" and told["headers"]["x-mine"] == "1"
    assert told["headers"]["accept"] == "a/b" and "x-once" not in told["headers"]
    assert answer.headers["x-own"] == "1" and "x-hop" not in answer.headers


def test_a_chat_without_a_context_is_passed_on_byte_for_byte(proxy: str) -> None:
    body = b'{"messages":[{"role":"user","content":"caf\\u00e9"}],  "temperature": 1.50}'
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(f"{proxy}/v1/chat/completions", content=body, headers=headers, trust_env=False)
    assert answer.json()["body"].encode("latin-1") == body


def test_a_body_of_any_size_goes_on(proxy: str) -> None:
    body, headers = b"x" * (MOST_READ_BYTES + 5), {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/anything"):
        answer = httpx2.post(f"{proxy}{path}", content=body, headers=headers, trust_env=False, timeout=60)
        assert answer.json()["length"] == len(body)


def test_a_body_that_comes_in_pieces_of_no_stated_length_goes_on(proxy: str) -> None:
    answer = httpx2.post(f"{proxy}/anything", content=iter([b"one ", b"two"]), trust_env=False)
    assert answer.json()["body"] == "one two"


def test_an_error_of_the_servers_is_its_own(proxy: str) -> None:
    assert httpx2.get(f"{proxy}/teapot", trust_env=False).status_code == 418


def test_a_stream_comes_piece_by_piece(proxy: str, upstream: tuple[_Upstream, str]) -> None:
    with httpx2.stream("POST", f"{proxy}/stream", content=b"", trust_env=False, timeout=60) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"data: one\n\n"  # the second one is not there yet
        upstream[0].go_on.set()
        assert b"".join(pieces) == b"data: two\n\n"


def test_a_client_that_leaves_ends_the_request_behind(proxy: str, upstream: tuple[_Upstream, str]) -> None:
    with httpx2.stream("POST", f"{proxy}/stream", content=b"", trust_env=False, timeout=60) as answer:
        next(answer.iter_raw())
    assert upstream[0].left.wait(60)


def test_a_server_that_is_not_there_is_told_as_that() -> None:
    with serving(create_app(lambda: _attached("http://127.0.0.1:9"))) as url:
        answer = httpx2.get(f"{url}/anything", trust_env=False)
        assert answer.status_code == 504 and "llama-server" in answer.json()["error"]["message"]


def test_keys_of_clients_do_not_go_on_and_the_servers_own_does(upstream: tuple[_Upstream, str]) -> None:
    access = Access(Keys.of(["a-key-of-a-client-0123456789"], "ask"))
    with serving(create_app(lambda: _attached(upstream[1], "the-servers"), access)) as url:
        assert httpx2.get(f"{url}/x", trust_env=False).status_code == 401
        headers = {"Authorization": "Bearer a-key-of-a-client-0123456789"}
        told = httpx2.get(f"{url}/x", headers=headers, trust_env=False).json()
        assert told["headers"]["authorization"] == "Bearer the-servers"


def test_a_server_at_a_unix_socket_is_reached(tmp_path: Path, upstream: tuple[_Upstream, str]) -> None:
    path = tmp_path / "server.sock"
    config = uvicorn.Config(upstream[0].app, uds=str(path), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        with serving(create_app(lambda: _attached(f"unix:{path}"))) as url:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            assert httpx2.get(f"{url}/x", trust_env=False).json()["target"] == "/x?"
    finally:
        server.should_exit = True
        thread.join()


def test_what_passes_is_counted_and_models_without_contexts_are_the_servers_own(proxy: str) -> None:
    httpx2.get(f"{proxy}/x", trust_env=False)
    text = httpx2.get(f"{proxy}/preread/metrics", trust_env=False).text
    assert 'preread_attach_requests_total{way="passed"} 1.0' in text
    assert httpx2.get(f"{proxy}/v1/models", trust_env=False).json()["data"] == [{"id": "small", "object": "model"}]


def test_each_context_is_listed_as_a_model() -> None:
    assert b'"small@manual"' in with_contexts(b'{"data":[{"id":"small"}]}', ["manual"])


@given(st.binary(max_size=50) | st.sampled_from([b"[]", b'{"data":[]}', b'{"data":[1]}', b'{"data":[{}]}']))
def test_a_list_of_models_that_is_none_is_left_as_it_is(body: bytes) -> None:
    assert with_contexts(body, ["manual"]) == body


@given(st.lists(st.tuples(st.sampled_from([b"A", b"X-B", b"TE", b"Host", b"c"]), st.binary(max_size=4)), max_size=6))
def test_headers_of_one_connection_never_go_on(headers: list[tuple[bytes, bytes]]) -> None:
    kept = onward([*headers, (b"Connection", b"x-b, close")])
    assert {name for name, _ in kept} <= {b"a", b"c"}
    assert [value for _, value in kept] == [value for name, value in headers if name in (b"A", b"c")]
