"""A cloud's publisher and its replicas, called without Ray between them: streams that break, replicas that end."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.cloud.events import Mode, Progress, Published, Request
from preread.cloud.publish import Owner
from preread.cloud.ray import messages
from preread.cloud.ray.model import EngineModel
from preread.cloud.ray.publisher import ReplicaEnded, ReplicaPublisher, ReplicasBusy
from preread.cloud.ray.replica import Replica
from preread.errors import CorruptData, EngineError, PrereadError, TooLong, UnknownContext, UsageError
from preread.store.claims import Claimed
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomModel
from preread.wire.catalogue import Entry

TEXT = " ".join(f"Lamp {n} means part {n * 7 % 31}." for n in range(60))


def called(replica: Replica, killed_at: list[int] | None = None, owners: list[Owner] | None = None):  # type: ignore[no-untyped-def]
    """Calls a replica here; it ends, once each, when so many tokens are encoded."""

    async def call(ask: bytes, owner: Owner) -> AsyncGenerator[Progress | Published, None]:
        if owners is not None:
            owners.append(owner)
        told = replica.make(ask, owner.name, tuple(owner.gone))
        try:
            async for message in told:
                event = messages.loads(message)
                yield event
                if killed_at and isinstance(event, Progress) and (event.stage, event.done) == ("encode", killed_at[0]):
                    del killed_at[0]
                    raise ReplicaEnded("killed")
        finally:
            await told.aclose()

    return call


async def publish(
    publisher: ReplicaPublisher, name: str, text: str, mode: Mode = "exact"
) -> tuple[Published, list[Progress]]:
    heard: list[Progress] = []
    done = await publisher(Request(name, text, form="text", mode=mode), lambda *told: heard.append(Progress(*told)))
    return done, heard


@pytest.fixture(scope="module")
def replica(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Objects]]:
    folder = str(tmp_path_factory.mktemp("store"))
    replica = Replica(EngineModel(str(tiny_model), "tiny", 2048, 1, ("lossless", "q8")), folder)
    yield replica, open_store(folder)
    replica.close()


def test_what_a_replica_makes_is_named_by_the_cloud(replica: tuple[Replica, Objects]) -> None:
    made, store = replica

    async def main() -> None:
        done, heard = await publish(ReplicaPublisher(store, called(made)), "first", TEXT)
        assert await store.entry("first") == done.entry
        assert {event.stage for event in heard} == {"prefill", "encode"}

    asyncio.run(main())


def test_a_replica_that_ends_is_followed_by_one_that_goes_on(replica: tuple[Replica, Objects]) -> None:
    made, store = replica

    async def main() -> None:
        owners: list[Owner] = []
        done, heard = await publish(
            ReplicaPublisher(store, called(made, [128, 384], owners)), "second", "More. " + TEXT
        )
        assert len(owners) == 3 and owners[2].gone == {owners[0].name, owners[1].name}
        encoded = [event.done for event in heard if event.stage == "encode"]
        assert encoded == sorted(set(encoded)) and encoded[-1] == done.entry.token_count

    asyncio.run(main())


def test_a_document_that_ends_every_replica_is_refused_and_leaves_no_name(replica: tuple[Replica, Objects]) -> None:
    _, store = replica

    async def main() -> None:
        async def call(ask: bytes, owner: Owner) -> AsyncGenerator[Progress | Published, None]:
            raise ReplicaEnded("killed")
            yield

        with pytest.raises(EngineError, match="5 replicas in a row"):
            await publish(ReplicaPublisher(store, call), "poison", TEXT)
        assert await store.entry("poison") is None

    asyncio.run(main())


def test_what_a_replica_refuses_is_refused_in_its_words(replica: tuple[Replica, Objects]) -> None:
    made, store = replica

    async def main() -> None:
        publisher = ReplicaPublisher(store, called(made))
        with pytest.raises(TooLong, match="too many: the window of tiny is 2048"):
            await publish(publisher, "long", TEXT * 40)
        with pytest.raises(UsageError, match="no large model to map from"):
            await publish(publisher, "mapped", TEXT, "mapped")
        counted = await made.count(msgspec.json.encode(Request("first", TEXT, form="text")))
        assert messages.loads_count(counted).model == "tiny"
        with pytest.raises(UsageError, match="document is empty"):
            messages.loads_count(await made.count(msgspec.json.encode(Request("first", " "))))

    asyncio.run(main())


def test_a_call_that_is_given_up_gives_up_in_the_replica(replica: tuple[Replica, Objects]) -> None:
    made, store = replica

    async def main() -> None:
        begun = asyncio.Event()
        text = "Given up. " + TEXT

        def progress(stage: str, done: int, total: int) -> None:
            begun.set()

        call = ReplicaPublisher(store, called(made))(Request("given up", text, form="text"), progress)
        task = asyncio.create_task(call)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.entry("given up") is None
        await publish(ReplicaPublisher(store, called(made)), "given up", text)  # its claim is gone with it

    asyncio.run(main())


def test_busy_replicas_are_asked_again(tmp_path: Path) -> None:
    store, asked = open_store(str(tmp_path)), list[int]()
    (tmp_path / "where").write_text(str(tmp_path))
    free = called(Replica(RandomModel(str(tmp_path / "where")), str(tmp_path)))

    async def call(ask: bytes, owner: Owner) -> AsyncGenerator[Progress | Published, None]:
        asked.append(1)
        if len(asked) < 3:
            raise ReplicasBusy("busy")
        async for event in free(ask, owner):
            yield event

    _, heard = asyncio.run(publish(ReplicaPublisher(store, call), "busy", "A short one."))
    assert len(asked) == 3 and [event.stage for event in heard][:2] == ["wait", "wait"]


@given(st.sampled_from([UsageError("a"), TooLong("b"), Claimed("c"), EngineError("d"), UnknownContext("e", ())]))
def test_errors_say_in_the_cloud_whose_fault_it_is(error: PrereadError) -> None:
    with pytest.raises(PrereadError) as caught:
        messages.loads(messages.dumps(messages.refused(error)))
    assert str(caught.value) == str(error)
    assert type(caught.value) is (UsageError if isinstance(error, UnknownContext) else type(error))


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    for read in (messages.loads, messages.loads_count):
        with pytest.raises(CorruptData):
            read(data)


def test_an_error_of_a_later_release_is_an_error_still() -> None:
    with pytest.raises(PrereadError, match="new kind"):
        messages.loads(messages.dumps(messages.Refused("Later", "a new kind")))


def test_a_message_keeps_what_was_published() -> None:
    entry = msgspec.convert(
        {
            "name": "a",
            "context": "c" * 64,
            "form": "text",
            "fingerprint": "f" * 64,
            "vocabulary": "f" * 64,
            "model": "tiny",
            "token_count": 3,
            "manifest": {"id": "a" * 64, "bytes": 10},
            "tokens": {"id": "b" * 64, "bytes": 10},
        },
        Entry,
    )
    done = Published(entry, {"lossless": 7}, 0.5, notes=("read",))
    assert messages.loads(messages.dumps(done)) == done
