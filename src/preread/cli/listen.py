"""Serving an application over HTTP until a signal comes. It knows sockets and uvicorn, not what is served."""

import asyncio
import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from preread import coredumps
from preread.cli import notify
from preread.cli.endpoint import AT_ONCE, Stop
from preread.cli.gate import Gate
from preread.errors import UsageError
from preread.lifecycle import Lifecycle
from preread.store.connections import Connections, Limits
from preread.store.handshakes import Door
from preread.via import authority

_LOOPBACKS: Final = ("127.0.0.1", "::1")
_TRIES: Final = 8
_LAST_WORDS_S: Final = 2
"""When the time of what is under way is over, it may say so, and to slow clients for no longer."""

_SAME_S: Final = 0.5
"""A signal that comes again so soon is the same: `timeout` sends a process one and then its group, which it is in."""

_KEEP_ALIVE_S: Final = 75
"""Edges keep connections open for their next question; over a long link a new one costs a round trip."""

_MOST_FILES: Final = 65_536
_MOST_PLACES: Final = 4096
_OWN_FILES: Final = 64
"""Files that are no connections of clients: the model, the disk cache, what goes to the cloud and to neighbours."""

_log = logging.getLogger(__name__)


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """Take an address before the slow work begins; nobody can connect to it yet. `option` is where the user said it.

    Raises:
        UsageError: it is taken, or not one of this machine.
    """
    sock: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _not_bound(host, port, error, option) from error
    return sock


def bind_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Take several addresses, all at one port (0: any that is free); `localhost` is both loopbacks, if there are both.

    Raises:
        UsageError: as for `bind`.
    """
    for left in reversed(range(_TRIES if port == 0 else 1)):
        with ExitStack() as stack:
            try:
                sockets = list(_each_bound(hosts, port, stack))
            except UsageError as error:
                if left and _failed_by(error, errno.EADDRINUSE):
                    continue  # what was free on one address is taken on another
                raise
            stack.pop_all()
            return sockets
    raise AssertionError("the last try returns or raises")


def _each_bound(hosts: Sequence[str], port: int, stack: ExitStack) -> Iterator[socket.socket]:
    addresses = [one for name in hosts for one in (_LOOPBACKS if name == "localhost" else (name,))]
    for host in dict.fromkeys(addresses):
        try:
            sock = stack.enter_context(bind(host, port))
        except UsageError as error:
            absent = _failed_by(error, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if host == "::1" and host not in hosts and absent:
                continue  # a machine without IPv6
            raise
        port = sock.getsockname()[1]
        yield sock


def url(sock: socket.socket, *, tls: bool = False) -> str:
    """Where a bound socket is reached; `tls`: whether that is spoken, which it never is on a unix socket."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    return f"{'https' if tls else 'http'}://{authority(*sock.getsockname()[:2])}"


def urls(sockets: Sequence[socket.socket], *, tls: bool = False) -> str:
    """Where bound sockets are reached."""
    return " and ".join(url(sock, tls=tls) for sock in sockets)


def closed(sockets: Sequence[socket.socket]) -> bool:
    """Whether bound sockets are reached from this machine only."""
    return all(
        sock.family == socket.AF_UNIX or ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
        for sock in sockets
    )


def check_closed(sockets: Sequence[socket.socket], keys: str) -> None:
    """Refuse what others on the network could use without a key. `keys` is how to give keys.

    Raises:
        UsageError: they could.
    """
    if not closed(sockets):
        raise UsageError(f"everybody who reaches {urls(sockets)} could use it: give {keys}, or say --insecure")


