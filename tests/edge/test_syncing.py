"""An edge keeps in step with its cloud: told where that tells, asking where it does not, whatever happens between."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.cloud.app import create_app
from preread.cloud.events import Request
from preread.edge import syncing
from preread.edge.contexts import Contexts
from preread.edge.published import ANYTHING, Interest
from preread.edge.syncing import Ear, keep_in_step, synced
from preread.errors import PrereadError, RemoteError, TransportError
from preread.plan.poll import SYNC_S, Tries
from preread.store.egress import CloudLink
from preread.store.objects import Objects, open_store
from preread.tasks import running
from preread.testing.cloud import RandomPublisher
from preread.testing.edges import OWN, serving_here
from preread.testing.proxy import Blackout, Proxy, Refuse, Reset
from preread.values import Fingerprint

OTHER = Fingerprint("0" * 64)
Asked = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is spread over seconds elsewhere is done at once."""
    monkeypatch.setattr(syncing, "SPREAD_S", 0.0)


class Counting:
    """Keeps what the catalogue is asked for: with which query, by whom: "listen" or "ask"."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.asked: Asked = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/catalogue":
            listens = b"text/event-stream" in dict(scope["headers"]).get(b"accept", b"")
            self.asked.append(("listen" if listens else "ask", scope["query_string"].decode()))
        await self._app(scope, receive, send)

    def count(self, how: str) -> int:
        return sum(one == how for one, _ in self.asked)


class OfBefore:
    """A cloud of before: it knows neither selections nor events, and ignores what it does not know."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            query = "&".join(one for one in scope["query_string"].decode().split("&") if one[:5] in ("limit", "after"))
            headers = [(name, value) for name, value in scope["headers"] if name not in (b"accept", b"last-event-id")]
            scope = {**scope, "query_string": query.encode(), "headers": headers}
        await self._app(scope, receive, send)


async def publish(store: Objects, name: str, text: str) -> None:
    await RandomPublisher(store)(Request(name, text, form="text"), lambda *_: None)


@asynccontextmanager
async def in_step(
    url: str, folder: Path, every_s: float = SYNC_S, interest: Interest = ANYTHING, own: Any = OWN
) -> AsyncGenerator[Contexts, None]:
    contexts = Contexts(folder, own, interest)
    contexts.restore()
    async with CloudLink(url) as link:
        async with running(keep_in_step(contexts, link, partial(contexts.sync, link), every_s, "nothing is done")):
            await contexts.asked_cloud.wait()
            yield contexts


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def names(contexts: Contexts) -> list[str]:
    return [entry.name for entry in contexts.entries()]


