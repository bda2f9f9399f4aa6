"""Stores in buckets of real services: the contract of every store, and what several writers agree by.

moto comes with the tests. Ceph and Azurite take a minute, and are tried where they are installed: `make buckets`.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import obstore
import pytest
from obstore.store import ObjectStore, from_url

from preread.cloud.events import Request
from preread.cloud.origins import named
from preread.errors import PrereadError
from preread.store import upkeep
from preread.store.objects import Objects, open_store
from preread.testing.buckets import SERVICES, Service, served
from preread.testing.cloud import RandomPublisher
from preread.testing.store import StoreContract
from preread.wire.origins import segment_path, within


@pytest.fixture(
    scope="module", params=["moto", *[pytest.param(name, marks=pytest.mark.long) for name in ("ceph", "azurite")]]
)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """One that runs, and of which the environment tells."""
    service: Service = SERVICES[request.param]
    if why := service.missing():
        pytest.skip(why)
    with served(service) as port, pytest.MonkeyPatch.context() as environment:
        for name, value in service.told(f"http://127.0.0.1:{port}").items():
            environment.setenv(name, value)
        yield service


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    yield f"{service.address}/some/prefix"
    bucket = _bucket(service)
    obstore.delete(bucket, [found["path"] for found in obstore.list(bucket).collect()])


def _bucket(service: Service) -> ObjectStore:
    return from_url(service.address)


class TestBucket(StoreContract):
    @pytest.fixture
    def address(self, address: str) -> str:
        return address

    def test_a_signed_address_of_a_segment_is_read_without_a_key(self, store: Objects) -> None:
        ref = asyncio.run(store.put("segments", b"a segment"))
        said = asyncio.run(named(store, (), 60))
        assert said.sign is not None and said.origins.signed
        signed = asyncio.run(said.sign(segment_path(ref.id).removeprefix("/")))
        assert within(signed, said.origins) and httpx2.get(signed).content == b"a segment"


def test_several_processes_open_a_store_at_the_same_moment(address: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(open_store, [address] * 40))) == 40


def test_of_many_who_create_one_key_one_succeeds(address: str) -> None:
    async def main() -> None:
        clouds = [open_store(address).blobs for _ in range(3)]
        for number in range(10):
            told = await asyncio.gather(
                *[cloud.create_pointer(f"log/{number}", b"%d" % me) for me, cloud in enumerate(clouds)]
            )
            assert told.count(True) == 1
            assert await clouds[0].read(f"log/{number}") == b"%d" % told.index(True)

    asyncio.run(main())


def test_three_clouds_and_a_collection_lose_nothing(address: str) -> None:
    """Whatever was acknowledged last under a name is there, whole, and nothing else is."""

    async def write(cloud: Objects, me: int) -> dict[str, object]:
        publisher, acknowledged = RandomPublisher(cloud, rungs=("q4",)), dict[str, object]()
        for turn in range(6):
            name = f"{me} {turn % 2}"
            if turn == 4:
                await cloud.remove_name(name)
                del acknowledged[name]
                continue
            text = f"text {(me + turn) % 3} of some length"  # the same objects as others have, removed by them
            while True:
                try:
                    done = await publisher(Request(name, text, form="text"), lambda *_: None)
                    break
                except PrereadError as error:
                    assert "publish it again" in str(error)
            acknowledged[name] = done.entry
        return acknowledged

    async def collect(cloud: Objects, writing: asyncio.Future[object]) -> None:
        while not writing.done():
            await upkeep.collect(cloud, lambda *_: None, young_s=0)

    async def main() -> None:
        clouds = [open_store(address) for _ in range(4)]
        for cloud in clouds:
            await cloud.look()
        writing = asyncio.gather(*[write(cloud, me) for me, cloud in enumerate(clouds[:3])])
        acknowledged, _ = await asyncio.gather(writing, collect(clouds[3], writing))
        fresh = open_store(address)
        expected = {name: entry for of_one in acknowledged for name, entry in of_one.items()}
        assert {entry.name: entry for entry in await fresh.names()} == expected
        checked = await upkeep.check(fresh, lambda *_: None)
        assert checked.contexts == len(expected) and not checked.damage

    asyncio.run(main())
