"""The catalogue over real HTTP: whole, in pages, by selection, as changes since a version, and as they come."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from preread import lifecycle
from preread.errors import PrereadError, RemoteError
from preread.store import listed
from preread.store.listed import catalogue_route
from preread.store.routes import on_error, on_http_error
from preread.testing.cloud import serving
from preread.testing.edges import serving_here
from preread.wire import told
from preread.wire.digest import object_id
from preread.wire.pages import Listing
from preread.wire.selection import EVERYTHING, Selection, of_names
from preread.wire.told import Events, Told

OWN, OTHER = "a" * 64, "b" * 64


def line(name: str, fingerprint: str = OWN) -> bytes:
    """As much of an entry as matters here."""
    return b'{"fingerprint":"%b","name":"%b"}' % (fingerprint.encode(), name.encode())


class Shelf:
    """A catalogue that can be changed, from the loop that serves it or from another thread."""

    def __init__(self) -> None:
        self.now = Listing({})
        self.broken = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def put(self, *lines: tuple[str, bytes]) -> Listing:
        self.now = Listing(dict(lines), (), self.now)
        self.wake()
        return self.now

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def listing(self) -> Listing:
        if self.broken:
            raise RemoteError("store ./x cannot be read")
        return self.now

    async def changed(self, version: str) -> Listing:
        while True:
            event = asyncio.Event()
            self._waiting.append((asyncio.get_running_loop(), event))
            listing = await self.listing()
            if listing.version != version:
                return listing
            await event.wait()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def app_of(shelf: Shelf) -> Starlette:
    handlers: Any = {PrereadError: on_error, HTTPException: on_http_error}
    return Starlette(routes=[catalogue_route(shelf)], exception_handlers=handlers)


@pytest.fixture
def client(shelf: Shelf) -> Iterator[httpx2.Client]:
    with serving(app_of(shelf)) as url, httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def names(answer: httpx2.Response) -> list[str]:
    return [entry["name"] for entry in answer.json()["contexts"]]


def test_catalogue(client: httpx2.Client, shelf: Shelf) -> None:
    answer = client.get("/v1/catalogue")
    assert (answer.content, answer.headers["cache-control"]) == (Listing({}).page(), "no-cache")
    etag = answer.headers["etag"]
    assert etag == f'"{object_id(answer.content)}"'
    assert client.get("/v1/catalogue", headers={"If-None-Match": etag}).status_code == 304
    shelf.put(("a", line("a")), ("b", line("b")))
    assert client.get("/v1/catalogue", headers={"If-None-Match": etag}).content == shelf.now.page()


def test_pages_of_the_catalogue_have_the_tag_of_the_whole(client: httpx2.Client, shelf: Shelf) -> None:
    shelf.put(*((name, line(name)) for name in ("a", "b&c", "d")))
    pages, tags, after = [], set(), ""
    while True:
        answer = client.get("/v1/catalogue", params={"limit": 1, "after": after})
        pages.append(names(answer))
        tags.add(answer.headers["etag"])
        if "next" not in answer.json():
            break
        after = answer.json()["next"]
    assert pages == [["a"], ["b&c"], ["d"]]
    assert tags == {client.get("/v1/catalogue").headers["etag"]}


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "9" * 5000, "١"])
def test_a_limit_that_is_none_is_refused(client: httpx2.Client, limit: str) -> None:
    answer = client.get("/v1/catalogue", params={"limit": limit})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "limit"


@pytest.mark.parametrize("param", ["fingerprint", "digest", "family"])
def test_what_a_cloud_cannot_be_asked_by_is_refused_by_name(client: httpx2.Client, param: str) -> None:
    answer = client.get("/v1/catalogue", params={param: "no value"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_only_what_is_selected_comes(client: httpx2.Client, shelf: Shelf) -> None:
    shelf.put(("a1", line("a1")), ("a2", line("a2", OTHER)), ("b1", line("b1")), ("b2", line("b2", OTHER)))

    def got(**asked: Any) -> list[str]:
        return names(client.get("/v1/catalogue", params=asked))

    assert got(fingerprint=OTHER) == ["a2", "b2"] and got(prefix="a") == ["a1", "a2"]
    assert got(prefix="a", fingerprint=OTHER) == ["a2"] and got(fingerprint=[OWN, OTHER], prefix="b") == ["b1", "b2"]
    assert got(digest=object_id(b"b2")) == ["b2"] and got(prefix="a", digest=object_id(b"b2")) == ["a1", "a2", "b2"]
    assert got(prefix="c") == []


def test_changes_since_a_version_come_alone(client: httpx2.Client, shelf: Shelf) -> None:
    known = shelf.put(("a", line("a")), ("b", line("b"))).version
    shelf.put(("a", line("a")), ("c", line("c")), ("d", line("d", OTHER)))
    changes = client.get("/v1/catalogue", params={"since": known, "fingerprint": OWN}).json()
    assert (changes["since"], changes["removed"]) == (known, ["b"])
    assert [entry["name"] for entry in changes["contexts"]] == ["c"]
    whole = client.get("/v1/catalogue", params={"since": "0" * 64})
    assert "since" not in whole.json() and names(whole) == ["a", "c", "d"]


def events_of(response: httpx2.Response) -> Iterator[Told]:
    reader = Events()
    for data in response.iter_bytes():
        yield from reader.feed(data)


def test_who_listens_is_told_of_each_change(client: httpx2.Client, shelf: Shelf) -> None:
    known = shelf.put(("a", line("a"))).version
    headers = {"Accept": told.MEDIA, "Last-Event-ID": known}
    with client.stream("GET", "/v1/catalogue", params={"fingerprint": OWN}, headers=headers) as response:
        assert response.headers["content-type"].startswith(told.MEDIA)
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
        events = events_of(response)
        assert next(events) == Told(known), "the first word says that it is the version that is known"
        for added in ("b", "c"):
            before, after = shelf.now, shelf.put(*((name, line(name)) for name in ("a", added)))
            assert next(events) == Told(after.version, after.since(before.version))
    headers["Last-Event-ID"] = known
    with client.stream("GET", "/v1/catalogue", headers=headers) as response:
        assert next(events_of(response)) == Told(shelf.now.version, shelf.now.since(known) or b"")
    headers["Last-Event-ID"] = "0" * 64
    with client.stream("GET", "/v1/catalogue", headers=headers) as response:
        assert next(events_of(response)) == Told(""), "a version that nobody knows: the pages are to be asked for"


def test_what_is_no_version_is_refused(client: httpx2.Client) -> None:
    assert client.get("/v1/catalogue", headers={"Accept": told.MEDIA, "Last-Event-ID": "x"}).status_code == 400


def test_a_store_that_fails_is_said_before_a_word_is(client: httpx2.Client, shelf: Shelf) -> None:
    shelf.broken = True
    assert client.get("/v1/catalogue", headers={"Accept": told.MEDIA}).status_code == 502


def telling(shelf: Shelf, over: asyncio.Event, selection: Selection = EVERYTHING) -> AsyncGenerator[bytes, None]:
    return listed.tell(shelf, selection, shelf.now.version, over, silence_s=0.01)


def test_silence_is_broken_and_says_which_version_passed_unseen(shelf: Shelf) -> None:
    async def main() -> None:
        shelf.put(("a", line("a")))
        words = telling(shelf, asyncio.Event(), Selection((), ("a",), of_names(["other"])))
        assert await anext(words) == told.write(Told(shelf.now.version))
        assert await anext(words) == told.SILENCE
        shelf.put(("a", line("a")), ("b", line("b")))
        while (word := await anext(words)) == told.SILENCE:
            pass
        assert word == told.write(Told(shelf.now.version)), "nothing that is selected has changed"
        assert await anext(words) == told.SILENCE
        shelf.broken = True
        shelf.wake()
        assert [word async for word in words if word != told.SILENCE] == [], "it ends where the store fails"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_listens_is_let_go_at_once_when_the_server_leaves(shelf: Shelf) -> None:
    async def main() -> None:
        app = app_of(shelf)
        async with serving_here(app) as url, httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            async with client.stream("GET", "/v1/catalogue", headers={"Accept": told.MEDIA}) as response:
                came = response.aiter_bytes()
                await anext(came)
                lifecycle.of(app).leaving.set()
                assert [data async for data in came] == []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_so_many_may_listen_and_who_goes_makes_room(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "MOST_LISTENERS", 4)
    headers = {"Accept": told.MEDIA}
    with serving(app_of(shelf)) as url, httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        with contextlib.ExitStack() as stack:
            listening = [stack.enter_context(client.stream("GET", "/v1/catalogue", headers=headers)) for _ in "12"]
            said = list(map(events_of, listening))
            assert [next(events) for events in said] == [Told("")] * 2
            refused = client.get("/v1/catalogue", headers=headers)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
            assert client.get("/v1/catalogue").status_code == 200, "asking goes on as ever"
        let_in = threading.Event()

        def until_let_in() -> None:
            while not let_in.is_set():
                with client.stream("GET", "/v1/catalogue", headers=headers) as response:
                    if response.status_code == 200:
                        let_in.set()

        trying = threading.Thread(target=until_let_in)
        trying.start()
        trying.join(60)
        assert let_in.is_set()
