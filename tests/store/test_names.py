"""Many writers on one store, in every order of their requests, with crashes and lost answers between any two."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore

from preread.cloud.events import Request
from preread.errors import PrereadError, RemoteError, Unavailable
from preread.store import names as logs
from preread.store import objects, upkeep
from preread.store.blobs import Blobs, Found
from preread.store.objects import Objects, open_store
from preread.testing.cloud import FINGERPRINT, RandomPublisher
from preread.testing.store import needs
from preread.wire import log
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.log import Base, Change, State


class Died(BaseException):
    """The process is no more."""


class Stage:
    """Requests of all writers wait here until it is their turn."""

    def __init__(self) -> None:
        self.backend = MemoryStore()
        self.waiting: list[tuple[str, str, asyncio.Future[str]]] = []
        self.dead: set[str] = set()
        self.now_s = 0.0

    async def turn(self, writer: str, what: str) -> str:
        """What becomes of a request: "done", "failed", "lost" (it is done, and its answer is lost), "died", "last"."""
        if writer in self.dead:
            raise Died
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((writer, what, future))
        return await future

    def kill(self, writer: str) -> None:
        self.dead.add(writer)
        for one in [one for one in self.waiting if one[0] == writer]:
            self.waiting.remove(one)
            one[2].set_result("died")


class Staged(Blobs):
    """One writer's view of the bucket."""

    def __init__(self, stage: Stage, writer: str) -> None:
        super().__init__(stage.backend, f"{writer}'s")
        self._stage, self._writer = stage, writer

    async def _at_its_turn(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        fate = await self._stage.turn(self._writer, what)
        if fate == "failed":
            raise RemoteError("it could not be reached")
        if fate == "died":
            raise Died
        answer = await call()
        if fate == "lost":
            raise RemoteError("its answer was lost")
        if fate == "last":
            raise Died
        return answer

    async def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        return await self._at_its_turn("read", lambda: Blobs.read(self, key, start, stop))

    async def size(self, key: str) -> int | None:
        return await self._at_its_turn("read", lambda: Blobs.size(self, key))

    async def below(self, folder: str) -> list[str]:
        return await self._at_its_turn("read", lambda: Blobs.below(self, folder))

    async def all_in(self, folder: str) -> list[Found]:
        return await self._at_its_turn("read", lambda: Blobs.all_in(self, folder))

    async def changed(self, key: str) -> datetime | None:
        return await self._at_its_turn("read", lambda: Blobs.changed(self, key))

    async def put_object(self, key: str, data: bytes) -> None:
        await self._at_its_turn("write", lambda: Blobs.put_object(self, key, data))

    async def create_pointer(self, key: str, data: bytes, *, urgent: bool = False) -> bool:
        return await self._at_its_turn("create", lambda: Blobs.create_pointer(self, key, data, urgent=urgent))

    async def delete_objects(self, keys: Any) -> None:
        for key in keys:  # one by one, so that it can end between them
            await self._at_its_turn("delete", lambda key=key: Blobs.delete_objects(self, [key]))


Job = tuple[str, str, str]
KINDS = ["publish", "again", "again", "remove", "remove", "gc"]
jobs = st.tuples(st.sampled_from(KINDS), st.sampled_from("xy"), st.sampled_from(["a text", "another"]))


async def work(store: Objects, todo: list[Job], done: list[Job]) -> None:
    """Do one after the other, and note what is acknowledged."""
    known = list[Entry]()
    for what, name, text in todo:
        with suppress(PrereadError):
            if what == "publish":
                publisher = RandomPublisher(store, rungs=("q4",))
                known.append((await publisher(Request(name, text, form="text"), lambda *_: None)).entry)
                done.append((what, name, text))
            elif what == "again" and known:  # it relies on what is there, and puts nothing
                await store.put_name(msgspec.structs.replace(known[-1], name=name))
            elif what == "gc":
                await upkeep.collect(store, lambda *_: None, young_s=0)
            elif await store.remove_name(name):
                done.append((what, name, text))


def states(backend: MemoryStore) -> list[State]:
    """The names after each change."""
    found = [State()]
    for number, meta in enumerate(sorted(meta["path"] for meta in obstore.list(backend, "log").collect()), 1):
        change = log.loads(bytes(obstore.get(backend, meta).bytes()), number)
        found.append(log.after(based(backend, change), change))
    return found


def based(backend: MemoryStore, change: Change) -> Base:
    if change.base is None:
        return log.NO_BASE
    return log.loads_base(bytes(obstore.get(backend, logs._base_key(change.base)).bytes()))


def check_whole(backend: MemoryStore) -> None:
    """All that is published is there."""
    there = {meta["path"] for meta in obstore.list(backend).collect()}
    for one in states(backend)[-1].contexts.values():
        keys = {key_of("manifests", one.entry.manifest.id), key_of("tokens", one.entry.tokens.id)}
        assert keys <= there, f"{one.entry.name} lacks its manifest or tokens"
        manifest = bytes(obstore.get(backend, key_of("manifests", one.entry.manifest.id)).bytes())
        assert {key_of(*key) for key in needs(manifest, one.entry)} <= there, f"{one.entry.name} lacks segments"


def key_of(kind: str, id: str) -> str:
    return f"{kind}/{id[:2]}/{id}"


async def interleaved(stage: Stage, todo: dict[str, list[Job]], luck: Random, done: list[Job]) -> None:
    """Let one request at a time have its turn, whose ever, until all is done or everybody is dead."""
    tasks = {writer: asyncio.create_task(work(Objects(Staged(stage, writer)), todo[writer], done)) for writer in todo}
    what, slow, steps = "", "", 0
    while not all(task.done() for task in tasks.values()):
        for _ in range(12):
            await asyncio.sleep(0)
        if what in ("create", "delete"):
            check_whole(stage.backend)
        if not stage.waiting:
            continue
        able = [place for place, one in enumerate(stage.waiting) if one[0] != slow] or range(len(stage.waiting))
        writer, what, request = stage.waiting.pop(luck.choice(able))
        steps, slow = steps - 1, slow if steps > 0 else ""
        if not slow and what in ("create", "delete") and luck.random() < 0.3:
            stage.waiting.append((writer, what, request))
            slow, steps, what = writer, luck.randrange(60), ""  # others make so many steps meanwhile
            continue
        fate = luck.choices(["done", "failed", "lost", "died", "last"], [300, 2, 2, 1, 1])[0]
        request.set_result(fate)
        if fate in ("died", "last"):
            for _ in range(4):
                await asyncio.sleep(0)  # what was sent is done
            stage.kill(writer)
        if what != "delete" and not any(kind == "delete" for _, kind, _ in stage.waiting):
            # what is sent to delete takes effect soon, or never
            stage.now_s += 60.0 if luck.random() < (0.5 if stage.dead else 0.005) else 0.1
    await asyncio.gather(*tasks.values(), return_exceptions=True)


todos = st.fixed_dictionaries({writer: st.lists(jobs, min_size=4, max_size=8) for writer in "ABC"})


@settings(max_examples=15, deadline=None)
@given(todos, st.integers(0, 2**32))
def test_nothing_is_lost_and_nothing_half_is_seen_however_writers_are_interleaved(
    todo: dict[str, list[Job]], seed: int
) -> None:
    check_interleaved(todo, seed)


@pytest.mark.long
@settings(max_examples=1000, deadline=None)
@given(todos, st.integers(0, 2**32))
def test_nothing_is_lost_in_many_more_orders(todo: dict[str, list[Job]], seed: int) -> None:
    check_interleaved(todo, seed)


def check_interleaved(todo: dict[str, list[Job]], seed: int) -> None:
    stage, done = Stage(), list[Job]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "now_s", lambda: stage.now_s)
        patch.setattr(logs, "_WAIT_S", 0)
        asyncio.run(interleaved(stage, todo, Random(seed), done))
    check_whole(stage.backend)
    after = states(stage.backend)
    for before, now in pairwise(after):
        names = before.contexts.keys() | now.contexts.keys()
        assert sum(before.contexts.get(name) != now.contexts.get(name) for name in names) <= 1
    for what, name, text in done:
        context = context_id(FINGERPRINT, np.array([ord(letter) for letter in text], np.int32))
        if what == "publish":
            assert any(name in one.contexts and one.contexts[name].entry.context == context for one in after)
        else:
            assert any(name in one.removed for one in after)