def here(contexts: Contexts) -> list[str]:
    return [known.entry.name for known in contexts.all()]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_change_is_told_and_nothing_is_asked_for_but_what_it_is_made_of(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store("memory:")
        counting = Counting(create_app(store, RandomPublisher(store)))
        async with serving_here(counting) as url, in_step(url, tmp_path) as contexts:
            await until(lambda: counting.count("listen") == 1)
            for step in range(3):
                await publish(store, f"name {step}", f"text {step}")
                await until(lambda: len(here(contexts)) == step + 1)  # noqa: B023
            assert await store.remove_name("name 1")
            await until(lambda: names(contexts) == ["name 0", "name 2"])
            assert (counting.count("ask"), counting.count("listen")) == (1, 1)
            assert contexts.version == (await store.listing()).version

    run(main)


@pytest.mark.parametrize("fault", ["cut", "refused", "black"])
def test_a_change_reaches_an_edge_that_was_cut_off(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "DEAF_S", 1.0)

    async def main() -> None:
        store = open_store("memory:")
        counting = Counting(create_app(store, RandomPublisher(store)))
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(serving_here(counting))
            proxy = await stack.enter_async_context(Proxy(("127.0.0.1", int(url.rpartition(":")[2]))))
            contexts = await stack.enter_async_context(in_step(proxy.url, tmp_path))
            await until(lambda: counting.count("listen") == 1)
            faults = {"cut": (Reset(0),), "refused": (Reset(0), Refuse()), "black": (Blackout(),)}
            proxy.faults = faults[fault]
            await publish(store, "meanwhile", "a text")
            await asyncio.sleep(2.0 if fault == "black" else 0.5)
            assert names(contexts) == []
            proxy.faults = ()
            await until(lambda: here(contexts) == ["meanwhile"])
            await publish(store, "later", "another text")
            await until(lambda: "later" in names(contexts))

    run(main)


@pytest.mark.parametrize("away", [True, False])
def test_only_a_cloud_that_is_there_and_does_not_tell_is_tried_ever_less_often(
    away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was away, five times in a row, is listened to within a second of being back."""
    failed = list[int]()
    monkeypatch.setattr(syncing, "listen_pause_s", lambda failures, chance: failed.append(failures) or 0.0)

    async def main() -> None:
        contexts = Contexts(tmp_path, OWN)
        contexts.asked_cloud.set()
        async with Proxy(("127.0.0.1", 1)) as nobody, CloudLink(f"http://127.0.0.1:{nobody.port}") as link:
            ear = Ear(contexts, link)
            async with running(ear.keep_listening()):
                for time in range(1, 6):
                    await until(lambda: ear.doubts)
                    with suppress(TransportError):
                        await contexts.sync(link)
                    assert contexts.unreachable
                    if not away:
                        contexts.unreachable = None
                    ear.doubts = False
                    await asyncio.sleep(syncing._LOOK_S)
                    contexts.unreachable = None
                    await until(lambda: len(failed) == time)  # noqa: B023

    run(main)
    assert failed == ([0] * 5 if away else [1, 2, 3, 4, 5])


def test_a_cloud_that_tells_nothing_is_asked_by_the_clock(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store("memory:")
        counting = Counting(OfBefore(create_app(store, RandomPublisher(store))))
        await publish(store, "first", "a text")
        async with serving_here(counting) as url, in_step(url, tmp_path, every_s=0.2) as contexts:
            assert names(contexts) == ["first"]
            await publish(store, "second", "another text")
            await until(lambda: here(contexts) == ["first", "second"])
            assert counting.count("ask") >= 2, "it was asked again"

    run(main)


def test_who_wants_to_ask_rarely_does_not_listen(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store("memory:")
        counting = Counting(create_app(store, RandomPublisher(store)))
        async with serving_here(counting) as url, in_step(url, tmp_path, every_s=3600) as contexts:
            await publish(store, "first", "a text")
            await asyncio.sleep(0.3)
            assert names(contexts) == [] and counting.asked[0][0] == "ask" and len(counting.asked) == 1

    run(main)


def test_what_is_listened_for_grows_with_what_is_asked_for(tmp_path: Path) -> None:
    """A name of another model is known once it was looked up; from then on its changes are told."""

    async def main() -> None:
        store = open_store("memory:")
        await publish(store, "theirs", "a text")
        counting = Counting(create_app(store, RandomPublisher(store)))
        own = replace(OWN, fingerprint=OTHER)
        async with serving_here(counting) as url, in_step(url, tmp_path, own=own) as contexts:
            await until(lambda: counting.count("listen") == 1)
            async with CloudLink(url) as link:
                assert contexts.entry("theirs") is None
                await contexts.look_up("theirs", link)
                assert len((await contexts.get("theirs", link)).tokens) == len("a text")
            await until(lambda: counting.count("listen") == 2)
            await publish(store, "theirs", "a longer text")
            await until(lambda: contexts.entries()[0].token_count == len("a longer text"))
            assert not any("theirs" in query for _, query in counting.asked), "the name itself is never told"

    run(main)


def test_an_edge_that_starts_again_asks_for_what_has_changed_only(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store("memory:")
        counting = Counting(create_app(store, RandomPublisher(store)))
        async with serving_here(counting) as url:
            await publish(store, "first", "a text")
            async with in_step(url, tmp_path) as contexts:
                await until(lambda: here(contexts) == ["first"])
                known = contexts.version
            await publish(store, "second", "another text")
            counting.asked.clear()
            async with in_step(url, tmp_path) as contexts:
                await until(lambda: here(contexts) == ["first", "second"])
            assert f"since={known}" in counting.asked[0][1]
            (tmp_path / "catalogue" / OWN.fingerprint[:16] / "catalogue.json").write_bytes(b"damaged")
            contexts = Contexts(tmp_path, OWN)
            contexts.restore()
            assert contexts.version == "", "what is not known is not said to be"

    run(main)


def test_of_a_large_cloud_only_what_is_wanted_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preread.edge import published

    monkeypatch.setattr(published, "FEW_BYTES", 2000)

    async def main() -> None:
        store = open_store("memory:")
        for number in range(20):
            await publish(store, f"{'ours' if number % 2 else 'theirs'} {number:02}", f"text {number}")
        async with serving_here(create_app(store, RandomPublisher(store))) as url, CloudLink(url) as link:
            few, prefixed, pinned, all = (
                Contexts(tmp_path / str(number), OWN, interest)
                for number, interest in enumerate(
                    (Interest(), Interest(("ours",)), Interest(("none",), ("theirs 04",)), Interest(everything=True))
                )
            )
            for contexts in (few, prefixed, pinned, all):
                await contexts.sync(link)
            assert len(few.entries()) == 20 and len(few.all()) == 1, "one, to learn of the profile"
            await few.get("ours 03", link)
            await few.sync(link)
            assert "ours 03" in here(few) and len(few.all()) == 2
            manifest = few.named("ours 03").manifest
            assert manifest is not None and not few.complete and not few.gone
            assert await store.remove_name("ours 03")
            await few.sync(link)
            cells = {cell.id for rung in manifest.rungs for cell in rung.segments}
            assert few.gone == cells, "what is on the disk of it can go, though not all is known"
            assert len(prefixed.entries()) == 10 and all_begin(prefixed, "ours")
            assert names(pinned) == here(pinned) == ["theirs 04"]
            assert len(all.all()) == 20

    run(main)


def all_begin(contexts: Contexts, prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names(contexts))


def test_a_name_that_comes_to_be_for_another_model_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store("memory:")
        await publish(store, "one", "a text")
        async with serving_here(create_app(store, RandomPublisher(store))) as url, CloudLink(url) as link:
            contexts = Contexts(tmp_path, OWN)
            await contexts.sync(link)
            entry = contexts.entries()[0]
            contexts.version = ""  # the whole list is asked for, in which it is not

            await store.put_name(msgspec.structs.replace(entry, fingerprint=OTHER))
            await contexts.sync(link)
            await contexts.sync(link)
            assert all(entry.fingerprint == OTHER for entry in contexts.entries())

    run(main)


@pytest.mark.parametrize(
    ("error", "answered"), [(TransportError("no connection"), False), (RemoteError("status 502"), True), (None, True)]
)
def test_a_cloud_that_gives_no_answer_is_told_from_one_that_answers_with_errors(
    error: PrereadError | None, answered: bool
) -> None:
    async def sync() -> None:
        if error is not None:
            raise error

    tries = asyncio.run(synced(sync, Tries.none(0.0), "nothing is done"))
    assert (tries.answered, tries.failures) == (answered, 0 if error is None else 1)
