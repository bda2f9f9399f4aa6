"""What people write behind options, taken apart: lists of names, numbers and addresses, or why they are none."""

import re
from pathlib import Path
from typing import Final

from preread.codec.ladder import ladder
from preread.errors import UsageError
from preread.plan.place import POLICIES, Policy
from preread.store.origin import parse_origin
from preread.wire.selection import MOST_PREFIX

RUNGS: Final = ", ".join(ladder())
_FITTED: Final = re.compile(r"b\d{1,2}(\.\d{1,2})?")
"""What rungs of a profile are called: about so many bits a value. Which there are, the profile says."""
_MOST_PREFIXES: Final = 64


def rung_names(given: str) -> tuple[str, ...]:
    """The rungs in `lossless,q8`, each once. Whether a model's profile has a fitted one is not known here.

    Raises:
        UsageError: one is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--rungs holds no rung; known rungs: {RUNGS}, and fitted ones such as b2")
    for name in names:
        check_rung(name)
    return names


def subscriptions(subscribe: str | None, pins: list[str] | None, prefetch: str) -> tuple[tuple[str, ...], Policy]:
    """What an edge holds ahead of need: these names, and by which policy others.

    Raises:
        UsageError: `prefetch` is no policy, or `subscribe` names nothing.
    """
    names = [name.strip() for name in (subscribe or "").split(",") if name.strip()]
    if subscribe is not None and not names:
        raise UsageError("--subscribe names no context: write --subscribe NAME,NAME or --subscribe all")
    chosen = policy("all" if names == ["all"] else prefetch)
    return tuple(dict.fromkeys([*(pins or ()), *(name for name in names if names != ["all"])])), chosen


def prefixes(given: str | None) -> tuple[str, ...]:
    """What `--names` says names begin with.

    Raises:
        UsageError: it says nothing, or more than a cloud can be asked for.
    """
    found = tuple(dict.fromkeys(one.strip() for one in (given or "").split(",") if one.strip()))
    if given is not None and not found:
        raise UsageError("--names says no beginning of a name: write --names manual-,prices-")
    if len(found) > _MOST_PREFIXES or any(len(one) > MOST_PREFIX for one in found):
        raise UsageError(f"--names takes at most {_MOST_PREFIXES} beginnings of at most {MOST_PREFIX} characters")
    return found


def policy(given: str) -> Policy:
    """What `--prefetch` says.

    Raises:
        UsageError: it says something else.
    """
    for known in POLICIES:
        if given == known:
            return known
    raise UsageError(f"--prefetch is one of {', '.join(POLICIES)}, not {given!r}")


def urls(given: str | None) -> tuple[str, ...]:
    """The addresses in `http://a:1,http://b:2`, each once.

    Raises:
        UsageError: one cannot be an address.
    """
    found = tuple(dict.fromkeys(url.strip() for url in (given or "").split(",") if url.strip()))
    for url in found:
        parse_origin(url)
    return found


def host_and_port(given: str) -> tuple[str, int]:
    """What is in `host:port` or `[ipv6]:port`.

    Raises:
        UsageError: it is no such text.
    """
    host, colon, port = given.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise UsageError(f"--share takes HOST:PORT, not {given!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_rung(name: str | None) -> None:
    """Refuse what cannot be the name of a rung, before a model is loaded for it.

    Raises:
        UsageError: it cannot.
    """
    if name is not None and name not in ladder() and not _FITTED.fullmatch(name):
        raise UsageError(f"unknown rung {name!r}; known rungs: {RUNGS}, and fitted ones such as b2")


def check_folder(path: Path) -> None:
    """Refuse, before any work is done, a file that cannot be written in the end.

    Raises:
        UsageError: its folder does not exist.
    """
    if not path.expanduser().absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: its folder does not exist")


def counts(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers in `1000,4000`, as `option` has them.

    Raises:
        UsageError: it is no such list, or one is below 1.
    """
    found = numbers(option, text)
    if min(found) < 1 or any(count % 1 for count in found):
        raise UsageError(f"{option} is a list of whole numbers of at least 1")
    return tuple(map(int, found))


def numbers(option: str, text: str) -> tuple[float, ...]:
    """The numbers in `20,100`, as `option` has them.

    Raises:
        UsageError: it is no such list, or one is below 0.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} is a list of numbers separated by commas, not {text!r}") from error
    if min(found) < 0:
        raise UsageError(f"{option} must not be negative")
    return found
