"""A server from its first moment to its last: it loads, is ready, is asked to stop, leaves, and ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from preread import lifecycle, loop
from preread.cli import listen, notify
from preread.cli.endpoint import Stop
from preread.cloud.app import create_app
from preread.cloud.client import publish
from preread.edge.app import create_app as create_edge
from preread.edge.edge import AsyncEdge
from preread.errors import EngineError, Unavailable
from preread.store.objects import open_store
from preread.store.readiness import Watched, ready_route
from preread.testing.cloud import RandomPublisher, serving

LONG = Stop(drain_s=600, finish_s=600)
LONG_ENOUGH = Stop(finish_s=600)
"""Nothing in a test waits for the end of these times."""


async def _home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def _story(request: Request) -> StreamingResponse:
    """Goes on until the server leaves, and after the client's next request."""

    async def told() -> AsyncGenerator[bytes, None]:
        yield b"once"
        await lifecycle.of(request.app).leaving.wait()
        yield b" upon a time"

    return StreamingResponse(told())


def small() -> Starlette:
    return Starlette(routes=[Route("/", _home), Route("/story", _story), ready_route()])


def served(
    story: Callable[[str], None], stop: Stop, app: Starlette | None = None, opened: asyncio.Event | None = None
) -> bool:
    """Serve in this process while `story` runs in a thread, which has to send SIGTERM; whether it was Ctrl-C.

    What drains when the story is over drains no longer.
    """

    @asynccontextmanager
    async def opening() -> AsyncGenerator[Starlette, None]:
        if opened is not None:
            await opened.wait()
        yield app or small()

    async def main() -> bool:
        sock = listen.bind("127.0.0.1", 0)
        telling = asyncio.create_task(asyncio.to_thread(story, listen.url(sock)))
        serving = asyncio.create_task(listen.serve(opening(), [sock], lambda: None, None, stop))
        await asyncio.wait([telling])
        if stop.drain_s:
            serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        telling.result()
        return not serving.cancelled() and serving.result()

    return loop.run(main())


def get(url: str) -> httpx2.Response:
    """What a server answers that may not listen yet."""
    while True:
        with suppress(httpx2.TransportError):
            return httpx2.get(url, trust_env=False, timeout=60)


def until(url: str, status: int) -> httpx2.Response:
    while (answer := get(url)).status_code != status:
        pass
    return answer


def stop_this() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_while_it_loads_a_server_says_so_at_every_path_and_is_ready_after() -> None:
    opened: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @asynccontextmanager
    async def opening() -> AsyncGenerator[Starlette, None]:
        event = asyncio.Event()
        opened.append((asyncio.get_running_loop(), event))
        await event.wait()
        yield small()

    def story(url: str) -> None:
        for path in ("/health", "/readyz", "/v1/chat/completions", "/"):
            answer = get(url + path)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "loading"
        own, event = opened[0]
        own.call_soon_threadsafe(event.set)
        assert until(f"{url}/readyz", 200).json() == {"status": "ready"}
        assert get(url).text == "here"
        stop_this()

    async def main() -> bool:
        sock = listen.bind("127.0.0.1", 0)
        telling = asyncio.create_task(asyncio.to_thread(story, listen.url(sock)))
        try:
            return await listen.serve(opening(), [sock], lambda: None)
        finally:
            await telling

    assert loop.run(main()) is False


def test_a_signal_while_it_loads_ends_it() -> None:
    def story(url: str) -> None:
        assert get(url).status_code == 503
        stop_this()

    assert served(story, LONG, opened=asyncio.Event()) is False, "nobody waits for it: there is nothing to drain"


