"""The cloud over real HTTP: publishing, events, removal, keys, limits."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from preread.cloud import app as app_module
from preread.cloud import turns
from preread.cloud.app import Publisher, Report, Served, create_app
from preread.cloud.events import Published, Request
from preread.cloud.ray.publisher import ReplicaPublisher
from preread.errors import EngineError, UnknownContext
from preread.store.auth import Keys
from preread.store.egress import CloudLink
from preread.store.guard import Access
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher, serving
from preread.wire import catalogue, manifest, pages

TEXT = "A long shared context."


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(params=["embedded", pytest.param("ray", marks=pytest.mark.long)])
def url(store: Objects, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A cloud that publishes itself, and one that has replicas do it."""
    publisher: Publisher = RandomPublisher(store)
    if request.param == "ray":
        replicas, where = request.getfixturevalue("random_replicas")
        where.write_text(str(tmp_path / "store"))
        publisher = ReplicaPublisher(store, replicas.make)
    with serving(create_app(store, publisher)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, trust_env=False) as client:
        yield client


def events_of(answer: httpx2.Response) -> list[dict[str, object]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.content.splitlines()]


def names_at(client: httpx2.Client) -> list[str]:
    return [entry.name for entry in catalogue.loads(client.get("/v1/catalogue").content).contexts]


def test_published_context_can_be_read_back_through_the_link(client: httpx2.Client, url: str) -> None:
    *progress, last = events_of(client.post("/v1/contexts", json={"name": "manual", "text": TEXT}))
    assert [event["stage"] for event in progress] == ["prefill", "encode"]
    assert all(event["event"] == "progress" and event["done"] == event["total"] for event in progress)
    assert last["event"] == "published" and set(last) == {"event", "entry", "bytes", "seconds"}

    async def read_back() -> None:
        async with CloudLink(url) as link:
            found = await link.catalogue()
            assert found is not None and await link.catalogue(found[1]) is None
            (entry,) = catalogue.loads(found[0]).contexts
            assert entry.name == "manual" and entry.token_count == len(TEXT)
            document = manifest.loads(await link.get(catalogue.manifest_ref(entry)))
            await link.get(catalogue.tokens_ref(entry))
            sizes = {}
            for rung in document.rungs:
                frames = [await link.get(place.ref) for place in manifest.places(document, rung.name)]
                sizes[rung.name] = sum(map(len, frames))
            assert sizes == last["bytes"]

    asyncio.run(read_back())


def test_tokens_instead_of_text(client: httpx2.Client) -> None:
    last = events_of(client.post("/v1/contexts", json={"name": "ids", "tokens": [1, 2, 3], "form": "chat"}))[-1]
    assert last["entry"]["token_count"] == 3 and last["entry"]["form"] == "chat"  # type: ignore[index]


def test_catalogue_follows_publication_and_removal(client: httpx2.Client) -> None:
    assert names_at(client) == []
    for name in ("b", "a", "ü b?"):
        client.post("/v1/contexts", json={"name": name, "text": TEXT + name})
    assert names_at(client) == ["a", "b", "ü b?"]
    answer = client.delete("/v1/contexts/ü b%3F")
    assert (answer.status_code, answer.json()) == (200, {"removed": "ü b?"})
    assert names_at(client) == ["a", "b"]


def test_a_context_that_was_published_under_a_name_no_longer_fit_is_read_and_removed(
    client: httpx2.Client, store: Objects
) -> None:
    asyncio.run(RandomPublisher(store)(Request("man\u202eual", TEXT), lambda *_: None))
    assert names_at(client) == ["man\u202eual"]
    assert client.delete("/v1/contexts/man%E2%80%AEual").status_code == 200
    assert names_at(client) == []


