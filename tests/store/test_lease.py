"""Who may write to a store: older releases, and one cloud at a time where a service has no conditional writes."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from preread.cloud.events import Request
from preread.errors import Unavailable, UsageError
from preread.store import lease as leases
from preread.store.blobs import Blobs
from preread.store.lease import Holder
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher
from preread.testing.store import publish

HOLD = """
import fcntl, os, sys, time
folder = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
time.sleep(600)
"""


def hold(store: Objects) -> None:
    async def main() -> None:
        async with store.held():
            pass

    asyncio.run(main())


@pytest.fixture
def older(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the store in `tmp_path` as releases before the log of names did."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    (tmp_path / "lease.json").write_bytes(msgspec.json.encode(Holder("a" * 16, "here", process.pid, "this boot")))
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_an_older_release_on_a_folder_is_told_of(tmp_path: Path, older: subprocess.Popen[str]) -> None:
    with pytest.raises(UsageError, match=rf"held by process {older.pid} on here, which is of an older preread"):
        hold(open_store(str(tmp_path)))
    older.kill()
    older.wait()
    hold(open_store(str(tmp_path)))


def test_an_older_release_is_refused_a_folder_while_it_is_held_and_once_there_is_a_log(tmp_path: Path) -> None:
    lock = [sys.executable, "-c", HOLD.replace("time.sleep(600)", ""), str(tmp_path)]

    async def main() -> None:
        async with open_store(str(tmp_path)).held(), open_store(str(tmp_path)).held():
            tried = subprocess.run(lock, capture_output=True, text=True)
            assert tried.returncode != 0 and "BlockingIOError" in tried.stderr

    asyncio.run(main())
    assert subprocess.run(lock, capture_output=True).returncode == 0
    publish(open_store(str(tmp_path)), "manual", "text")
    with pytest.raises(NotADirectoryError):
        (tmp_path / "names" / ".probe").write_bytes(b"as older releases do before anything else")


def test_what_killed_processes_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    old, new = tmp_path / "names" / ".new-old", tmp_path / ".new-new"
    for draft in (old, new):
        draft.write_bytes(b"left by a killed process")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    hold(open_store(str(tmp_path)))
    assert not old.exists() and new.exists()


class Bucket:
    """Two processes' views of one bucket, whose service has no conditional writes unless `once`."""

    def __init__(self, *, once: bool = False) -> None:
        self.backend = MemoryStore()
        blobs = Blobs if once else Twice
        self.one, self.two = (Objects(blobs(self.backend, "s3://bucket")) for _ in "ab")

    def write(self, **changes: object) -> None:
        found = Holder("a" * 16, "elsewhere", 7, "another boot", time.time() + 40)
        obstore.put(self.backend, "lease.json", msgspec.json.encode(msgspec.structs.replace(found, **changes)))

    def owner(self) -> str:
        return msgspec.json.decode(bytes(obstore.get(self.backend, "lease.json").bytes()), type=Holder).owner


class Twice(Blobs):
    """A bucket's service that writes over what is there, whatever it was asked."""

    async def create_pointer(self, key: str, data: bytes, *, urgent: bool = False) -> bool:
        await self.put_pointer(key, data)
        return True


def test_a_second_cloud_on_a_bucket_is_refused_until_the_first_ends() -> None:
    bucket = Bucket()

    async def main() -> None:
        async with bucket.one.held():
            with pytest.raises(UsageError, match="s3://bucket is held by process"):
                async with bucket.two.held():
                    pass
            await RandomPublisher(bucket.one)(Request("a", "text", form="text"), lambda *_: None)
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
    late = leases.Lease(bucket.backend, "s3://bucket")
    found = late._read()
    leases.Lease(bucket.backend, "s3://bucket")._take()
    monkeypatch.setattr(late, "_read", lambda: found)
    with pytest.raises(UsageError, match="held by"):
        late._take()


def test_who_lost_the_lease_changes_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "_RENEW_S", 0.01)
    bucket = Bucket()

    async def main() -> None:
        publisher = RandomPublisher(bucket.one)
        async with bucket.one.held():
            await publisher(Request("a", "text", form="text"), lambda *_: None)
            bucket.write()
            while "nothing is published" not in caplog.text:
                await asyncio.sleep(0.005)
            with pytest.raises(Unavailable, match="holds store s3://bucket no more"):
                await publisher(Request("b", "another", form="text"), lambda *_: None)
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


def test_where_writes_are_conditional_many_hold_a_bucket_and_only_older_releases_are_refused() -> None:
    bucket = Bucket(once=True)
    bucket.write()
    with pytest.raises(UsageError, match="process 7 on elsewhere, which is of an older preread"):
        hold(bucket.one)
    bucket.write(until=time.time() - 1)

    async def main() -> None:
        async with bucket.one.held(), bucket.two.held():
            assert bucket.owner() == "a" * 16
            await RandomPublisher(bucket.one)(Request("a", "text", form="text"), lambda *_: None)
            await bucket.two.look()
            assert [entry.name for entry in await bucket.two.names()] == ["a"] and bucket.owner() == "newer"

    asyncio.run(main())
    found, _ = leases._holder(bucket.backend, "")
    assert found is not None and not leases._over(found, leases._me(), time.time() + 1e8)  # what they look at


def test_a_bucket_that_is_left_is_left_to_no_older_release() -> None:
    bucket = Bucket()
    hold(bucket.one)
    assert bucket.owner() == "newer"
    hold(bucket.two)


def test_who_only_reads_needs_no_lease(tmp_path: Path, older: subprocess.Popen[str]) -> None:
    publish(open_store(str(tmp_path)), "manual", "text")  # a test's own; nobody asked for the lease
    assert [entry.name for entry in asyncio.run(open_store(str(tmp_path)).names())] == ["manual"]


def test_who_shuts_older_releases_out_at_the_same_moment_as_another_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of names is there when it is looked for, and gone, or a file already, when it is moved."""
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "one.json").touch()
    older = leases.Older(LocalStore(tmp_path), "the store", tmp_path)
    asyncio.run(older.shut_out())
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    asyncio.run(older.shut_out())
    (tmp_path / "names").unlink()
    asyncio.run(older.shut_out())
    assert (tmp_path / "names").is_file() and (tmp_path / "names.old" / "one.json").is_file()
