"""What happens in a chaos run, drawn from a seed: which contexts there are, what is asked, what breaks and when.

Pure: no clock, no I/O. Turn *i* depends on the seed and on *i* only through what is drawn before it, so a run of more
turns begins like one of fewer, and any turn can be played again by itself.

Faults come in episodes of one to four turns, with none to five calm ones between; half of them are there before
the turn's request begins, the other half come while it is under way. Contexts are replaced while requests run, removed
and brought back in calm turns: what is asked for is always published under its name, though perhaps just replaced.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Literal

from preread.testing.toxics import Blackout, Corrupt, Fault, HalfOpen, Link, Refuse, Reset, Slicer, Truncate

Kind = Literal[
    "calm", "link", "refuse", "blackout", "hiccup", "half-open", "reset", "truncated", "corrupt", "drip",
    "cloud-kill", "cloud-sleep", "edge-kill", "edge-sleep", "disk-full", "replaced",
]  # fmt: skip
"""calm: nothing. link: its rate and round trip change. hiccup: a blackout that ends by itself. sleep: the process is
stopped for a while, as a laptop's are when its lid is closed. disk-full: the edge can write no file. replaced: a
context gets another text under the same name. The others are what they are called."""

WEIGHTS: Final[dict[Kind, int]] = {
    "link": 5, "refuse": 3, "blackout": 4, "hiccup": 3, "half-open": 3, "reset": 5, "truncated": 5,
    "corrupt": 5, "drip": 4, "cloud-kill": 1, "cloud-sleep": 3, "edge-kill": 6, "edge-sleep": 2, "disk-full": 2,
    "replaced": 2,
}  # fmt: skip
_RATES_MBPS: Final = {1.0: 1, 10.0: 2, 50.0: 3, 100.0: 5, 300.0: 8, 1000.0: 8}
_RTTS_MS: Final = (0.0, 2.0, 5.0, 20.0, 80.0)
_OFFSET_BYTES: Final = 80_000
_LATEST_S: Final = 0.25
_CALM_TURNS: Final = 5
_EPISODE_TURNS: Final = 4
_REMOVED_TURNS: Final = 12
QUESTIONS: Final = 4


@dataclass(frozen=True, slots=True)
class Episode:
    """One fault, for as long as it lasts.

    Attributes:
        kind: what it is.
        link: as it is while the episode lasts.
        faults: of the proxy.
        sleep_s: how long a stopped process is stopped.
    """

    kind: Kind
    link: Link
    faults: tuple[Fault, ...] = ()
    sleep_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Document:
    """A context: `version` counts the texts that were published under `name`. The text begins at `start` (0 … 1)."""

    name: str
    version: int
    tokens: int
    start: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One request with all that happens around it; others may ask at the same time (`crowd.py`).

    Attributes:
        index: 0 for the first.
        document: what is asked about; as it was before a replacement.
        question: which of the document's questions.
        episode: the fault that is in force, or sets in.
        fresh: whether it sets in with this turn.
        after_s: so long after the request was sent; 0: before it.
        last: whether the episode ends after this turn.
        publish: documents that are published before the turn; the first turn's are all that there are.
        remove: names that are removed before it.
        replaces: what is published under the document's name while the request is under way.
    """

    index: int
    document: Document
    question: int
    episode: Episode
    fresh: bool
    after_s: float
    last: bool
    publish: tuple[Document, ...] = ()
    remove: tuple[str, ...] = ()
    replaces: Document | None = None


def schedule(
    seed: int, turns: int, least_tokens: int, most_tokens: int, contexts: int = 8, questions: int = QUESTIONS
) -> Iterator[Turn]:
    """The turns of a run.

    Args:
        seed: all follows from it.
        turns: how many.
        least_tokens, most_tokens: of the contexts.
        contexts: how many names there are, at least 2.
        questions: how many each document has.
    """
    return islice(_turns(random.Random(f"{seed}"), (least_tokens, most_tokens), contexts, questions), turns)


def standing(turns: Iterator[Turn], index: int) -> Turn:
    """Turn `index` as the first of a run: with everything that is published by then, and its fault setting in.

    Raises:
        ValueError: there is no such turn.
    """
    there: dict[str, Document] = {}
    for turn in turns:
        for name in turn.remove:
            del there[name]
        there |= {document.name: document for document in turn.publish}
        if turn.index == index:
            return replace(turn, fresh=True, publish=tuple(there.values()), remove=())
        if turn.replaces is not None:
            there[turn.replaces.name] = turn.replaces
    raise ValueError(f"the run has no turn {index}")