def test_removing_an_unknown_context(client: httpx2.Client) -> None:
    client.post("/v1/contexts", json={"name": "manual", "text": TEXT})
    answer = client.delete("/v1/contexts/manuel")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "unknown_context" and error["message"] == str(UnknownContext("manuel", ("manual",)))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": "", "text": "x"}, "cannot name"),
        ({"name": "a/b", "text": "x"}, "cannot name"),
        ({"name": "n" * 129, "text": "x"}, "cannot name"),
        ({"name": "a\nb", "text": "x"}, "cannot name"),
        ({"name": "a\u202eb", "text": "x"}, "U+202E is not seen in it"),
        ({"name": "manual\xa0", "text": "x"}, "U+00A0 is not seen in it"),
        ({"name": "m\u0430nual", "text": "x"}, "Cyrillic and Latin letters look alike"),
        ({"name": "a", "text": ""}, "empty"),
        ({"name": "a", "tokens": []}, "empty"),
        ({"name": "a"}, "either"),
        ({"name": "a", "text": "x", "tokens": [1]}, "either"),
        ({"name": "a", "text": 5}, "$.text"),
        ({"name": "a", "tokens": [1, -1]}, "$.tokens["),
        ({"name": "a", "tokens": [2**31]}, "$.tokens["),
        ({"name": "a", "tokens": [1.5]}, "$.tokens["),
        ({"name": "a", "text": "x", "form": "poem"}, "$.form"),
        ({"name": "a", "text": "x", "rungs": []}, "rungs"),
        ({"name": "a", "text": "x" * 4100}, "4 more than the window of 4096"),
        ([1], "object"),
    ],
)
def test_what_cannot_be_published_is_refused_before_work_starts(
    client: httpx2.Client, body: object, words: str
) -> None:
    answer = client.post("/v1/contexts", json=body)
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/json"
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert names_at(client) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"name": "a", "text": "\\ud800"}'])
def test_what_is_no_json_is_refused(client: httpx2.Client, content: bytes) -> None:
    answer = client.post("/v1/contexts", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_content_types_that_web_pages_may_send_unasked_are_refused(client: httpx2.Client) -> None:
    body = json.dumps({"name": "a", "text": "x"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/v1/contexts", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]
    assert names_at(client) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_body_has_a_limit(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", 1000)
    body = json.dumps({"name": "a", "text": "x" * 1000}).encode()
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/contexts", content=iter([body]) if chunked else body, headers=headers)
    assert answer.status_code == 413 and "at most 1000 bytes" in answer.json()["error"]["message"]


def test_health(client: httpx2.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}


@dataclass
class Scripted:
    """Publishes like RandomPublisher once it is let go; says when it starts and whether it was cancelled."""

    store: Objects
    failure: Exception | None = None
    silent: bool = False
    begun: list[str] = field(default_factory=list)
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    inside: int = 0
    most: int = 0

    async def __call__(self, ask: Request, progress: Report) -> Published:
        self.inside, self.most = self.inside + 1, max(self.most, self.inside + 1)
        self.begun.append(ask.name)
        try:
            if not self.silent:
                await asyncio.to_thread(progress, "prefill", 0, 1)
            self.started.release()
            while not self.go_on.is_set():
                await asyncio.sleep(0.001)
            if self.failure is not None:
                raise self.failure
            return await RandomPublisher(self.store)(ask, progress)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.inside -= 1


def publish_in_thread(url: str, name: str) -> tuple[threading.Thread, list[httpx2.Response]]:
    answers: list[httpx2.Response] = []

    def work() -> None:
        answers.append(httpx2.post(f"{url}/v1/contexts", json={"name": name, "text": TEXT + name}, trust_env=False))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, answers


def test_one_publication_at_a_time_while_others_read(store: Objects) -> None:
    publisher = Scripted(store)
    with serving(create_app(store, publisher)) as url:
        ref = asyncio.run(store.put("segments", b"already here"))
        threads = [publish_in_thread(url, name) for name in ("one", "two")]
        assert publisher.started.acquire(timeout=10)
        assert httpx2.get(f"{url}/v1/segments/{ref.id}", trust_env=False).content == b"already here"
        assert httpx2.get(f"{url}/v1/catalogue", trust_env=False).status_code == 200
        publisher.go_on.set()
        for thread, answers in threads:
            thread.join(timeout=10)
            assert events_of(answers[0])[-1]["event"] == "published"
        assert publisher.most == 1
        found = catalogue.loads(httpx2.get(f"{url}/v1/catalogue", trust_env=False).content)
        assert [entry.name for entry in found.contexts] == ["one", "two"]


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (EngineError("the model is tired"), "engine_error", "the model is tired"),
        (ZeroDivisionError("secret detail"), "internal_error", "look at the cloud's log"),
    ],
)
def test_failure_after_work_began_is_the_last_event(store: Objects, failure: Exception, code: str, words: str) -> None:
    publisher = Scripted(store, failure)
    publisher.go_on.set()
    with serving(create_app(store, publisher)) as url:
        answer = httpx2.post(f"{url}/v1/contexts", json={"name": "a", "text": TEXT}, trust_env=False)
        first, last = events_of(answer)
        assert first["event"] == "progress" and last["event"] == "error"
        error = last["error"]
        assert isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code and words in error["message"] and "secret" not in error["message"]
        publisher.failure = None
        again = httpx2.post(f"{url}/v1/contexts", json={"name": "a", "text": TEXT}, trust_env=False)
        assert events_of(again)[-1]["event"] == "published"


def test_publisher_that_goes_away_cancels_the_work(store: Objects) -> None:
    publisher = Scripted(store)
    with serving(create_app(store, publisher)) as url:
        body = {"name": "a", "text": TEXT}
        with httpx2.stream("POST", f"{url}/v1/contexts", json=body, trust_env=False) as answer:
            next(answer.iter_lines())
        assert publisher.cancelled.wait(timeout=10)
        publisher.go_on.set()
        again = httpx2.post(f"{url}/v1/contexts", json=body, trust_env=False)
        assert events_of(again)[-1]["event"] == "published"


def test_a_publication_that_the_catalogue_has_no_room_for_is_refused_before_work_starts(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Scripted(store)
    publisher.go_on.set()
    with serving(create_app(store, publisher)) as url:
        monkeypatch.setattr(pages, "MAX_ENTRIES", 1)
        first = httpx2.post(f"{url}/v1/contexts", json={"name": "one", "text": TEXT}, trust_env=False)
        assert events_of(first)[-1]["event"] == "published" and publisher.started.acquire(blocking=False)
        full = httpx2.post(f"{url}/v1/contexts", json={"name": "two", "text": TEXT}, trust_env=False)
        assert full.status_code == 409 and full.json()["error"]["code"] == "catalogue_full"
        assert "preread contexts rm" in full.json()["error"]["message"]
        assert not publisher.started.acquire(blocking=False)
        assert httpx2.get(f"{url}/v1/catalogue", trust_env=False).status_code == 200
        again = httpx2.post(f"{url}/v1/contexts", json={"name": "one", "text": TEXT + "!"}, trust_env=False)
        assert events_of(again)[-1]["event"] == "published"
        httpx2.delete(f"{url}/v1/contexts/one", trust_env=False)
        second = httpx2.post(f"{url}/v1/contexts", json={"name": "two", "text": TEXT}, trust_env=False)
        assert events_of(second)[-1]["event"] == "published"


def test_a_store_that_holds_more_than_one_answer_may_is_served_in_pages(
    store: Objects, client: httpx2.Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "edcba":
        client.post("/v1/contexts", json={"name": name, "text": TEXT + name})
    client.delete("/v1/contexts/e")
    monkeypatch.setattr(pages, "MAX_ENTRIES_BYTES", 1200)
    assert catalogue.loads(client.get("/v1/catalogue").content).next == "b"

    async def walk() -> None:
        async with CloudLink(url) as link:
            found = await link.catalogue()
            assert found is not None and await link.catalogue(found[1]) is None
            read = catalogue.loads(found[0])
            assert [entry.name for entry in read.contexts] == list("abcd") and read.removed == ("e",)
            await asyncio.to_thread(client.delete, "/v1/contexts/d")  # is on another page than the first
            assert await link.catalogue(found[1]) is not None

    asyncio.run(walk())


@contextmanager
def begun(url: str, name: str) -> Iterator[tuple[httpx2.Response, Iterator[dict[str, object]]]]:
    """A publication whose answer is being read: its head has come, and its lines come as they do."""
    body = {"name": name, "text": TEXT + name}
    with httpx2.stream("POST", f"{url}/v1/contexts", json=body, trust_env=False) as answer:
        yield answer, (json.loads(line) for line in answer.iter_lines())


def test_who_waits_is_told_at_once_how_many_are_before(store: Objects) -> None:
    publisher = Scripted(store)
    with serving(create_app(store, publisher)) as url, begun(url, "one"):
        assert publisher.started.acquire(timeout=10)
        with begun(url, "two") as (answer, second), begun(url, "three") as (_, third):
            assert answer.status_code == 200
            assert next(second) == {"event": "progress", "stage": "queue", "done": 0, "total": 1}
            assert next(third) == {"event": "progress", "stage": "queue", "done": 0, "total": 2}
            publisher.go_on.set()
            assert next(second) == {"event": "progress", "stage": "queue", "done": 1, "total": 1}
            assert [next(third)["done"] for _ in "ab"] == [1, 2]
            assert [line for line in second if line["event"] == "published"]
            assert [line for line in third if line["event"] == "published"]


def test_what_callers_that_have_left_wanted_is_not_done(store: Objects) -> None:
    publisher = Scripted(store)
    app = create_app(store, publisher)
    with serving(app) as url, begun(url, "one"):
        assert publisher.started.acquire(timeout=10)
        for name in ("left", "left too"):
            with begun(url, name) as (_, lines):
                assert next(lines)["stage"] == "queue"
        with begun(url, "honest") as (_, lines):
            while (place := next(lines))["total"] != 1:  # a line that is read no more takes a moment to be noticed
                assert place["stage"] == "queue"
                if place["done"] == place["total"] - 1:
                    break
            publisher.go_on.set()
            assert [line for line in lines if line["event"] == "published"]
    assert publisher.begun == ["one", "honest"]


def test_a_caller_that_leaves_before_the_first_report_is_noticed(store: Objects) -> None:
    publisher = Scripted(store, silent=True)
    with serving(create_app(store, publisher)) as url:
        with pytest.raises(httpx2.ReadTimeout), httpx2.Client(timeout=0.2, trust_env=False) as client:
            client.post(f"{url}/v1/contexts", json={"name": "a", "text": TEXT})
        assert publisher.cancelled.wait(timeout=10)


def test_too_many_that_wait_are_refused_and_told_when_to_come_again(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Scripted(store)
    monkeypatch.setattr(turns, "MOST_OF_A_CALLER", 2)
    with serving(create_app(store, publisher)) as url, begun(url, "one"):
        assert publisher.started.acquire(timeout=10)
        with begun(url, "two") as (_, lines):
            next(lines)
            for most, status, code in ((2, 429, "rate_limit_exceeded"), (9, 503, "overloaded")):
                monkeypatch.setattr(turns, "MOST_OF_A_CALLER", most)
                monkeypatch.setattr(turns, "MOST", 2)
                answer = httpx2.post(f"{url}/v1/contexts", json={"name": "x", "text": TEXT}, trust_env=False)
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
                assert int(answer.headers["retry-after"]) > 0
            monkeypatch.setattr(turns, "MOST", 9)
            monkeypatch.setattr(turns, "MOST_BYTES", 100)
            answer = httpx2.post(f"{url}/v1/contexts", json={"name": "x", "text": TEXT}, trust_env=False)
            assert answer.status_code == 503
        publisher.go_on.set()


def test_a_long_silence_is_filled_with_the_last_line(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_KEEP_ALIVE_S", 0.01)
    publisher = Scripted(store)
    with serving(create_app(store, publisher)) as url, begun(url, "one") as (_, lines):
        assert [next(lines) for _ in range(3)] == [{"event": "progress", "stage": "prefill", "done": 0, "total": 1}] * 3
        publisher.go_on.set()
        assert [line["event"] for line in lines][-1] == "published"


KEYED = [
    ("GET", "/v1/catalogue"),
    ("GET", "/v1/segments/" + "a" * 64),
    ("POST", "/v1/contexts"),
    ("DELETE", "/v1/contexts/a"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), KEYED)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic right", "right", "bearer-right"])
def test_api_key_is_needed_for_everything_but_health(
    store: Objects, method: str, path: str, header: str | None
) -> None:
    app = create_app(store, RandomPublisher(store), Access(Keys.of(("read:right", "publish:another"), "read")))

    async def main() -> None:
        transport = httpx2.ASGITransport(app)
        headers = {} if header is None else {"Authorization": header}
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloud", headers=headers) as client:
            answer = await client.request(method, path)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await client.get("/health")).status_code == 200
            good = await client.request(method, path, headers={"Authorization": "Bearer another"})
            assert good.status_code != 401

    asyncio.run(main())


def test_objects_behind_a_key_are_not_for_shared_caches(store: Objects) -> None:
    ref = asyncio.run(store.put("segments", b"for key holders"))

    async def ask(keys: Keys | None) -> str:
        transport = httpx2.ASGITransport(create_app(store, RandomPublisher(store), Access(keys)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get(f"/v1/segments/{ref.id}", headers={"Authorization": "Bearer k"})
            return str(answer.headers["cache-control"])

    assert asyncio.run(ask(Keys.of(("k",), "read"))).startswith("private")
    assert asyncio.run(ask(None)).startswith("public")


def test_what_is_in_the_background_is_published_when_nobody_waits(store: Objects) -> None:
    first, began, free = threading.Event(), list[str](), threading.Event()
    random = RandomPublisher(store)

    async def publisher(ask: Request, progress: Report) -> Published:
        began.append(ask.name)
        first.set()
        await asyncio.to_thread(free.wait)
        return await random(ask, progress)

    with serving(create_app(store, publisher)) as url:

        def publish(name: str, priority: str, heard: threading.Event) -> None:
            body = {"name": name, "text": TEXT + name, "priority": priority}
            with httpx2.stream("POST", f"{url}/v1/contexts", json=body, timeout=60, trust_env=False) as answer:
                for line in answer.iter_lines():
                    if "queue" in line:
                        heard.set()

        threads = []
        for name, priority in (("a", "background"), ("b", "background"), ("c", "interactive")):
            heard = threading.Event()
            threads.append(threading.Thread(target=publish, args=(name, priority, heard)))
            threads[-1].start()
            assert (first if name == "a" else heard).wait(30)
        free.set()
        for thread in threads:
            thread.join()
    assert began == ["a", "c", "b"]


def test_a_model_is_honoured_or_refused_by_name(store: Objects, client: httpx2.Client) -> None:
    ask = {"name": "manual", "text": TEXT, "model": "large"}
    for path in ("/v1/contexts", "/v1/count"):
        refused = client.post(path, json=ask)
        assert refused.status_code == 400
        assert "does not run model 'large'; it runs: none that it can be asked for by name" in refused.text
    small, large = RandomPublisher(store), RandomPublisher(store, rungs=("lossless",))
    served = {name: Served(one, one.counted) for name, one in (("small", small), ("large", large))}
    with serving(create_app(store, small, counter=small.counted, served=served)) as url:
        for model, rungs in (("large", {"lossless"}), ("small", {"lossless", "q4"}), (None, {"lossless", "q4"})):
            answer = httpx2.post(f"{url}/v1/contexts", json={**ask, "model": model}, trust_env=False)
            assert set(events_of(answer)[-1]["bytes"]) == rungs  # type: ignore[call-overload]
        assert (
            "it runs: large, small" in httpx2.post(f"{url}/v1/count", json={**ask, "model": "x"}, trust_env=False).text
        )
