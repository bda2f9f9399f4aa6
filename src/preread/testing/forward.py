"""An HTTP proxy as companies have them: it connects where CONNECT says, and passes on what is asked for by a whole URL.

All names mean this machine, so that a test can tell who resolved one.
"""

import asyncio
import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_READ_BYTES = 65_536


@dataclass(slots=True)
class Forward:
    """A running proxy.

    Attributes:
        port: on 127.0.0.1.
        credentials: `user:password` that it wants; None: it wants none.
        status: what it answers instead of connecting; None: it connects.
        asked: the first line of what was asked on each connection.
        failures: why connections ended before both ends were done.
    """

    port: int = 0
    credentials: str | None = None
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As users name it."""
        user = "" if self.credentials is None else f"{self.credentials}@"
        return f"http://{user}127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            await self._pass(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError) as error:
            self.failures.append(repr(error))
        finally:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.asked.append(lines[0])
        method, target, _ = lines[0].split()
        if refusal := self._refusal(lines):
            writer.write(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        port = int(target.rpartition(":")[2]) if method == "CONNECT" else urlsplit(target).port or 80
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            far_writer.write(head)
        back = _copy if method == "CONNECT" else _copy_once
        try:
            await asyncio.gather(_copy(reader, far_writer), back(far_reader, writer))
        finally:
            far_writer.close()

    def _refusal(self, lines: list[str]) -> str | None:
        if self.credentials is not None:
            wanted = "proxy-authorization: basic " + base64.b64encode(self.credentials.encode()).decode()
            if not any(line.lower() == wanted.lower() for line in lines):
                return "407 Proxy Authentication Required"
        return None if self.status is None else f"{self.status} Refused"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _copy_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whoever is asked may end the connection: then nobody is to ask on it again."""
    status, rest = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)
    writer.write(status + b"\r\nConnection: close\r\n" + rest)
    await _copy(reader, writer)


@contextmanager
def forwarding(credentials: str | None = None) -> Iterator[Forward]:
    """Run one in a thread of its own."""
    proxy, started = Forward(credentials=credentials), threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        started.set()
        await end.wait()
        server.close()
        mine = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not mine]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.01)  # what they closed is

    def main() -> None:
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        started.wait()
        yield proxy
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
