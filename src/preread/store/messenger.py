"""Telling the other clouds on one store at once that its names have changed: through Redis or Valkey, if there is one.

Without it each looks into the store now and then, and with it too: a message that is lost costs that time and nothing
else. What a message says is never believed: it makes a cloud look, at most so often. It knows channels and messages; it
must not know what names are, nor where they are kept.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from preread.errors import PrereadError, UsageError
from preread.store.objects import Objects
from preread.wire.digest import object_id

if TYPE_CHECKING:
    from redis.asyncio import Redis

_SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "unix")
_REST_S: Final = 5.0
_APART_S: Final = 0.05
_LISTEN_S: Final = 10.0
_AGAIN_S: Final = 0.2
_log = logging.getLogger(__name__)


def check(url: str) -> None:
    """Refuse an address at which no messenger can be, before anything is begun.

    Raises:
        UsageError: it is none, or what speaks to it is not installed.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        known = "redis://HOST:PORT, rediss://HOST:PORT (with TLS) or unix:///PATH"
        raise UsageError(f"--messenger takes {known}, not {_named(url)}")
    if find_spec("redis") is None:
        raise UsageError("--messenger needs a package that is not installed: pip install 'preread[redis]'")


@asynccontextmanager
async def messages(objects: Objects, store: str, url: str | None) -> AsyncGenerator[None, None]:
    """Tell others of changes, and look when they tell of theirs, while this is open; with None nothing is done.

    Args:
        objects: the store; held.
        store: its address, the same for all clouds on it.
        url: where the messenger is.

    Raises:
        UsageError: as `check` does, or what is in `url` besides cannot be.
    """
    async with AsyncExitStack() as stack:
        if url is not None:
            check(url)
            client = await stack.enter_async_context(_client(url))
            place = store if "://" in store else str(Path(store).absolute())
            channel = f"preread:{object_id(place.encode())[:16]}"
            for work in (_tell, _hear):
                going_on = asyncio.create_task(_going_on(work, objects, client, channel, _named(url)))
                stack.push_async_callback(_end, going_on)
        yield


@asynccontextmanager
async def _client(url: str) -> "AsyncGenerator[Redis, None]":
    from redis.asyncio import Redis

    try:
        client = Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_connect_timeout=5.0,
            health_check_interval=30,
        )
    except ValueError as error:
        raise UsageError(f"--messenger {_named(url)}: {error}") from error
    async with aclosing(client):
        yield client


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it ends: the library may take that for the end of a connection, and begin anew."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_S)


async def _going_on(work: Any, objects: Objects, client: "Redis", channel: str, named: str) -> None:
    """Do it for ever; a messenger that is away is said once, and once that it is back."""
    from redis.exceptions import RedisError

    trouble = False
    while True:
        try:
            async for _ in work(objects, client, channel):
                if trouble:
                    _log.info("the messenger %s is there again", named)
                trouble = False
        except (RedisError, OSError, PrereadError) as error:
            if not trouble:
                _log.warning("others' changes are known some moments later: the messenger %s fails: %s", named, error)
            trouble = True
        except Exception:
            _log.exception("the messenger %s failed in a way that nobody foresaw", named)
        await asyncio.sleep(_REST_S)


async def _tell(objects: Objects, client: "Redis", channel: str) -> AsyncGenerator[None, None]:
    """Say which version the catalogue has, whenever that is another one. Gives None each time it was said."""
    version = (await objects.listing()).version
    while True:
        version = (await objects.changed(version)).version
        await client.publish(channel, version)
        yield None


async def _hear(objects: Objects, client: "Redis", channel: str) -> AsyncGenerator[None, None]:
    """Look when somebody says another version. Gives None when it listens, and each time."""
    async with client.pubsub() as listening:
        await listening.subscribe(channel)
        while True:
            message = await listening.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
            if message is not None and message["data"] != (await objects.listing()).version.encode():
                await objects.look()
                await asyncio.sleep(_APART_S)
            yield None


def _named(url: str) -> str:
    """The address without what is secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
