"""How others are reached from here: through which proxy, and with which certificate of our own. Nothing unless said.

The variables that other programs take proxies from (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) have no part in it.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from preread.errors import UsageError
from preread.tls import Identity

_NAMES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy"})


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. As text it is its address, without what its user shows to it.

    Attributes:
        url: as it was given, credentials included.
        authorization: what is sent as Proxy-Authorization (RFC 9110, 11.7.2); None where the URL names no user.
    """

    host: str
    port: int
    url: str = field(repr=False)
    authorization: str | None = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `http://[USER:PASSWORD@]HOST[:PORT]`; what is special in a URL is written as %XX.

        Raises:
            UsageError: anything else; the message does not hold it, since it may hold a password.
        """
        refusal = UsageError("--proxy takes http://[USER:PASSWORD@]HOST:PORT, and this is no such address")
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError:
            raise refusal from None
        if parts.scheme != "http" or not (is_plain(url) and parts.hostname) or parts.path.strip("/") or parts.query:
            raise refusal
        return cls(parts.hostname, port, url, _basic(parts.username, parts.password))

    def __str__(self) -> str:
        return f"http://{authority(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Via:
    """How servers elsewhere are reached. This machine itself is reached without a proxy.

    Attributes:
        proxy: all connections go through it; None: through none.
        identity: shown to servers that ask for a certificate.
    """

    proxy: Proxy | None = None
    identity: Identity | None = None


DIRECT: Final = Via()


def is_plain(url: str) -> bool:
    """Whether a URL has only what one may have (RFC 3986): all else is written as %XX there."""
    return url.isascii() and url.isprintable() and not set(url) & set(' "<>\\^`{|}')


def authority(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def environment(given: Mapping[str, str], proxy: Proxy | None) -> dict[str, str]:
    """The variables of a child process that reaches others: through `proxy`, whatever they said about proxies."""
    kept = {name: value for name, value in given.items() if name.lower() not in _NAMES}
    return kept if proxy is None else kept | {"http_proxy": proxy.url, "https_proxy": proxy.url}


def _basic(user: str | None, password: str | None) -> str | None:
    """RFC 7617."""
    if user is None:
        return None
    both = f"{unquote(user)}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(both.encode()).decode()
