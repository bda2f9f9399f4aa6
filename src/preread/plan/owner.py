"""Which edge of a site fetches a segment for all of them: rendezvous hashing, so that nobody has to agree on anything.

Every edge that knows the same edges names the same owner, and when one joins or leaves, only its share changes hands.
"""

from collections.abc import Iterable
from hashlib import blake2b

from preread.values import ObjectId


def ranked(id: ObjectId, edges: Iterable[str]) -> list[str]:
    """The edges in the order in which they own the segment; the second is who owned it before the first joined."""
    return sorted(set(edges), key=lambda edge: (_weight(id, edge), edge), reverse=True)


def _weight(id: ObjectId, edge: str) -> bytes:
    return blake2b(id.encode() + edge.encode(), digest_size=16).digest()
