"""`preread attach` in front of a real llama-server, which the variable PREREAD_LLAMA_SERVER names.

It is built from llama.cpp's sources (`cmake -B build && cmake --build build --target llama-server`); the release that
these tests were last run with is in docs/attach.md.
"""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from preread.attach import check
from preread.attach.app import create_app
from preread.attach.folder import Folder
from preread.attach.opening import attached
from preread.attach.options import Options
from preread.attach.server import Server
from preread.attach.slot_file import Form
from preread.errors import EngineError
from preread.testing.cloud import serving
from preread.values import Geometry, KVBlock

BINARY = os.environ.get("PREREAD_LLAMA_SERVER")
pytestmark = pytest.mark.skipif(not BINARY, reason="PREREAD_LLAMA_SERVER names no llama-server: see docs/attach.md")

QUESTION = {"role": "user", "content": "What is the code of the valve?"}
GREEDY = {"temperature": 0, "max_tokens": 12, "cache_prompt": True}
PATIENCE_S = 120.0


@dataclass(slots=True)
class LlamaServer:
    """A running llama-server and its --slot-save-path."""

    url: str
    slots: Path
    process: subprocess.Popen[bytes]


def _until(what: Callable[[], Any]) -> Any:
    """The first result of `what` that is true; it may fail until then."""
    ends_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_s:
        try:
            if found := what():
                return found
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come about")


def _started(model: Path, slots: Path, port: int, *flags: str) -> LlamaServer:
    command = [str(BINARY), "-m", str(model), "--port", str(port), "--slot-save-path", str(slots), "-t", "2", *flags]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, **quiet)  # type: ignore[call-overload]
    server = LlamaServer(f"http://127.0.0.1:{port}", slots, process)
    _until(lambda: httpx2.get(f"{server.url}/health", trust_env=False).status_code == 200)
    return server


def _stop(server: LlamaServer) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


@contextmanager
def llama_server(model: Path, slots: Path, *flags: str) -> Iterator[LlamaServer]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = _started(model, slots, port, *flags)
    try:
        yield server
    finally:
        _stop(server)


@contextmanager
def attach(server: LlamaServer, model: Path, cloud: str | None, folder: Path, **more: Any) -> Iterator[str]:
    """URL of a proxy in front of it, which has tried the server."""
    options = Options(
        str(model), server.url, server.slots, cloud=cloud, folder=folder, **{"rung": "lossless", "sync_s": 0.2, **more}
    )
    with serving(create_app(lambda: attached(options))) as url:
        _until(lambda: "not tried" not in str(_state(url)["refused"]))
        yield url


def _state(url: str) -> dict[str, Any]:
    return dict(httpx2.get(f"{url}/preread", trust_env=False).json())