def store_of(backend: MemoryStore, blobs: type[Blobs] = Blobs) -> Objects:
    return Objects(blobs(backend, "s3://bucket"))


async def publish(store: Objects, name: str, text: str) -> None:
    await RandomPublisher(store, rungs=("q4",))(Request(name, text, form="text"), lambda *_: None)


class Held(Blobs):
    """A writer whose changes wait until they may go on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.there, self.may = asyncio.Event(), asyncio.Event()

    async def create_pointer(self, key: str, data: bytes, *, urgent: bool = False) -> bool:
        self.there.set()
        await self.may.wait()
        return await super().create_pointer(key, data, urgent=urgent)


def test_who_publishes_what_another_deletes_meanwhile_is_told_so_and_can_do_it_again() -> None:
    async def main() -> None:
        backend = MemoryStore()
        one, slow = store_of(backend), Held(backend, "s3://bucket")
        two = Objects(slow)
        await publish(one, "first", "a text")
        publishing = asyncio.create_task(publish(two, "second", "a text"))
        await slow.there.wait()
        assert await one.remove_name("first")
        slow.may.set()
        with pytest.raises(Unavailable, match=r"objects of 'second' are not in store .*publish it again"):
            await publishing
        assert await two.names() == []
        await publish(two, "second", "a text")
        check_whole(backend)

    asyncio.run(main())


def test_who_dies_while_he_deletes_keeps_others_waiting_for_a_while_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(logs, "now_s", lambda: now_s[0])
    monkeypatch.setattr(logs, "_WAIT_S", 0.001)

    async def main() -> None:
        backend = MemoryStore()
        dead, other = logs.Names(Blobs(backend, ""), no_names, nothing), store_of(backend)
        assert await dead._made(await dead.look(), log.Edit(sweeping=True)) is not None
        publishing = asyncio.create_task(publish(other, "first", "a text"))
        for _ in range(10):
            await asyncio.sleep(0.005)
            now_s[0] += logs.TAKEOVER_S / 12
        assert not publishing.done() and await other.names() == []
        now_s[0] += logs.TAKEOVER_S
        await publishing
        assert [entry.name for entry in await other.names()] == ["first"]

    asyncio.run(main())


def test_in_a_folder_who_deletes_has_a_lock_so_that_nobody_waits_for_the_dead(tmp_path: Path) -> None:
    async def main() -> None:
        names = logs.Names(Blobs(LocalStore(tmp_path), "", tmp_path), no_names, nothing)
        other = open_store(str(tmp_path))
        async with names.alone():
            publishing = asyncio.create_task(publish(other, "first", "a text"))
            await asyncio.sleep(0.5)
            assert not publishing.done()
        await publishing
        assert await names._made(await names.look(), log.Edit(sweeping=True)) is not None  # and it dies
        await publish(other, "second", "another")

    asyncio.run(main())


async def no_names() -> Base:
    return log.NO_BASE


async def nothing() -> None:
    return None


def test_a_long_log_is_read_in_a_few_requests_and_old_changes_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT_S", 0.0)
    backend, asked = MemoryStore(), list[str]()

    class Counted(Blobs):
        async def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
            asked.append(key)
            return await super().read(key, start, stop)

        async def below(self, folder: str) -> list[str]:
            asked.append(folder)
            return await super().below(folder)

        async def all_in(self, folder: str) -> list[Found]:
            asked.append(folder)
            return await super().all_in(folder)

    async def main() -> None:
        store = store_of(backend)
        for number in range(60):
            await publish(store, f"name {number}", f"text {number % 3}")
        reader = store_of(backend, Counted)
        assert len(await reader.names()) == 60 and len(asked) == 4
        asked.clear()
        await reader.look()
        assert len(asked) == 1
        assert len(obstore.list(backend, "log").collect()) < 40 and len(obstore.list(backend, "bases").collect()) <= 2

    asyncio.run(main())


def test_what_others_change_is_followed_while_a_store_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "BUCKET_POLL_S", 0.01)

    async def main() -> None:
        backend = MemoryStore()
        one, two = store_of(backend), store_of(backend)
        async with one.held(), two.held():
            version = (await two.listing()).version
            changed = asyncio.create_task(two.changed(version))
            await publish(one, "first", "a text")
            async with asyncio.timeout(10):
                listing = await changed
            assert listing.version == (await one.listing()).version != version
            assert [entry.name for entry in await two.names()] == ["first"]

    asyncio.run(main())


def test_who_waits_for_a_change_is_woken_though_another_asked_for_the_listing_just_before() -> None:
    async def main() -> None:
        backend = MemoryStore()
        one, two = store_of(backend), store_of(backend)
        version = (await two.listing()).version
        waiting = asyncio.create_task(two.changed(version))
        await asyncio.sleep(0)
        await publish(one, "first", "a text")
        await two.log.look()  # what `look` does first; the rest comes some moments later
        assert (await two.listing()).version != version
        await two.look()
        async with asyncio.timeout(10):
            assert (await waiting).version != version

    asyncio.run(main())


def test_a_process_that_slept_for_long_looks_for_the_last_change_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(logs, "now_s", lambda: now_s[0])

    async def main() -> None:
        backend = MemoryStore()
        asleep, other = store_of(backend), store_of(backend)
        await publish(asleep, "first", "a text")
        for number in range(3):
            await publish(other, f"name {number}", "a text")
        obstore.delete(backend, [logs._key(2)])  # as when changes are long past
        now_s[0] += logs.STALE_S + 1
        await publish(asleep, "second", "a text")
        assert len(await asleep.names()) == len(await store_of(backend).names()) == 5

    asyncio.run(main())
