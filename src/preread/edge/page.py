"""What the edge's page shows now: read from the edge's parts when somebody looks, and only then.

Answers are shown to the caller who asked. All else is the edge's, and said to whoever may ask it at all.
"""

import time
from typing import Final

from preread.edge.edge import AsyncEdge
from preread.edge.known import Known
from preread.edge.listed import disk_bytes
from preread.edge.node import Node
from preread.edge.residents import Residents
from preread.errors import PrereadError
from preread.page.values import Choices, Context, Contexts, Machine, Neighbour, Rung, Section, Shown
from preread.wire.catalogue import Entry

MOST_ANSWERS: Final = 9
MOST_CONTEXTS: Final = 100
MOST_CHOICES: Final = 500
_SOON_S, _LATER_S = 0.25, 1.0
"""While an answer is under way, its map is looked at so often; else this often."""
_REST_S: Final = 2.0
"""What all callers see alike is put together no more often, however many look."""


class EdgePage:
    """An edge's page. The edge need not be open yet."""

    def __init__(self, edge: AsyncEdge) -> None:
        self._edge = edge
        self._rest: dict[str, Section] = {}
        self._rest_s = float("-inf")

    async def look(self, caller: str) -> Shown:
        """What to show to this caller now."""
        residents = self._edge.residents
        answers = residents.history.of(caller, residents.node.refinement, MOST_ANSWERS)
        now_s = time.monotonic()
        if now_s - self._rest_s >= _REST_S:
            self._rest, self._rest_s = _rest(residents), now_s
        own = {"latest": answers[:1], "earlier": answers[1:]}
        live = any(answer.live for answer in answers)
        return Shown({**own, **self._rest}, _SOON_S if live else _LATER_S)


def _rest(residents: Residents) -> dict[str, Section]:
    node = residents.node
    entries = node.contexts.entries()
    fitting = [entry.name for entry in entries if entry.vocabulary == node.engine.spec.vocabulary]
    return {
        "choices": Choices(tuple(fitting[:MOST_CHOICES]), max(0, len(fitting) - MOST_CHOICES)),
        "contexts": _contexts(entries, residents),
        "machine": _machine(node),
    }


def _contexts(entries: list[Entry], residents: Residents) -> Contexts:
    """The contexts, those in the engine's cache and in memory first."""
    node, used = residents.node, residents.history.used
    there = set(node.core.residents())

    def rank(entry: Entry) -> tuple[bool, bool, int, str]:
        context = entry.context
        return context not in there, context not in node.offload, -used[context], entry.name

    shown = sorted(entries, key=rank)[:MOST_CONTEXTS]
    contexts = tuple(_context(entry, residents, resident=entry.context in there) for entry in shown)
    return Contexts(contexts, len(entries) - len(shown))


def _context(entry: Entry, residents: Residents, *, resident: bool) -> Context:
    node, history, context = residents.node, residents.history, entry.context
    note, known = None, None
    try:
        known = node.contexts.named(entry.name)
    except PrereadError as error:
        note = str(error)
    rungs = () if known is None else _rungs(known, node)
    own = node.contexts.own_model.streams(entry.fingerprint)
    if not own:
        note = f"published for {entry.model}"
    elif known is not None and not rungs:
        note = known.why
    whole_here = any(rung.held == 1 for rung in rungs)
    if resident:
        tier = "resident"
    elif node.core.present(context):
        tier = "loading"
    elif context in node.offload:
        tier = "memory"
    elif whole_here:
        tier = "disk"
    else:
        tier = "cloud" if own and node.link is not None and not node.contexts.unreachable else "computed"
    pinned = entry.name in node.pins
    used, hits = history.used[context], history.hits[context]
    return Context(entry.name, entry.model, entry.token_count, rungs, tier, note, pinned, used, hits)


def _rungs(known: Known, node: Node) -> tuple[Rung, ...]:
    return tuple(
        Rung(rung.name, rung.size_bytes, rung.stated_dloss, disk_bytes(rung, node) / rung.size_bytes)
        for rung in known.rungs
    )


def _machine(node: Node) -> Machine:
    stats, link, beliefs = node.core.stats(), node.beliefs.last_link, node.beliefs
    neighbours = [] if node.sources.neighbours is None else node.sources.neighbours.all()
    held = node.sources.held
    cloud = "this edge has no cloud: start it with --cloud URL" if node.link is None else node.contexts.unreachable
    return Machine(
        model=node.engine.spec.name,
        window_tokens=node.engine.spec.window_tokens,
        cloud=cloud,
        mbps=None if link is None else link.bytes_s * 8e-6,
        rtt_ms=None if beliefs.measured_rtt_s is None else beliefs.measured_rtt_s * 1e3,
        neighbours=tuple(Neighbour(one.host, _state(one.usable, one.known)) for one in neighbours),
        received_bytes=tuple((supply.name, supply.received_bytes) for supply in node.sources.supplies()),
        running=stats.running,
        waiting=stats.waiting,
        loading=stats.loading,
        steps=stats.steps,
        step_tokens=sum(stats.tokens.values()) / max(1, stats.steps),
        cells=tuple(stats.cells.items()),
        kv_bytes=(
            ("in the engine's cache", stats.kv_bytes),
            ("in memory", node.offload.used_bytes),
            ("of segments on disk", 0 if held is None else held.used_bytes),
        ),
    )


def _state(usable: bool, known: bool) -> str:
    if usable:
        return "well"
    return "left alone for a while, since it failed" if known else "not there, or of another model"
