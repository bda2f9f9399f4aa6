"""Who asks what in a turn of a chaos run: the turn's own request, and others that come while it is under way.

Pure. What a client asks is drawn from the seed, the turn and its own number, so more clients change nothing of what
the first ones ask.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from preread.bench.faults import QUESTIONS, Document, Turn

_LATEST_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Query:
    """One request.

    Attributes:
        client: who asks; 0 asks what the turn says.
        document: what is asked about, as it was when the turn began.
        question: which of the document's questions.
        after_s: so long after the turn's own request it begins.
    """

    client: int
    document: Document
    question: int
    after_s: float = 0.0


def queries(seed: int, turn: Turn, published: Iterable[Document], clients: int) -> tuple[Query, ...]:
    """What so many clients ask in a turn, the first one what the turn says.

    Args:
        seed: of the run.
        turn: in which they ask.
        published: all documents that are there in it; one that is replaced in it as it was before.
        clients: at least 1.
    """
    there = sorted(published, key=attrgetter("name"))
    others = (_other(seed, turn.index, client, there) for client in range(1, clients))
    return (Query(0, turn.document, turn.question), *others)


def turns(requests: int, clients: int) -> int:
    """In how many turns so many clients send so many requests, each client one in a turn."""
    return -(-requests // clients)


def size(index: int, requests: int, clients: int) -> int:
    """How many requests a turn has: one of each client, but the last one what is left."""
    return min(clients, requests - index * clients)


def _other(seed: int, index: int, client: int, there: Sequence[Document]) -> Query:
    source = random.Random(f"{seed}/{index}/{client}")
    return Query(client, source.choice(there), source.randrange(QUESTIONS), source.uniform(0.0, _LATEST_S))
