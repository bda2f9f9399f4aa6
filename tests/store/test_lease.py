"""One cloud for one store: who holds it, who may take over, and when."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import obstore
import pytest
from obstore.store import MemoryStore

from preread.errors import Unavailable, UsageError
from preread.store import lease as leases
from preread.store.blobs import Blobs
from preread.store.lease import Holder
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher
from preread.testing.store import publish

HOLD = """
import asyncio, sys
from preread.store.objects import open_store
async def main():
    async with open_store(sys.argv[1]).held():
        print("held", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def hold(store: Objects) -> None:
    async def main() -> None:
        async with store.held():
            pass

    asyncio.run(main())


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the store in `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_cloud_on_a_folder_is_refused_and_told_who_holds_it(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(UsageError, match=rf"held by process {other.pid} on \S+: only one cloud"):
        hold(open_store(str(tmp_path)))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_cloud_that_ended_leaves_its_folder_to_the_next(
    tmp_path: Path, other: subprocess.Popen[str], how: signal.Signals
) -> None:
    other.send_signal(how)
    other.wait()
    store = open_store(str(tmp_path))
    (tmp_path / "names").mkdir(exist_ok=True)
    (tmp_path / "names" / ".new-x").write_bytes(b"left by a killed process")
    hold(store)
    assert not list(tmp_path.rglob(".new-*")) and not (tmp_path / "lease.json").exists()
    hold(store)


class Bucket:
    """Two processes' views of one bucket."""

    def __init__(self) -> None:
        self.backend = MemoryStore()
        self.one, self.two = (Objects(Blobs(self.backend, "s3://bucket")) for _ in "ab")

    def write(self, **changes: object) -> None:
        found = Holder("a" * 16, "elsewhere", 7, "another boot", time.time() + 40)
        obstore.put(self.backend, "lease.json", msgspec.json.encode(msgspec.structs.replace(found, **changes)))


def test_a_second_cloud_on_a_bucket_is_refused_until_the_first_ends() -> None:
    bucket = Bucket()

    async def main() -> None:
        async with bucket.one.held():
            with pytest.raises(UsageError, match="s3://bucket is held by process"):
                async with bucket.two.held():
                    pass
            await RandomPublisher(bucket.one)("a", "text", None, "text", "exact", lambda *_: None)
        async with bucket.two.held():
            assert [entry.name for entry in await bucket.two.names()] == ["a"]

    asyncio.run(main())


def test_a_lease_of_another_machine_counts_until_it_runs_out() -> None:
    bucket = Bucket()
    bucket.write()
    with pytest.raises(UsageError, match=r"process 7 on elsewhere.*try again in (39|40) s"):
        hold(bucket.one)
    bucket.write(until=time.time() - 1)
    hold(bucket.one)


def holder_while_held(bucket: Bucket) -> int:
    """Whose process the lease names while this one holds the store."""

    async def main() -> int:
        async with bucket.one.held():
            written = bytes(obstore.get(bucket.backend, "lease.json").bytes())
            return msgspec.json.decode(written, type=Holder).pid

    return asyncio.run(main())


def test_a_lease_of_a_process_that_has_ended_here_counts_no_more() -> None:
    bucket, ended = Bucket(), subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    bucket.write(place=leases._place(), pid=ended.pid)
    assert holder_while_held(bucket) == os.getpid()


def test_a_lease_that_cannot_be_understood_is_taken_over() -> None:
    bucket = Bucket()
    obstore.put(bucket.backend, "lease.json", b"?")
    assert holder_while_held(bucket) == os.getpid()


def test_who_takes_over_last_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw that the lease had run out; one was sooner."""
    bucket = Bucket()
    bucket.write(until=0.0)
    late = leases.Lease(bucket.backend, "s3://bucket", None)
    found = late._read()
    hold_one = leases.Lease(bucket.backend, "s3://bucket", None)
    hold_one._take(False)
    monkeypatch.setattr(late, "_read", lambda: found)
    with pytest.raises(UsageError, match="held by"):
        late._take(False)


def test_who_lost_the_lease_changes_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "_RENEW_S", 0.01)
    bucket = Bucket()

    async def main() -> None:
        publisher = RandomPublisher(bucket.one)
        async with bucket.one.held():
            await publisher("a", "text", None, "text", "exact", lambda *_: None)
            bucket.write()
            while "nothing is published" not in caplog.text:
                await asyncio.sleep(0.005)
            with pytest.raises(Unavailable, match="holds store s3://bucket no more"):
                await publisher("b", "another", None, "text", "exact", lambda *_: None)
            with pytest.raises(Unavailable):
                await bucket.one.remove_name("a")
        assert [entry.name for entry in await Objects(Blobs(bucket.backend, "")).names()] == ["a"]
        assert b"elsewhere" in bytes(obstore.get(bucket.backend, "lease.json").bytes())

    asyncio.run(main())


def test_a_lease_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RENEW_S", 0.01)
    bucket = Bucket()

    def until() -> float:
        return msgspec.json.decode(bytes(obstore.get(bucket.backend, "lease.json").bytes()), type=Holder).until

    async def main() -> None:
        async with bucket.one.held():
            first = until()
            while until() == first:
                await asyncio.sleep(0.005)
            assert until() > first

    asyncio.run(main())


def test_who_only_reads_needs_no_lease(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    publish(open_store(str(tmp_path)), "manual", "text")  # a test's own; nobody asked for the lease
    assert [entry.name for entry in asyncio.run(open_store(str(tmp_path)).names())] == ["manual"]