def _post(url: str, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{url}{path}", json=body, trust_env=False, timeout=PATIENCE_S)


def _chat(url: str, **body: Any) -> dict[str, Any]:
    answer = _post(url, "/v1/chat/completions", {"messages": [QUESTION], **GREEDY, **body})
    assert answer.status_code == 200, answer.text
    return {**answer.json(), "way": answer.headers.get("x-preread")}


@pytest.fixture(scope="module")
def server(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with llama_server(smollm, tmp_path_factory.mktemp("slots"), "-c", "4096", "-np", "3") as server:
        yield server


@pytest.fixture
def proxy(server: LlamaServer, smollm: Path, smollm_cloud: Any, tmp_path: Path) -> Iterator[str]:
    with attach(server, smollm, smollm_cloud.url, tmp_path / "cache") as url:
        assert _state(url)["restoring"]
        yield url


def _context_tokens(url: str) -> int:
    """Of "manual", as the proxy's catalogue has it."""
    answer = _chat(url, context="manual")
    assert answer["way"] in ("restored", "held")
    return int(answer["timings"]["cache_n"])


FLAGS = [
    ("-np", "1"),
    ("-np", "4", "--kv-unified"),
    ("-np", "2", "--no-kv-unified", "-fa", "off"),
    ("-np", "3", "--no-kv-unified", "-fa", "on"),
    ("-np", "2", "--no-slots", "-fa", "off", "--cache-ram", "0"),
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_context_is_there_at_once_and_the_answer_is_the_servers_own(
    flags: tuple[str, ...], smollm: Path, smollm_cloud: Any, manual: str, tmp_path: Path
) -> None:
    (tmp_path / "slots").mkdir()
    with (
        llama_server(smollm, tmp_path / "slots", "-c", "4096", *flags) as server,
        attach(server, smollm, smollm_cloud.url, tmp_path / "cache") as url,
    ):
        restored, held = _chat(url, context="manual"), _chat(url, context="manual")
        own = _chat(server.url, messages=[{"role": "system", "content": manual}, QUESTION], cache_prompt=False)
        assert restored["way"] == "restored"
        assert restored["timings"]["cache_n"] > 250 and restored["timings"]["prompt_n"] < 30
        assert held["timings"]["cache_n"] >= restored["timings"]["cache_n"]
        said = [answer["choices"][0]["message"]["content"] for answer in (restored, held, own)]
        assert said[0] == said[1] == said[2]
        assert own["timings"]["cache_n"] == 0
    assert not any(file.name.startswith("preread-") for file in (tmp_path / "slots").iterdir())


def test_openais_client_streams_through_it_and_lists_contexts_as_models(proxy: str) -> None:
    client = openai.OpenAI(base_url=f"{proxy}/v1", api_key="none", timeout=PATIENCE_S)
    names = [model.id for model in client.models.list()]
    name = next(name for name in names if name.endswith("@manual"))
    messages: Any = [QUESTION]
    stream = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=12, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
    assert text == _chat(proxy, context="manual")["choices"][0]["message"]["content"]
    assert text


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/completion", "/v1/completions"])
def test_every_api_of_the_server_has_the_context(proxy: str, path: str) -> None:
    tokens = _context_tokens(proxy)
    body: dict[str, Any] = {"context": "manual", "model": "x", "max_tokens": 8, "temperature": 0}
    body |= {"messages": [QUESTION]} if path == "/v1/messages" else {}
    body |= {"input": "What is the code?"} if path == "/v1/responses" else {}
    body |= {"prompt": "What is the code?"} if "completion" in path else {}
    answer = _post(proxy, path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-preread"] in ("restored", "held")
    usage = answer.json().get("usage", {})
    told = answer.json().get("timings", {}).get("cache_n") or usage.get("cache_read_input_tokens")
    told = told or usage.get("input_tokens_details", {}).get("cached_tokens")
    assert told >= tokens


def test_many_questions_restore_a_context_once_and_at_once_they_get_slots_of_their_own(proxy: str) -> None:
    ways = [_chat(proxy, context="manual", seed=seed)["way"] for seed in range(4)]
    assert ways.count("held") >= 3
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda _: _chat(proxy, context="manual"), range(6))]
    assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert all(answer["timings"]["cache_n"] > 0 for answer in answers)


def test_another_request_does_not_take_the_contexts_slot(proxy: str, server: LlamaServer) -> None:
    _chat(proxy, context="manual")
    for _ in range(3):
        assert _chat(proxy, messages=[{"role": "user", "content": "Hello there, who are you?"}])["choices"]
    answer = _chat(proxy, context="manual")
    assert answer["timings"]["cache_n"] > 250


def test_a_system_prompt_that_is_published_is_noticed_once_it_was_fetched_by_name(proxy: str, manual: str) -> None:
    messages = [{"role": "system", "content": manual}, QUESTION]
    received = httpx2.get(f"{proxy}/preread/metrics", trust_env=False).text
    assert "preread_attach_received_bytes_total 0.0" in received
    first = _chat(proxy, messages=messages)
    assert first["way"] == "passed"  # nothing is fetched for what a prompt says
    assert "preread_attach_received_bytes_total 0.0" in httpx2.get(f"{proxy}/preread/metrics", trust_env=False).text
    assert _chat(proxy, context="manual")["way"] in ("restored", "held")
    again = _chat(proxy, messages=messages)
    assert again["way"] in ("restored", "held") and again["timings"]["cache_n"] > 250


def test_everything_else_is_the_servers_own_answer(proxy: str, server: LlamaServer) -> None:
    for path in ("/health", "/props", "/slots?fail_on_no_slot=1", "/nothing%20here", "/v1/nothing"):
        answers = [httpx2.get(f"{url}{path}", trust_env=False) for url in (proxy, server.url)]
        assert answers[0].status_code == answers[1].status_code
        if path != "/slots?fail_on_no_slot=1":
            assert answers[0].json().keys() == answers[1].json().keys()
    wrong = [_post(url, "/v1/chat/completions", {"messages": "no"}) for url in (proxy, server.url)]
    assert wrong[0].status_code == wrong[1].status_code == 400 and wrong[0].json() == wrong[1].json()
    tokens = _post(proxy, "/tokenize", {"content": "Hello"})
    assert tokens.json() == _post(server.url, "/tokenize", {"content": "Hello"}).json()


def test_a_name_that_nobody_published_is_said_to_be_one(proxy: str) -> None:
    answer = _post(proxy, "/v1/chat/completions", {"context": "nonsense", "messages": [QUESTION]})
    assert answer.status_code == 404 and "manual" in answer.json()["error"]["message"]


def test_a_client_that_leaves_frees_the_slot(proxy: str, server: LlamaServer) -> None:
    def free() -> bool:
        return not any(slot["is_processing"] for slot in httpx2.get(f"{server.url}/slots", trust_env=False).json())

    long = {"context": "manual", "max_tokens": 600, "ignore_eos": True}
    began_s = time.monotonic()
    _chat(proxy, **long)
    whole_s = time.monotonic() - began_s
    body = {"messages": [QUESTION], **GREEDY, **long, "stream": True}
    with httpx2.stream("POST", f"{proxy}/v1/chat/completions", json=body, trust_env=False, timeout=60) as answer:
        next(answer.iter_raw())
        assert not free()
    left_s = time.monotonic()
    _until(free)
    assert time.monotonic() - left_s < whole_s / 2, "it went on with an answer that nobody reads"


def test_a_server_that_comes_back_is_tried_again(
    smollm: Path, smollm_cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preread.attach.trust._AGAIN_S", 0.2)
    (tmp_path / "slots").mkdir()
    with llama_server(smollm, tmp_path / "slots", "-c", "2048", "-np", "1") as server:
        port = int(server.url.rpartition(":")[2])
        with attach(server, smollm, smollm_cloud.url, tmp_path / "cache") as url:
            assert _chat(url, context="manual")["way"] == "restored"
            _stop(server)
            assert _post(url, "/v1/chat/completions", {"messages": [QUESTION]}).status_code == 504
            server.process = _started(smollm, server.slots, port, "-c", "2048", "-np", "2", "-fa", "off").process
            answer = _until(lambda: (a := _chat(url, context="manual"))["way"] == "restored" and a)
            assert answer["timings"]["cache_n"] > 250


def test_without_a_cloud_what_is_on_the_disk_is_restored(
    smollm: Path, smollm_cloud: Any, server: LlamaServer, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    with attach(server, smollm, smollm_cloud.url, folder) as url:
        _chat(url, context="manual")
    with attach(server, smollm, None, folder) as url:
        answer = _chat(url, context="manual")
        assert answer["way"] == "restored" and answer["timings"]["cache_n"] > 250


@pytest.mark.parametrize(
    ("flags", "why"),
    [(("-ctk", "q8_0", "-ctv", "q8_0"), "cache"), (("--rope-freq-scale", "0.25"), "computes other KV")],
    ids=["quantised cache", "another RoPE"],
)
def test_a_server_whose_kv_is_another_is_left_alone_and_still_answers(
    flags: tuple[str, ...], why: str, smollm: Path, smollm_cloud: Any, tmp_path: Path
) -> None:
    (tmp_path / "slots").mkdir()
    with (
        llama_server(smollm, tmp_path / "slots", "-c", "2048", "-np", "1", *flags) as server,
        attach(server, smollm, smollm_cloud.url, tmp_path / "cache") as url,
    ):
        answer = _chat(url, context="manual")
        assert answer["way"] == "passed" and answer["timings"]["prompt_n"] > 200
        assert answer["choices"][0]["message"]["content"]
        assert why in _state(url)["refused"]


def test_another_model_is_left_alone(smollm: Path, tiny_model: Path, cloud: Any, tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    with (
        llama_server(smollm, tmp_path / "slots", "-c", "2048", "-np", "1") as server,
        attach(server, tiny_model, cloud.url, tmp_path / "cache") as url,
    ):
        assert "another model" in _state(url)["refused"]


def test_rows_that_are_not_what_was_computed_are_noticed(server: LlamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry(layers=30, kv_heads=3, head_dim=64)

    async def tried() -> None:
        opened = Server(server.url)
        try:
            tokens = np.array(await opened.tokens("A text of some length, of no meaning. " * 8), np.int32)
            with Folder(server.slots, 1 << 30) as folder:
                await check.check(opened, folder, geometry, tokens)
        finally:
            await opened.aclose()

    def misplaced(form: Form, file: Any, count: int, block: KVBlock) -> None:
        """What is written for the trial has V of other tokens."""
        put(form, file, count, _rolled(block))

    put = Form.put
    asyncio.run(tried())
    monkeypatch.setattr(Form, "put", misplaced)
    monkeypatch.setattr("preread.attach.slot_file._check", lambda *_: None)
    with pytest.raises(EngineError, match="next token differs"):
        asyncio.run(tried())


def _rolled(block: KVBlock) -> KVBlock:
    return KVBlock(block.tokens, block.layers, block.k, np.roll(block.v, 7, axis=2))
