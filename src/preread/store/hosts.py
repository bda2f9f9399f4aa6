"""Names of servers and of web pages, as requests and options write them. Pure."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from preread.errors import UsageError

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{0,5})?")
ANY: Final = "*"


def host_name(header: str) -> str | None:
    """The name in a Host header (RFC 9110, 7.2), in small letters and without brackets or port; None if there is none.

    A dot at the end, which says that the name is whole, is no part of it.
    """
    found = _HOST.fullmatch(header)
    return None if found is None else (found[1] or found[2]).lower().removesuffix(".") or None


def is_loopback(name: str) -> bool:
    """Whether this is what a machine calls itself: `localhost`, or an address that no packet leaves it for."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def hosts(given: str | None) -> frozenset[str]:
    """The names in `cloud.example,edge` of `--allow-host`; `*`: all.

    Raises:
        UsageError: one is no name, such as a URL; the option is given and names none.
    """
    return frozenset(_host(one) for one in _listed(given, "--allow-host"))


def origins(given: str | None) -> frozenset[str]:
    """The origins in `https://app.example,http://localhost:3000` of `--allow-origin`, as browsers write them; `*`: all.

    Raises:
        UsageError: one is no origin; the option is given and names none.
    """
    return frozenset(_origin(one) for one in _listed(given, "--allow-origin"))


def _listed(given: str | None, option: str) -> list[str]:
    if given is None:
        return []
    found = [one.strip() for one in given.split(",") if one.strip()]
    if not found:
        raise UsageError(f"{option} names nothing: leave it away, or say *")
    return found


def _host(one: str) -> str:
    name = ANY if one == ANY else host_name(one)
    if name is None:
        raise UsageError(f"--allow-host takes names such as cloud.example, not {one!r}")
    return name


def _origin(one: str) -> str:
    """An origin is written scheme://host[:port], small, without a default port (RFC 6454, 6.2)."""
    if one == ANY:
        return one
    refusal = UsageError(f"--allow-origin takes origins such as https://app.example, not {one!r}")
    try:
        parts = urlsplit(one)
        port = parts.port
    except ValueError:
        raise refusal from None
    name, more = parts.hostname or "", parts.path.strip("/") or parts.query or parts.fragment
    if (
        not (parts.scheme and name)
        or more
        or "@" in parts.netloc
        or not one.isascii()
        or not one.isprintable()
        or " " in one
    ):
        raise refusal
    host = f"[{name}]" if ":" in name else name
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if port in (None, default) else f":{port}")