def _turns(source: random.Random, lengths: tuple[int, int], contexts: int, questions: int) -> Iterator[Turn]:
    there = {name: _document(source, name, 0, lengths) for name in (f"c{i}" for i in range(contexts))}
    away: dict[str, tuple[Document, int]] = {}  # removed: the last version, and the turn in which it comes back
    publish: tuple[Document, ...] = tuple(there.values())
    remove: tuple[str, ...] = ()
    index = 0
    link = _link(source)
    while True:
        episode = _episode(source, link)
        link = episode.link
        turns = source.randint(1, _EPISODE_TURNS) if episode.kind not in ("edge-kill", "replaced") else 1
        late = source.random() < 0.5
        for n in range(turns + source.randint(0, _CALM_TURNS)):
            calm = n >= turns
            now = Episode("calm", link) if calm else episode
            document = there[source.choice(sorted(there))]
            after_s = source.uniform(0.0, _LATEST_S) if late and n == 0 else 0.0
            new = None
            if now.kind == "replaced" or (now.kind == "disk-full" and n == 0):
                new = _document(source, document.name, document.version + 1, lengths)
                there[document.name] = new
            yield Turn(
                index, document, source.randrange(questions), now, fresh=n in (0, turns), after_s=after_s,
                last=n == turns - 1, publish=publish, remove=remove, replaces=new,
            )  # fmt: skip
            index += 1
            publish, remove = (), ()
            if calm:
                publish, remove = _changes(source, index, there, away, lengths)


def _changes(
    source: random.Random,
    index: int,
    there: dict[str, Document],
    away: dict[str, tuple[Document, int]],
    lengths: tuple[int, int],
) -> tuple[tuple[Document, ...], tuple[str, ...]]:
    """What is brought back and what is removed before the next turn, which may be any."""
    back = tuple(
        _document(source, name, gone.version + 1, lengths) for name, (gone, due) in away.items() if due <= index
    )
    for document in back:
        del away[document.name]
        there[document.name] = document
    if len(there) < 3 or source.random() > 0.03:
        return back, ()
    name = source.choice(sorted(name for name in there if there[name] not in back) or [""])
    if not name:
        return back, ()
    away[name] = there.pop(name), index + _REMOVED_TURNS
    return back, (name,)


def _document(source: random.Random, name: str, version: int, lengths: tuple[int, int]) -> Document:
    return Document(name, version, source.randint(*lengths), source.random())


def _link(source: random.Random) -> Link:
    (mbps,) = source.choices(list(_RATES_MBPS), list(_RATES_MBPS.values()))
    return Link(mbps=mbps, rtt_ms=source.choice(_RTTS_MS), jitter_ms=source.choice((0.0, 0.0, 3.0)))


def _episode(source: random.Random, link: Link) -> Episode:
    (kind,) = source.choices(list(WEIGHTS), list(WEIGHTS.values()))
    offset = source.randrange(_OFFSET_BYTES)
    match kind:
        case "link":
            return Episode(kind, _link(source))
        case "refuse":  # and what is open breaks off
            return Episode(kind, link, (Refuse(), Reset(0)))
        case "half-open":
            return Episode(kind, link, (HalfOpen(), Reset(0)))
        case "blackout":
            return Episode(kind, link, (Blackout(),))
        case "hiccup":
            return Episode(kind, link, (Blackout(source.uniform(0.05, 1.5)),))
        case "reset":
            return Episode(kind, link, (Reset(offset),))
        case "truncated":
            return Episode(kind, link, (Truncate(offset),))
        case "corrupt":
            every = source.choice((None, 10_000, 200_000))
            return Episode(kind, link, (Corrupt(offset, source.randint(1, 255), every),))
        case "drip":
            return Episode(kind, link, (Slicer(source.choice((1, 100, 2_000)), source.choice((5.0, 20.0))),))
        case "cloud-sleep" | "edge-sleep":
            return Episode(kind, link, sleep_s=source.uniform(0.1, 1.5))
    return Episode(kind, link)
