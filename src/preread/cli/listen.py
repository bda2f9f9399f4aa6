"""Serving an application over HTTP until a signal comes. It knows sockets and uvicorn, not what is served."""

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from preread.errors import UsageError
from preread.store.connections import Connections, Limits

_LEAVE_S: Final = 5
"""How long requests that are being answered may take once the server is asked to stop."""

_KEEP_ALIVE_S: Final = 75
"""Edges keep connections open for their next question; over a long link a new one costs a round trip."""

_MOST_FILES: Final = 65_536
_MOST_PLACES: Final = 1024
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


def url(sock: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_if_open(sock: socket.socket, api_keys: frozenset[str]) -> None:
    """Say so when others on the network may ask without a key."""
    if not api_keys and not ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback:
        _log.warning("%s can be used by everybody who reaches it: consider --api-key", url(sock))


@asynccontextmanager
async def beside(app: Starlette, sock: socket.socket) -> AsyncGenerator[None, None]:
    """Serve a second application, which has no lifespan, as long as the context is open. The socket is closed then.

    Raises:
        UsageError: another process took the address meanwhile.
    """
    server = _Second(_config(app))
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


async def serve(app: Starlette, sock: socket.socket, ready: Callable[[], None]) -> bool:
    """Serve until SIGTERM or Ctrl-C, and tell whether it was Ctrl-C. The socket is closed at the end.

    The application's lifespan is run here rather than by uvicorn, which would report its errors as tracebacks.

    Args:
        app: what to serve.
        sock: as `bind` made it.
        ready: called once requests are answered.

    Raises:
        UsageError: another process took the address meanwhile.
        PrereadError: as the application's start does.
    """
    server = _Server(_config(app), sock.getsockname()[:2], ready)
    with sock:
        async with app.router.lifespan_context(app):
            await server.serve([sock])
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


def _config(app: Starlette) -> uvicorn.Config:
    protocol: Any = Connections(_limits()).protocol  # uvicorn calls it as it would the class that it asks for
    return uvicorn.Config(
        app,
        http=protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LEAVE_S,
    )


class _Second(uvicorn.Server):
    """Leaves signals to the first server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, address: tuple[str, int], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._address, self._ready, self.interrupted = address, ready, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:
            host, port = self._address
            raise _not_bound(host, port, error) from error
        self._ready()

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
        self.interrupted |= sig == signal.SIGINT
        super().handle_exit(sig, frame)


def _not_bound(host: str, port: int, error: OSError, option: str = "--port") -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"port {port} on {host} is taken: stop what listens there, or choose another with {option}")
    return UsageError(f"cannot listen on {host}, port {port}: {error.strerror or error}; check --host and --port")
