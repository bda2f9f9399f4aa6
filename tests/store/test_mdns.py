"""Edges find each other by multicast DNS, where this machine has a network that lets them."""

import asyncio
import socket

import pytest

from preread.store.mdns import Announced, discovering
from preread.values import Fingerprint

zeroconf = pytest.importorskip("zeroconf", reason="zeroconf is not installed: pip install 'preread[lan]'")
MODEL, OTHER = Fingerprint("ab" * 32), Fingerprint("cd" * 32)


def multicast_passes() -> bool:
    """Whether this machine hears its own multicast: without a network, or in some containers, it does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", 0))
            group = socket.inet_aton("224.0.0.251")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton("0.0.0.0"))
            sock.settimeout(2)
            sock.sendto(b"probe", ("224.0.0.251", sock.getsockname()[1]))
            return sock.recv(16) == b"probe"
        except OSError:
            return False


pytestmark = pytest.mark.skipif(not multicast_passes(), reason="multicast does not pass on this machine")


class Heard:
    """What an edge was told."""

    def __init__(self) -> None:
        self.urls: dict[str, str | None] = {}
        self._news = asyncio.Event()

    def __call__(self, name: str, url: str | None) -> None:
        self.urls[name] = url
        self._news.set()

    async def until(self, *urls: str | None) -> None:
        async with asyncio.timeout(20):
            while sorted(map(str, self.urls.values())) != sorted(map(str, urls)):
                self._news.clear()
                await self._news.wait()


def edge(number: int, model: Fingerprint = MODEL, port: int | None = None) -> Announced:
    return Announced(f"{number:016x}", model, None if port is None else ("127.0.0.1", port))


def test_edges_find_each_other_and_notice_who_leaves() -> None:
    async def main() -> None:
        first, second, other = Heard(), Heard(), Heard()
        async with discovering(edge(1, port=4001), first):
            async with discovering(edge(2, OTHER, 4002), other), discovering(edge(3, port=4003), second):
                await first.until("http://127.0.0.1:4003")
                await second.until("http://127.0.0.1:4001")
            await first.until(None)
        assert other.urls == {}, "edges of other models are none of its business"

    asyncio.run(main())


def test_who_does_not_share_is_not_announced() -> None:
    async def main() -> None:
        silent, sharing = Heard(), Heard()
        async with discovering(edge(1), silent), discovering(edge(2, port=4002), sharing):
            await silent.until("http://127.0.0.1:4002")
            assert sharing.urls == {}

    asyncio.run(main())