@asynccontextmanager
async def beside(app: Starlette, sock: socket.socket) -> AsyncGenerator[None, None]:
    """Serve a second application, which has no lifespan, as long as the context is open. The socket is closed then.

    Raises:
        UsageError: another process took the address meanwhile.
    """
    server = _Second(_config(app, Connections(_limits()), AT_ONCE.finish_s))
    with sock:
        serving = asyncio.create_task(server.serve([sock]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)  # uvicorn has no event for this
            if serving.done():
                raise UsageError(f"cannot listen on {url(sock)}: see the log above")
            yield
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


async def serve(
    opening: AbstractAsyncContextManager[Starlette],
    sockets: list[socket.socket],
    ready: Callable[[], None],
    secured: ssl.SSLContext | None = None,
    stop: Stop = AT_ONCE,
) -> bool:
    """Serve until SIGTERM or Ctrl-C, and tell whether it was Ctrl-C. The sockets are closed at the end.

    It listens at once, and answers 503 until the application is opened. A second signal ends the process there and
    then. From here on the process leaves no core files. The application's lifespan is run here rather than by uvicorn,
    which would report its errors as tracebacks.

    Args:
        opening: gives what to serve.
        sockets: as `bind_all` or `unix.bound` made them.
        ready: called once requests are answered.
        secured: what is spoken at addresses, but not on unix sockets, if TLS is.
        stop: how it stops.

    Raises:
        UsageError: another process took the address meanwhile.
        PrereadError: as `opening` and the application's start do.
    """
    coredumps.forbid()
    stages = Lifecycle()
    gate, over = Gate(stages), asyncio.Event()
    server = _Server(gate, stages, sockets, secured, stop)

    async def living() -> None:
        async with opening as app:
            app.state.lifecycle = stages
            async with app.router.lifespan_context(app):
                gate.open(app)
                ready()
                notify.tell("READY=1")
                await over.wait()

    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        serving, application = asyncio.create_task(server.serve(sockets)), asyncio.create_task(living())
        try:
            await asyncio.wait([serving, application], return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            await asyncio.wait([serving])
            over.set()
            if not gate.opened:
                application.cancel()
            await asyncio.wait([application])
    for task in (serving, application):
        if not task.cancelled():
            task.result()
    return server.interrupted


def _allow_files() -> int:
    """Let this process open as many files as the system lets it, at most 65,536; how many that are."""
    if sys.platform == "win32":
        return 512
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _limits() -> Limits:
    """Places for as many connections as there are files for, of which one address gets the half."""
    places = max(16, min(_MOST_PLACES, (_allow_files() - _OWN_FILES) // 2))
    return Limits(connections=places, per_address=places // 2)


def _config(app: ASGIApp, connections: Connections, finish_s: float) -> uvicorn.Config:
    watched_s = notify.watchdog_s()

    async def alive() -> None:
        notify.tell("WATCHDOG=1")

    protocol: Any = connections.protocol  # uvicorn calls it as it would the class that it asks for
    return uvicorn.Config(
        app,
        http=protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(finish_s + _LAST_WORDS_S),
        callback_notify=None if watched_s is None else alive,
        timeout_notify=int(watched_s or 0),
    )


class _Second(uvicorn.Server):
    """Leaves signals to the first server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server(uvicorn.Server):
    """`secured`: what is spoken at addresses, if TLS is."""

    def __init__(
        self,
        gate: Gate,
        stages: Lifecycle,
        sockets: Sequence[socket.socket],
        secured: ssl.SSLContext | None,
        stop: Stop,
    ) -> None:
        self._connections = Connections(_limits())
        super().__init__(_config(gate, self._connections, stop.finish_s))
        self._where, self.interrupted = urls(sockets, tls=secured is not None), False
        self._gate, self._stages, self._stop, self._secured = gate, stages, stop, secured
        self._doors: list[Door] = []
        self._asked_s: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        plain = [sock for sock in sockets or () if self._secured is None or sock.family == socket.AF_UNIX]
        try:
            await super().startup(plain)
            for sock in sockets or ():
                if self._secured is not None and sock not in plain:
                    door = Door(self._connections, sock, self._secured, self._protocol)
                    self._doors.append(door)
                    door.open()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"{self._where} is taken: stop what listens there, or choose another --port"
                ) from error
            raise UsageError(f"cannot listen on {self._where}: {error.strerror or error}") from error

    async def main_loop(self) -> None:
        """As uvicorn's; then say that it is not ready, and go on for as long as others may need to see that."""
        await super().main_loop()
        self._stages.stopping.set()
        notify.tell("STOPPING=1")
        if self._gate.opened and self._asked_s is not None and not self.interrupted:
            self.should_exit = False
            with suppress(TimeoutError):
                await asyncio.wait_for(super().main_loop(), self._stop.drain_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which waits for all that is being sent: what would go on for ever is told to end, and, when
        the time for it is over, what is still under way."""
        self._stages.leaving.set()
        for door in self._doors:
            await door.aclose()
        ending = asyncio.get_running_loop().call_later(self._stop.finish_s, self._stages.ending.set)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            self._stages.ending.set()

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes it."""
        config: Any = self.config
        made: asyncio.Protocol = config.http_protocol_class(
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again at the end, before what is open around it could be closed."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; where it was asked to before, end there and then."""
        now_s = time.monotonic()
        self.interrupted |= sig == signal.SIGINT
        if self._asked_s is None:
            self._asked_s, self.should_exit = now_s, True
        elif now_s - self._asked_s >= _SAME_S:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)


def _failed_by(error: UsageError, *numbers: int) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in numbers


def _not_bound(host: str, port: int, error: OSError, option: str = "--port") -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"port {port} on {host} is taken: stop what listens there, or choose another with {option}")
    return UsageError(f"cannot listen on {host}, port {port}: {error.strerror or error}; check --host and --port")
