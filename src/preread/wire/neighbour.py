"""How edges of one site introduce themselves to each other, and prove that they have the site's key without telling it.

Each side proves by an HMAC-SHA-256 (RFC 2104) over what the other has just chosen, as challenge-response schemes do
(SCRAM, RFC 5802, has both sides prove, and both nonces and names in what is signed). What is proved holds for one pair
of edges, one address, one object and some minutes: nobody can show it to another edge, ask for anything else with it,
or stand between two edges that are not connected through him. docs/wire.md has the lines that are signed.
"""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from preread.errors import CorruptData, UsageError

SCHEME: Final = "Preread-Site"
MAX_INTRODUCTION_BYTES: Final = 1024
NONCE_BYTES: Final = 16

_EDGE: Final = re.compile(r"[0-9a-f]{16}")
_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_PROOF: Final = re.compile(r"[0-9a-f]{64}")
_CLAIM: Final = re.compile(
    rf"{SCHEME} edge=([0-9a-f]{{16}}), nonce=([0-9a-f]{{32}})(?:, proof=([0-9a-f]{{64}}))?", re.I
)
_KEY: Final = re.compile(r"[\x21-\x7e]{16,512}")


class Introduction(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an edge says about itself to its neighbours. Fields of later versions are ignored.

    Attributes:
        edge: its id, 16 hex digits.
        model: fingerprint of its model.
        nonce, proof: where the site has a key: what those who ask must sign, and that this edge has the key.
    """

    edge: str
    model: str
    nonce: str = ""
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """What an edge says of itself with a request: who it is, a nonce of its own, and its proof, if it has one yet."""

    edge: str
    nonce: str
    proof: str = ""

    def __str__(self) -> str:
        said = f"{SCHEME} edge={self.edge}, nonce={self.nonce}"
        return f"{said}, proof={self.proof}" if self.proof else said

    @classmethod
    def parse(cls, authorization: str) -> Self | None:
        """What an Authorization header says; None where it says something else."""
        found = _CLAIM.fullmatch(authorization)
        return None if found is None else cls(found[1], found[2], found[3] or "")


_introductions: Final = msgspec.json.Decoder(Introduction)


def introduction(data: bytes) -> Introduction:
    """What an edge said.

    Raises:
        CorruptData: "json" or "schema": it is no introduction.
    """
    try:
        said = _introductions.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptData("json", f"this is not how an edge introduces itself: {error}") from error
    if not _EDGE.fullmatch(said.edge):
        raise CorruptData("schema", f"{said.edge[:40]!r} is no id of an edge")
    if said.proof and not (_NONCE.fullmatch(said.nonce) and _PROOF.fullmatch(said.proof)):
        raise CorruptData("schema", "an edge's nonce and proof are 32 and 64 hex digits")
    return said


class SiteKey:
    """The secret that the edges of a site share. It never leaves this object; not even its `repr` has it.

    Raises:
        UsageError: it is too short to withstand guessing, which everybody may try who has seen a proof.
    """

    def __init__(self, secret: str) -> None:
        if not _KEY.fullmatch(secret):
            raise UsageError(
                "a site key has 16 to 512 printable ASCII characters and no spaces; `openssl rand -hex 16` makes one"
            )
        self._secret = secret.encode()

    def answer(self, asker: Claim, said: Introduction, address: str) -> str:
        """That the edge which introduces itself so, at this address, to this asker, has the key: 64 hex digits."""
        return self._signed("answer", asker.edge, asker.nonce, said.edge, said.nonce, said.model, address)

    def request(self, asker: Claim, edge: str, nonce: str, address: str, target: str) -> str:
        """That the asker of `target` from the edge at this address, which gave this nonce, has the key."""
        return self._signed("request", asker.edge, asker.nonce, edge, nonce, target, address)

    def _signed(self, *lines: str) -> str:
        text = "\n".join(("preread neighbours 1", *lines))
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two proofs are the same, in a time that tells nothing."""
    return hmac.compare_digest(one.encode(), other.encode())


def address(host: str, port: int) -> str:
    """An address as both of its ends write it: `IP PORT`, an IPv4 address as such and no zone."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return f"{host} {port}"
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return f"{mapped or ip} {port}"
