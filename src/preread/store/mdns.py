"""Edges of one local network find each other by multicast DNS: the one home of `zeroconf`, and what it may say.

What is announced: that there is an edge, where its segments are served, a random id of it, and the fingerprint of its
model. It must not know contexts, prompts, or what is done with the edges that are found.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from preread.errors import UsageError
from preread.values import Fingerprint

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo

SERVICE: Final = "_preread._tcp.local."
_ANSWER_MS: Final = 3000
_log = logging.getLogger(__name__)

Found = Callable[[str, str | None], None]
"""Told (an edge's service name, its URL), or None for the URL when it has gone."""


@dataclass(frozen=True, slots=True)
class Announced:
    """This edge, as others shall find it.

    Attributes:
        edge: its id.
        fingerprint: of its model; edges of other models are not reported.
        address: host and port where it serves segments; None: it serves none, and only looks for others.
    """

    edge: str
    fingerprint: Fingerprint
    address: tuple[str, int] | None


@asynccontextmanager
async def discovering(me: Announced, found: Found) -> AsyncGenerator[None, None]:
    """Announce this edge and report others of its model, as long as the context is open.

    Raises:
        UsageError: zeroconf is not installed, or this machine has no network that could be used.
    """
    try:
        from zeroconf import ServiceStateChange
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf
    except ImportError as error:
        raise UsageError("--mdns needs the package zeroconf: install preread[lan], or name --neighbours") from error
    asking: set[asyncio.Task[None]] = set()
    told: set[str] = set()

    async def ask(zeroconf: "Zeroconf", name: str) -> None:
        url = await _address(zeroconf, AsyncServiceInfo(SERVICE, name), me)
        if url is not None:
            told.add(name)
            found(name, url)

    def changed(zeroconf: "Zeroconf", service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            if name in told:
                told.discard(name)
                found(name, None)
            return
        task = asyncio.ensure_future(ask(zeroconf, name))
        asking.add(task)
        task.add_done_callback(asking.discard)

    try:
        service = AsyncZeroconf()
    except OSError as error:
        raise UsageError(f"--mdns cannot be used on this machine: {error}; name --neighbours instead") from error
    try:
        if me.address is not None:
            await service.async_register_service(await asyncio.to_thread(_service, me, me.address))
        AsyncServiceBrowser(service.zeroconf, SERVICE, handlers=[changed])
        yield
    finally:
        for task in asking:
            task.cancel()
        await service.async_unregister_all_services()
        await service.async_close()


async def _address(zeroconf: "Zeroconf", info: "AsyncServiceInfo", me: Announced) -> str | None:
    """Where an edge that has shown up shares; None where it is this one, runs another model, or does not say."""
    if not await info.async_request(zeroconf, _ANSWER_MS):
        return None
    said, addresses = info.decoded_properties, info.parsed_addresses()  # IPv4 first
    if said.get("edge") == me.edge or said.get("model") != me.fingerprint or not (info.port and addresses):
        return None
    host = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    return f"http://{host}:{info.port}"


def _service(me: Announced, address: tuple[str, int]) -> "AsyncServiceInfo":
    from zeroconf.asyncio import AsyncServiceInfo

    host, port = address
    return AsyncServiceInfo(
        SERVICE,
        f"{me.edge}.{SERVICE}",
        parsed_addresses=[_reachable(host)],
        port=port,
        properties={"edge": me.edge, "model": me.fingerprint},
        server=f"preread-{me.edge}.local.",
    )


def _reachable(host: str) -> str:
    """The address that others reach `host` at; for all of IPv4 (0.0.0.0), the one that the default route uses."""
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            return host
    except ValueError:
        return socket.gethostbyname(host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: this only asks the routing table
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
