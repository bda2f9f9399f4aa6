"""Two clouds on one store tell each other of changes, through a real Redis or Valkey, which may go and come back."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from preread.cloud.events import Request
from preread.errors import UsageError
from preread.store import messenger, objects
from preread.store.objects import open_store
from preread.testing.cloud import RandomPublisher

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")


class Server:
    """A server at a unix socket, with nothing on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.url = folder, f"unix://{folder}/socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(SERVER), "--port", "0", "--unixsocket", f"{self._folder}/socket", "--save", ""]
        self._process = subprocess.Popen([*command, "--dir", str(self._folder)], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if SERVER is None:
        pytest.skip("neither valkey-server nor redis-server is installed: apt-get install redis-server")
    pytest.importorskip("redis", reason="redis is not installed: pip install 'preread[redis]'")
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_change_by_one_cloud_is_known_to_the_other_though_that_never_looks_by_itself(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "FOLDER_POLL_S", 1e6)
    monkeypatch.setattr(messenger, "_REST_S", 0.05)

    async def main() -> None:
        address = str(tmp_path / "store")
        ours, theirs = open_store(address), open_store(address)
        async with AsyncExitStack() as stack:
            for store in (ours, theirs):
                await stack.enter_async_context(store.held())
                await stack.enter_async_context(messenger.messages(store, address, server.url))
            for back in (False, True):
                if back:
                    server.stop()
                    server.start()
                before = (await theirs.listing()).version
                waiting, number = asyncio.ensure_future(theirs.changed(before)), 0
                while not waiting.done():  # a message before the other listens is lost
                    number += 1
                    await RandomPublisher(ours)(Request(f"{back} {number}", f"{number}", form="text"), lambda *_: None)
                    await asyncio.wait([waiting], timeout=0.2)
                assert await theirs.entry(f"{back} 1") is not None

    asyncio.run(asyncio.wait_for(main(), 120))


def test_what_anybody_says_makes_a_cloud_look_and_nothing_else(server: Server, tmp_path: Path) -> None:
    from redis import Redis
    from redis.exceptions import RedisError

    async def main() -> None:
        address = str(tmp_path / "store")
        store = open_store(address)
        async with store.held(), messenger.messages(store, address, server.url):
            version, stranger = (await store.listing()).version, Redis.from_url(server.url)
            heard = 0
            while heard < 3:
                await asyncio.sleep(0.02)
                try:
                    for channel in stranger.pubsub_channels("preread:*"):
                        heard += stranger.publish(channel, os.urandom(100))
                except RedisError:
                    pass  # it is not there yet
            await RandomPublisher(store)(Request("one", "a text", form="text"), lambda *_: None)
            assert (await store.changed(version)).version != version
            stranger.close()

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", ""])
def test_what_is_no_address_of_a_messenger_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--messenger takes"):
        messenger.check(url)


def test_a_password_is_never_said() -> None:
    with pytest.raises(UsageError) as caught:
        messenger.check("http://user:secret@127.0.0.1:6379/0")
    assert "secret" not in str(caught.value) and "127.0.0.1:6379" in str(caught.value)


def test_without_one_nothing_runs_beside() -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with messenger.messages(open_store("memory:"), "memory:", None):
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before

    asyncio.run(main())
