"""Who asks, and what they may do: keys, their scopes, and how both are written. Pure; it must not know HTTP servers.

A key is written `KEY` or `SCOPE:KEY`; a list of keys is separated by commas, and a file has one on a line.
"""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, Self, get_args

from preread.errors import UsageError

Scope = Literal["read", "publish", "ask"]
"""read: the catalogue and its objects; publish: also to publish and remove contexts; ask: an edge's questions."""

SCOPES: Final[frozenset[str]] = frozenset(get_args(Scope))
_IMPLIED: Final[dict[Scope, frozenset[Scope]]] = {"publish": frozenset({"read"})}
_BEARER: Final = b"bearer"
_SECRET: Final = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose key came with a request. `name` tells keys apart and is no secret."""

    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one server, each with what its holder may do."""

    holders: dict[bytes, Principal] = field(repr=False)

    @classmethod
    def of(cls, written: Iterable[str], unnamed: Scope) -> Self:
        """Keys as they are written.

        Args:
            written: `KEY` or `SCOPE:KEY` each; one that comes twice has the scopes of both.
            unnamed: the scope of a key that names none.

        Raises:
            UsageError: one is no key, or there is none; the message does not hold it.
        """
        found: dict[bytes, Principal] = {}
        for number, one in enumerate(written, 1):
            scope, secret = _split(one, number)
            named = scope or unnamed
            known = found.get(secret, Principal(f"key {len(found) + 1}", frozenset()))
            found[secret] = Principal(known.name, known.scopes | {named} | _IMPLIED.get(named, frozenset()))
        if not found:
            raise UsageError("there is no key among the keys: nobody could be let in")
        return cls(found)

    def identify(self, authorization: bytes) -> Principal | None:
        """Whose key an `Authorization` header holds. Every key is compared, so that the time taken tells nothing.

        The scheme's letters may be of any case (RFC 9110, 11.1).
        """
        scheme, _, given = authorization.strip(b" \t").partition(b" ")
        secret = given.strip(b" \t")
        fits = [holder for key, holder in self.holders.items() if hmac.compare_digest(secret, key)]
        return fits[0] if fits and scheme.lower() == _BEARER else None

    def may(self, scope: Scope) -> bool:
        """Whether anybody may do this."""
        return any(scope in holder.scopes for holder in self.holders.values())


def secret_of(written: str) -> str:
    """The key that a client sends: the one that is written, without the scope that the server's operator put to it.

    Raises:
        UsageError: it cannot be sent.
    """
    scope, colon, rest = written.partition(":")
    secret = rest if colon and scope in SCOPES else written
    if not _SECRET.fullmatch(secret):
        raise UsageError("an API key is 1 to 512 printable ASCII characters without spaces")
    return secret


def lines(text: str) -> list[str]:
    """The keys in a file: one on a line; blank lines and those that begin with # are passed over."""
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def _split(written: str, number: int) -> tuple[Scope | None, bytes]:
    scope, colon, _ = written.partition(":")
    secret = secret_of(written).encode()
    if not colon:
        return None, secret
    for known in get_args(Scope):
        if scope == known:
            return known, secret
    raise UsageError(
        f"key {number} has no known scope before its colon: write {', '.join(sorted(SCOPES))} there; "
        "a key that holds a colon itself has its scope in front"
    )
