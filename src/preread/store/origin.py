"""Where a server is, as its address is written, and which way requests take to it. Pure."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from preread.errors import UsageError
from preread.store.hosts import is_loopback
from preread.via import Proxy, Via, authority, is_plain


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go.

    Attributes:
        scheme: http or https.
        host, port: of the server; what the Host header says where it is reached over a socket.
        prefix: the path in front of all targets: empty, or "/…" without a slash at its end.
        socket: absolute path of the unix socket that it is reached over; None: it is reached over TCP.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""
    socket: str | None = None

    @property
    def authority(self) -> str:
        """What the Host header says."""
        return authority(self.host, self.port)

    @property
    def near(self) -> bool:
        """Whether what is sent there does not leave this machine."""
        return self.socket is not None or is_loopback(self.host)

    @property
    def exposed(self) -> bool:
        """Whether what is said there leaves the machine without TLS."""
        return self.scheme == "http" and not self.near

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}" if self.socket is None else f"unix:{self.socket}"


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an origin. As text it names the proxy too, so that errors say what may be at fault."""

    origin: Origin
    proxy: Proxy | None = None

    @classmethod
    def to(cls, origin: Origin, via: Via) -> "Route":
        """The way that was chosen for servers elsewhere; what does not leave this machine needs no proxy."""
        return cls(origin, None if origin.near else via.proxy)

    @property
    def relayed(self) -> bool:
        """Whether the proxy is asked for what is wanted, not for a tunnel: what is not TLS it can read anyway."""
        return self.proxy is not None and self.origin.scheme == "http"

    def target(self, path: str) -> str:
        """What a request's first line says (RFC 9112, 3.2.1 and 3.2.2)."""
        below = self.origin.prefix + path
        return f"http://{self.origin.authority}{below}" if self.relayed else below

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What every request begins with."""
        host = ("Host", self.origin.authority)
        if self.relayed and self.proxy is not None and self.proxy.authorization is not None:
            return host, ("Proxy-Authorization", self.proxy.authorization)
        return (host,)

    def __str__(self) -> str:
        return str(self.origin) if self.proxy is None else f"{self.origin} through the proxy {self.proxy}"


def parse_origin(url: str) -> Origin:
    """Read `http(s)://host[:port][/prefix]`, or `unix:/path`, which may be written `unix:///path` too.

    Raises:
        UsageError: anything else, user names and queries included.
    """
    refusal = UsageError(
        f"{url!r} is not an address that preread can use: write http://HOST:PORT, https://HOST, or unix:/PATH"
    )
    scheme, _, path = url.partition(":")
    if scheme == "unix":
        path = path.removeprefix("//")
        if not path.startswith("/") or path.startswith("//") or not path.isprintable():
            raise refusal
        return Origin("http", "localhost", 80, socket=path)
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError) as error:
        raise refusal from error
    if not (is_plain(url) and parts.hostname and parts.username is None and not parts.query and not parts.fragment):
        raise refusal
    return Origin(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
