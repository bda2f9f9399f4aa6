"""Many ask at once: who is let in, who makes way, what a stream says before its first token. How requests may come."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from preread.edge import sending, serving
from preread.edge.app import create_app
from preread.edge.serving import Limits

QUESTION = [{"role": "user", "content": "What is the code of the pump?"}]
LONG = {"messages": QUESTION, "max_tokens": 1500, "temperature": 0, "logit_bias": {"0": -100, "1": -100, "2": -100}}
SHORT = {"messages": QUESTION, "max_tokens": 2, "temperature": 0}


@dataclass
class Call:
    """A request to an application in this process, from an address of its own choice, and what came back."""

    app: Any
    body: bytes
    address: str = "10.0.0.1"
    headers: dict[bytes, bytes] = field(default_factory=dict)
    status: int = 0
    answered: dict[bytes, bytes] = field(default_factory=dict)
    text: str = ""
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> "Call":
        pieces = iter([{"type": "http.request", "body": self.body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(pieces, None)) is None:
                await asyncio.Event().wait()
            return message

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status, self.answered = message["status"], dict(message["headers"])
            else:
                self.text += message["body"].decode()
            self.heard.set()

        headers = {b"host": b"localhost", b"content-type": b"application/json", **self.headers}
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/chat/completions",
            "query_string": b"", "root_path": "", "headers": list(headers.items()), "client": (self.address, 1),
        }  # fmt: skip
        await self.app(scope, receive, send)
        return self


def asked(app: Any, fields: dict[str, Any], address: str = "10.0.0.1") -> Call:
    return Call(app, json.dumps(fields).encode(), address)


def run(edge: Any, story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story()

    edge.run(bounded)


def test_stream_says_at_once_that_it_is_understood_and_something_every_few_seconds(
    edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PING_S", 0.01)

    async def story() -> None:
        call = asked(create_app(edge.opened), {**SHORT, "stream": True})
        async with edge.opened.node.core.paused():
            asking = asyncio.create_task(call.run())
            await call.heard.wait()
            assert call.status == 200 and call.answered[b"content-type"].startswith(b"text/event-stream")
            while call.text.count(": ping\n\n") < 3:
                await asyncio.sleep(0.01)
            assert "data:" not in call.text
        await asking
        assert call.text.lstrip(": ping\n").startswith("data:") and call.text.endswith("data: [DONE]\n\n")

    run(edge, story)


def test_what_is_wrong_with_a_stream_has_a_status_while_others_are_answered(edge: Any) -> None:
    async def story() -> None:
        app = create_app(edge.opened)
        async with edge.opened.node.core.paused():
            unknown = await asked(app, {**SHORT, "stream": True, "context": "manuel"}).run()
            assert (unknown.status, json.loads(unknown.text)["error"]["code"]) == (404, "unknown_context")

    run(edge, story)


def test_who_has_too_much_inside_is_told_when_to_come_again_and_others_are_let_in(
    edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REFUSED_S", 0.0)

    async def story() -> None:
        app = create_app(edge.opened, limits=Limits(requests=4))
        many = [asked(app, SHORT) for _ in range(5)]
        other = asked(app, {**SHORT, "stream": True}, "10.0.0.2")
        async with edge.opened.node.core.paused():
            asking = [asyncio.create_task(call.run()) for call in [*many, other]]
            await other.heard.wait()
            for call in many[2:]:
                await call.heard.wait()
                error = json.loads(call.text)["error"]
                assert (call.status, error["code"]) == (429, "rate_limit_exceeded")
                assert int(call.answered[b"retry-after"]) >= 1
        await asyncio.gather(*asking)
        assert [call.status for call in [*many[:2], other]] == [200, 200, 200]
        assert (await asked(app, SHORT).run()).status == 200, "those who have left make room"

    run(edge, story)


def test_of_a_caller_who_wastes_much_and_has_more_than_a_few_inside_none_is_looked_at_at_once(
    edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FEW", 1)
    monkeypatch.setattr(serving, "BEHIND_S", 3600.0)

    async def story() -> None:
        app = create_app(edge.opened)
        wrong = {"messages": "no list"}
        async with edge.opened.node.core.paused():
            asking = [asyncio.create_task(asked(app, SHORT).run())]
            await asyncio.sleep(0)
            for _ in range(2):
                assert (await asked(app, wrong).run()).status == 400, "it has wasted little as yet"
            behind, other = asked(app, wrong), asked(app, wrong, "10.0.0.2")
            asking.append(asyncio.create_task(behind.run()))
            await other.run()
            assert other.status == 400 and not behind.heard.is_set()
        asking.pop().cancel()
        assert (await asking[0]).status == 200
        assert (await asked(app, wrong).run()).status == 400, "the others have left"

    run(edge, story)


def test_who_asks_much_does_not_keep_others_waiting(edge: Any) -> None:
    async def story() -> None:
        app = create_app(edge.opened)
        many = [asked(app, LONG) for _ in range(6)]
        asking = [asyncio.create_task(call.run()) for call in many]
        while edge.opened.node.core.idle:
            await asyncio.sleep(0.001)
        one = await asked(app, SHORT, "10.0.0.2").run()
        assert one.status == 200 and not any(call.text for call in many)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)

    run(edge, story)


def test_bodies_in_flight_are_bounded(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_IN_FLIGHT_BYTES", 2000)

    async def story() -> None:
        app, never = create_app(edge.opened), asyncio.Event()
        part = {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        async def read_in_part() -> None:
            parts = iter([part])

            async def receive() -> Any:
                if (message := next(parts, None)) is None:
                    started.set()
                    await never.wait()
                return message

            await app(scope, receive, _nothing)

        started = asyncio.Event()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/completions", "query_string": b"",
            "root_path": "", "headers": headers, "client": ("10.0.0.1", 1),
        }  # fmt: skip
        half = asyncio.create_task(read_in_part())
        await started.wait()
        refused = await asked(app, SHORT).run()
        assert refused.status == 429 and "1000 bytes of requests" in refused.text
        assert (await asked(app, SHORT, "10.0.0.2").run()).status == 200
        half.cancel()
        await asyncio.wait([half])
        assert (await asked(app, SHORT).run()).status == 200, "what is gone is not counted"

    run(edge, story)


async def _nothing(message: Any) -> None:
    pass


def test_chat_that_names_no_number_of_tokens_leaves_the_context_where_it_is(edge: Any) -> None:
    async def story() -> None:
        app, node = create_app(edge.opened, limits=Limits(answer_tokens=8)), edge.opened.node
        about = await asked(app, {**SHORT, "context": "manual"}).run()
        assert about.status == 200
        held = node.core.residents()
        assert held
        ends = {"logit_bias": LONG["logit_bias"], "messages": QUESTION}
        answer = json.loads((await asked(app, ends).run()).text)
        assert answer["usage"]["completion_tokens"] == 8 and answer["choices"][0]["finish_reason"] == "length"
        assert node.core.residents() == held

    run(edge, story)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
def test_compressed_bodies_are_read(edge: Any, encoding: str) -> None:
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), lambda data: data)
    answer = httpx2.post(
        f"{edge.url}/v1/chat/completions",
        content=pack(json.dumps(SHORT).encode()),
        headers={"Content-Type": "application/json", "Content-Encoding": encoding},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200 and answer.json()["choices"]


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"anything", 415),
        ("gzip, gzip", b"anything", 415),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(json.dumps(SHORT).encode())[:-9], 400),
        ("gzip", gzip.compress(b" " * 200_000_000), 400),
    ],
    ids=["unknown", "twice", "other bytes", "cut", "bomb"],
)
def test_badly_compressed_bodies_are_refused(edge: Any, encoding: str, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = httpx2.post(f"{edge.url}/v1/completions", content=body, headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == status and answer.json()["error"]["message"]
    if len(body) > 100_000:
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/v1"])
def test_who_mistakes_an_edge_for_another_server_is_told_what_to_do(edge: Any, path: str) -> None:
    answer = httpx2.request("GET" if path == "/api/tags" else "POST", f"{edge.url}{path}", trust_env=False)
    assert answer.status_code == 501 and "/v1" in answer.json()["error"]["message"].partition(":")[2]


def test_an_answer_says_by_which_model_it_was_made(edge: Any) -> None:
    answer = httpx2.post(f"{edge.url}/v1/chat/completions", json=SHORT, trust_env=False, timeout=60).json()
    assert answer["system_fingerprint"] == f"b{edge.opened.node.engine.spec.fingerprint[:12]}"


@pytest.mark.parametrize("path", ["/v1/models", "/models", "//v1/models", "//models", "/v1//models/"])
def test_models_are_listed_under_each_name_that_clients_use(edge: Any, path: str) -> None:
    assert httpx2.get(f"{edge.url}{path}", trust_env=False).json()["data"]


@pytest.mark.parametrize("path", ["/chat/completions", "//v1/chat/completions/", "/completions", "//completions"])
def test_answers_are_given_under_each_name_that_clients_use(edge: Any, path: str) -> None:
    fields = SHORT if "chat" in path else {"prompt": "One two", "max_tokens": 1}
    assert httpx2.post(f"{edge.url}{path}", json=fields, trust_env=False, timeout=60).json()["choices"]
