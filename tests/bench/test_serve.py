"""The bench under load and the conversation run through, beside a peer that is asked the same. Times are not tested."""

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preread.bench import chat, serve
from preread.bench.corpus import Corpus, draw
from preread.bench.deployment import Setting
from preread.bench.load import Block
from preread.bench.peers import Beside, peers
from preread.bench.processes import Server
from preread.bench.serve import Phase, block
from preread.bench.systems import System, started
from preread.cli import main
from preread.engine.llamacpp import LlamaCpp
from preread.errors import TransportError, UsageError
from preread.testing.proxy import Link, ProxyProcess

QUIET = Console(quiet=True)
SEEN = "seen"
SERVER = r"""
import http.server, json, sys, threading
from pathlib import Path
lock = threading.Lock()
port, seen, refuse = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, b'{"data": [{"id": "stub"}]}', "application/json")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            with seen.open("a") as file:
                file.write(json.dumps(body) + "\n")
            line = len(seen.read_text().splitlines())
        if line == refuse:
            return self.answer(500, b"out of order", "text/plain")
        said = [{"delta": {"content": f"{number} "}} for number in range(body["max_tokens"])]
        chunks = [{"choices": [choice]} for choice in (*said, {"delta": {}, "finish_reason": "length"})]
        chunks.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"], "prompt_tokens": 1}})
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.answer(200, events.encode(), "text/event-stream")

with seen.open("a") as file:
    file.write("start\n")
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stub(folder: Path, refuse: int = 0) -> str:
    """The command of an OpenAI server that answers numbers, and refuses the request in this line of what it saw."""
    (folder / "server.py").write_text(SERVER)
    return f"{shlex.join([sys.executable, str(folder / 'server.py')])} {{port}} {folder / SEEN} {refuse}"


def seen(folder: Path) -> list[Any]:
    """What it was asked since each start."""
    return [line if line == "start" else json.loads(line) for line in (folder / SEEN).read_text().splitlines()]


def followed(monkeypatch: pytest.MonkeyPatch) -> list[str | float | None]:
    """What happens from now on: which server starts, and what the link becomes (Mbit/s)."""
    story: list[str | float | None] = []
    start, set_link = Server.start, ProxyProcess.set_link

    def started(self: Server) -> None:
        story.append("start cloud" if "cloud" in self._command else "start edge")
        start(self)

    def changed(self: ProxyProcess, link: Link) -> None:
        story.append(link.mbps)
        set_link(self, link)

    monkeypatch.setattr(Server, "start", started)
    monkeypatch.setattr(ProxyProcess, "set_link", changed)
    return story


def asked(body: dict[str, Any]) -> str:
    question: str = body["messages"][-1]["content"]
    return question


@pytest.mark.timeout(300)  # a busy machine is slow
@pytest.mark.long
def test_all_systems_are_asked_the_same_in_every_state(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = followed(monkeypatch)
    options = serve.Options(
        Setting(tiny_model, "tiny", 80, ("lossless",)), Beside(commands=(stub(tmp_path),)),
        users=2, rates=(50.0,), requests=6, blocks=2, contexts=3, answer_tokens=3, plot=tmp_path / "load.svg",
    )  # fmt: skip
    told: dict[str, Any] = asyncio.run(serve.bench(options, QUIET, lambda *_: None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    rows = told["rows"]
    states = [("cold", None), ("warm", None), ("warm", 50.0), ("cut", None)]
    peer = Path(sys.executable).name
    assert {(row["system"], row["state"], row["rate"]) for row in rows} == {
        (system, *state) for system in ("preread", peer) for state in states
    }
    assert all((row["requests"], row["failed"], row["answer_tokens"]) == (6, 0, 3.0) for row in rows)
    assert all(row["users"] == (None if row["rate"] else 2) for row in rows)
    ours = {(row["state"], row["rate"]): row["ways"] for row in rows if row["system"] == "preread"}
    assert ours["warm", None] == {"resident": 6} and sum(ours["cut", None].values()) == 6
    assert ours["cut", None]["computed"] >= 1, "nothing was there, and nothing came"
    assert told["throughput_ratio"].keys() == {"cold", "warm", "cut"} and told["failed"] == 0
    assert (tmp_path / "load.svg").stat().st_size > 1000

    cloud, fresh, cut = ["start cloud", 100], [100, "start edge"], [0, "start edge"]
    assert story == [*cloud, *fresh, *fresh, *cut], "who is cut off knows what there is, and starts without a link"

    lines = seen(tmp_path)
    assert [number for number, line in enumerate(lines) if line == "start"] == [0, 22], "cold, and cold again when cut"
    bodies = [line for line in lines if line != "start"]
    assert len({asked(body) for body in bodies}) == 27, "every question is a new one"
    contexts = {body["messages"][0]["content"] for body in bodies[6:9]}
    assert len(contexts) == 3, "each was asked about before the warm state"
    assert all(body["messages"][0]["content"] in contexts and body["model"] == "stub" for body in bodies)
    assert all((body["temperature"], body["ignore_eos"], body["stream"]) == (0, True, True) for body in bodies)


def test_documents_are_contexts_of_exactly_so_many_tokens(tiny_model: Path) -> None:
    corpus = draw(tiny_model, 7, 4, 90, 5, 20)
    assert corpus == draw(tiny_model, 7, 4, 90, 5, 20) != draw(tiny_model, 8, 4, 90, 5, 20)
    assert len(set(corpus.documents)) == 4 and len(set(corpus.questions)) == 5
    engine = LlamaCpp.open(tiny_model, window_tokens=512)
    try:
        assert engine.chat is not None
        prefixes = [engine.chat.system_prefix(document) for document in corpus.documents]
        assert [len(engine.tokenize_prompt(prefix)) for prefix in prefixes] == 4 * [90]
        assert all(15 <= len(engine.tokenize(question, special=False)) <= 25 for question in corpus.questions)
    finally:
        engine.close()
    with pytest.raises(UsageError, match="more than the benchmark's text"):
        draw(tiny_model, 0, 50, 100_000, 1, 20)


@asynccontextmanager
async def beside(folder: Path, refuse: int = 0) -> AsyncGenerator[System, None]:
    (peer,) = peers(Beside(commands=(stub(folder, refuse),)), folder, folder)
    try:
        await peer.fresh()
        yield System(peer, Corpus(("first", "second"), tuple(f"question {number}" for number in range(9))))
    finally:
        peer.kill()


async def one_block(folder: Path, times_s: tuple[float, ...] | None, refuse: int = 0) -> Block:
    options = serve.Options(Setting(Path("model"), "tiny"), answer_tokens=4)
    async with beside(folder, refuse) as system:
        phase = Phase("cold", None if times_s else 2, 1.0 if times_s else None, 3)
        return await block(system, phase, (0, 1, 0, 0), range(4), times_s, options)


def test_requests_come_when_they_are_due_whatever_happens_to_others(tmp_path: Path) -> None:
    found = asyncio.run(one_block(tmp_path, (0.0, 0.01, 0.02, 0.3)))
    assert (len(found.answers), found.failures) == (4, ()) and found.seconds >= 0.3
    bodies = seen(tmp_path)[1:]
    assert sorted((asked(body), body["messages"][0]["content"]) for body in bodies) == [
        ("question 3", "first"), ("question 4", "second"), ("question 5", "first"), ("question 6", "first")
    ]  # fmt: skip


def test_a_request_that_fails_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    found = asyncio.run(one_block(tmp_path, None, refuse=3))
    assert len(found.answers) == 3 and len(found.failures) == 1
    assert "answers 500: out of order" in found.failures[0]


def test_a_failure_is_in_the_last_line_and_ends_the_bench(capsys: pytest.CaptureFixture[str]) -> None:
    options = serve.Options(Setting(Path("model"), "tiny"))
    blocks = [Block("preread", "cold", 8, None, 1.0, (), ("it answers 503: no",))]
    with pytest.raises(serve.RemoteError, match=r"1 request.* preread \(cold\): it answers 503"):
        serve.tell(options, blocks, {}, QUIET)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == 1


def test_a_peer_that_does_not_start_is_told_of_with_what_it_said(tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", "raise SystemExit('no such model {port}')"])
    (peer,) = peers(Beside(commands=(command,)), tmp_path, tmp_path)
    with pytest.raises(TransportError, match="did not start: no such model"):
        asyncio.run(peer.fresh())
    (missing,) = peers(Beside(commands=("/nowhere/server {port}",)), tmp_path, tmp_path)
    with pytest.raises(UsageError, match="cannot be started"):
        asyncio.run(missing.fresh())


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_conversation_sends_all_that_was_said(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = chat.Options(
        Setting(tiny_model, "tiny", 80, ("lossless",)), Beside(commands=(stub(tmp_path),)), turns=3, answer_tokens=3
    )
    told: dict[str, Any] = asyncio.run(chat.bench(options, QUIET, lambda *_: None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    ours = [row for row in told["rows"] if row["system"] == "preread"]
    assert [row["turn"] for row in ours] == [1, 2, 3] and told["ratio"] > 0
    assert all(row["cache_n"] >= 80 for row in ours[1:]), "the context is not computed again"
    sums = [row["prompt_n"] + row["cache_n"] for row in ours]
    assert sums == sorted(set(sums)), "each turn brings all that was said before"
    last = seen(tmp_path)[-1]["messages"]
    assert [message["role"] for message in last] == ["system", *["user", "assistant"] * 2, "user"]
    assert [message["content"] for message in last if message["role"] == "assistant"] == 2 * ["0 1 2 "], "as it came"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--users", "2", "--rate", "1"], "give one of them"),
        (["--states", "hot"], "--states"),
        (["--rates", "1,0"], "above 0"),
        (["--plot", "load.svg"], "--rates"),
        (["--edge-option", "'"], "--edge-option"),
        (["--peer", "nowhere"], "not an address"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    tiny_model: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", "--model", str(tiny_model), "--context-tokens", "80", "--contexts", "2", *arguments])
    assert ended.value.code == 1 and why in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_told_of_before_anything_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preread.bench.peers._THERE_S", 0.3)
    story = followed(monkeypatch)

    async def start() -> None:
        corpus, nobody = Corpus((), ()), Beside(("http://127.0.0.1:9",))
        async with started(Setting(Path("model"), "tiny"), nobody, corpus, 512, tmp_path, lambda *_: None):
            pass

    with pytest.raises(TransportError, match=r"127.0.0.1:9 .* is not ready: is it running\?"):
        asyncio.run(start())
    assert story == []