@pytest.mark.parametrize("error", [EngineError("no such model"), RuntimeError("a bug")])
def test_what_cannot_be_opened_is_raised_and_nothing_is_left(error: Exception) -> None:
    @asynccontextmanager
    async def opening() -> AsyncGenerator[Starlette, None]:
        raise error
        yield small()

    with closing(listen.bind("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        with pytest.raises(type(error), match=str(error)):
            loop.run(listen.serve(opening(), [sock], lambda: None, None, LONG))
        with pytest.raises(OSError):
            socket.create_connection(address)


def test_who_is_asked_to_stop_is_not_ready_and_answers_on() -> None:
    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert client.get("/").headers.get("connection") != "close"
            stop_this()
            told = until(f"{url}/readyz", 503)
            assert told.json()["error"]["code"] == "not_ready" and "stopping" in told.text
            answer = client.get("/")
            assert answer.text == "here" and answer.headers["connection"] == "close", "the next one goes elsewhere"

    assert served(story, LONG) is False


def test_when_it_leaves_what_would_go_on_for_ever_ends_and_nobody_is_let_in() -> None:
    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        with httpx2.stream("GET", f"{url}/story", trust_env=False, timeout=60) as tale:
            pieces = tale.iter_text()
            assert next(pieces) == "once"
            stop_this()
            assert "".join(pieces) == " upon a time", "which it says once it has left"
        with pytest.raises(httpx2.TransportError):
            httpx2.get(url, trust_env=False)

    assert served(story, LONG_ENOUGH) is False


SERVER = """
import sys
from contextlib import nullcontext
from preread import loop
from preread.cli import listen
sys.path.insert(0, sys.argv[1])
import test_stages
sock = listen.bind("127.0.0.1", 0)
print(listen.url(sock), flush=True)
opening = nullcontext(test_stages.small())
loop.run(listen.serve(opening, [sock], lambda: print("ready", flush=True), None, test_stages.LONG))
"""


@contextmanager
def process(**environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server in a process of its own, which is ready, and its URL."""
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert server.stdout.readline() == "ready\n"
            yield server, url
        finally:
            server.kill()


def test_a_second_signal_ends_it_there_and_then() -> None:
    with process() as (server, url):
        server.send_signal(signal.SIGTERM)
        until(f"{url}/readyz", 503)
        while server.poll() is None:
            server.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(0.6)  # one that comes at once is the same: `timeout` sends two
        assert server.returncode == -signal.SIGTERM


def test_systemd_is_told_that_it_is_ready_lives_and_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.settimeout(60)
        name = f"\0preread-{os.getpid()}"
        told.bind(name)
        with process(NOTIFY_SOCKET="@" + name[1:], WATCHDOG_USEC="2000000") as (server, _):
            said = [told.recv(100)]
            while said[-1] != b"WATCHDOG=1" or b"READY=1" not in said:
                said.append(told.recv(100))
            server.send_signal(signal.SIGTERM)
            while said[-1] != b"STOPPING=1":
                said.append(told.recv(100))
    assert set(said) == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"} and said.count(b"READY=1") == 1


@pytest.mark.parametrize(
    ("asked", "of", "every_s"), [("", None, None), ("0", None, None), ("9000000", None, 4.5), ("9000000", "1", None)]
)
def test_the_watchdog_is_told_twice_as_often_as_it_must_be(
    asked: str, of: str | None, every_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", asked)
    if of is not None:
        monkeypatch.setenv("WATCHDOG_PID", of)
    assert notify.watchdog_s() == every_s


def test_where_systemd_cannot_be_told_a_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notify.tell("READY=1")
    assert "cannot be told READY=1" in caplog.text


# The cloud


def test_a_cloud_is_ready_while_its_store_can_be_read_and_lives_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preread.store.readiness._AGAIN_S", 0.0)
    folder = tmp_path / "store"
    store = open_store(str(folder))
    with serving(create_app(store, RandomPublisher(store))) as url:
        assert get(f"{url}/readyz").status_code == 200
        folder.rename(tmp_path / "away")
        away = get(f"{url}/readyz")
        assert away.status_code == 503 and "cannot be read: No such file" in away.json()["error"]["message"]
        assert get(f"{url}/health").status_code == 200
        (tmp_path / "away").rename(folder)
        assert get(f"{url}/readyz").status_code == 200


def test_a_store_that_does_not_answer_is_asked_once_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preread.store.readiness.PATIENCE_S", 0.01)
    asked = 0

    async def main() -> None:
        nonlocal asked
        answers = asyncio.Event()

        async def look() -> None:
            nonlocal asked
            asked += 1
            await answers.wait()

        watched = Watched(look, "the store")
        assert [await watched.problem() for _ in range(3)] == ["the store has not answered for 0 s"] * 3
        answers.set()
        assert await watched.problem() is None
        await watched.aclose()

    loop.run(main())
    assert asked == 1


class Slow(RandomPublisher):
    """Publishes nothing: it begins."""

    begun = threading.Event()

    async def __call__(self, *asked: Any) -> Any:
        asked[-1]("prefill", 1, 2)
        self.begun.set()
        await asyncio.Event().wait()


def test_what_is_being_published_when_the_time_is_over_is_given_up_and_its_caller_told(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))

    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        with pytest.raises(Unavailable, match="given up"):
            for _ in publish(url, "manual", text="m" * 100):
                threading.Thread(target=stop_this).start()

    assert served(story, Stop(finish_s=0), create_app(store, Slow(store))) is False


def test_a_publisher_whose_cloud_stops_meanwhile_publishes_when_it_is_back(tmp_path: Path) -> None:
    store, publishers = open_store(str(tmp_path / "store")), list["subprocess.Popen[str]"]()
    (tmp_path / "manual.md").write_text("m" * 100)
    urls = list[str]()

    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        command = [sys.executable, "-m", "preread.cli", "publish", str(tmp_path / "manual.md"), "--cloud", url]
        publishers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        urls.append(url)
        assert Slow.begun.wait(60)
        stop_this()

    Slow.begun.clear()
    served(story, Stop(finish_s=0), create_app(store, Slow(store)))
    assert asyncio.run(store.names()) == []
    with serving(create_app(store, RandomPublisher(store)), port=int(urls[0].rpartition(":")[2])):
        said, told = publishers[0].communicate(timeout=60)
    assert publishers[0].returncode == 0, told
    assert "as this cloud is stopping" in told and "published 'manual'" in said
    assert [entry.name for entry in asyncio.run(store.names())] == ["manual"]


def test_who_waits_for_changes_is_let_go_when_the_cloud_leaves(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))

    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        events = {"Accept": "text/event-stream"}
        with httpx2.stream("GET", f"{url}/v1/catalogue", headers=events, trust_env=False, timeout=60) as waiting:
            lines = waiting.iter_lines()
            assert next(lines)
            stop_this()
            assert not [line for line in lines if line and not line.startswith((":", "data:", "event:", "id:"))]

    assert served(story, LONG_ENOUGH, create_app(store, RandomPublisher(store))) is False


def test_a_cloud_that_is_about_to_leave_takes_no_document(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))

    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        stop_this()
        until(f"{url}/readyz", 503)
        asked = httpx2.post(f"{url}/v1/contexts", json={"name": "a", "text": "b"}, trust_env=False)
        assert asked.status_code == 503 and asked.headers["retry-after"] == "10" and "stopping" in asked.text
        assert httpx2.get(f"{url}/v1/catalogue", trust_env=False).status_code == 200

    assert served(story, LONG, create_app(store, RandomPublisher(store))) is False


# The edge


@contextmanager
def answering(url: str, tokens: int) -> Iterator[Iterator[Any]]:
    """The events of an answer that goes on for so many tokens."""
    ask = {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    with httpx2.stream("POST", f"{url}/v1/completions", json=ask, trust_env=False, timeout=60) as answer:
        data = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
        yield (one if one == "[DONE]" else json.loads(one) for one in data)


def edge(model: Path, folder: Path, cloud: str | None = None) -> Starlette:
    return create_edge(AsyncEdge(str(model), cloud, window_tokens=2048, folder=folder))


def test_an_answer_that_is_under_way_goes_on_to_its_end(tiny_model: Path, tmp_path: Path) -> None:
    def story(url: str) -> None:
        until(f"{url}/readyz", 200)
        with answering(url, 200) as events:
            next(events)
            stop_this()
            told = list(events)
        assert told[-1] == "[DONE]" and told[-2]["choices"][0]["finish_reason"] == "length"

    assert served(story, LONG_ENOUGH, edge(tiny_model, tmp_path)) is False


def test_an_answer_that_takes_too_long_says_that_it_is_cut_short(tiny_model: Path, tmp_path: Path) -> None:
    """And so does one that is not streamed. An edge whose cloud is away is ready for both."""

    def whole(url: str) -> httpx2.Response:
        ask = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True}
        return httpx2.post(f"{url}/v1/completions", json=ask, trust_env=False, timeout=60)

    def story(url: str) -> None:
        assert until(f"{url}/readyz", 200).json() == {"status": "ready"}
        with ThreadPoolExecutor() as pool, answering(url, 2000) as events:
            next(events)
            other = pool.submit(whole, url)
            while "preread_requests_running 2.0" not in get(f"{url}/metrics").text:
                pass
            stop_this()
            *_, last = events
            assert "stopping" in last["error"]["message"] and last["error"]["code"] == "unavailable"
            assert other.result().status_code == 503 and "stopping" in other.result().text

    assert served(story, Stop(finish_s=0), edge(tiny_model, tmp_path, "http://127.0.0.1:9")) is False


def test_options_of_stopping_are_of_all_three_servers(preread: Any) -> None:
    for command in ("cloud", "edge", "attach"):
        ran = preread(command, "--drain-s", "-1")
        assert ran.code == 2 and "--drain-s" in ran.err
