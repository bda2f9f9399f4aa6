"""The contexts that an edge knows, as `GET /v1/contexts` lists them: what each is, and where it is now."""

from typing import Any, Final

from preread.edge.known import Known
from preread.edge.node import Node
from preread.edge.rungs import Streamable
from preread.errors import PrereadError
from preread.wire.catalogue import Entry

MOST: Final = 1000
"""Contexts in one answer: each has hundreds of segments that are looked up."""


def listed(node: Node, after: str, limit: int) -> dict[str, Any]:
    """A page of the list of all contexts, in the order of their names. What callers said is no context.

    Sizes are in bytes, losses as stated, in nats a token; `disk_bytes` are of segments on this edge's disk.

    Args:
        node: the edge's.
        after: the name that the page begins after; empty: with the first.
        limit: of contexts, from 1 to `MOST`.
    """
    following = [entry for entry in node.contexts.entries() if entry.name > after]
    resident, known = set(node.core.residents()), {each.entry.name: each for each in node.contexts.all()}
    data = [_context(entry, known.get(entry.name), entry.context in resident, node) for entry in following[:limit]]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": len(following) > limit}


def _context(entry: Entry, known: Known | None, resident: bool, node: Node) -> dict[str, Any]:
    rungs = _rungs(known, node)
    where = {
        "engine": resident,
        "memory": entry.context in node.offload,
        "disk": any(rung["disk_bytes"] == rung["bytes"] for rung in rungs),
        "cloud": node.link is not None and node.contexts.unreachable is None,
    }
    return {**_described(entry, node), "pinned": entry.name in node.pins, "where": where, "rungs": rungs}


def _described(entry: Entry, node: Node) -> dict[str, Any]:
    """What was published; `streamable`: this edge's model reads its KV, not only its tokens."""
    own = node.engine.spec
    return {
        "id": entry.name,
        "object": "context",
        "context_id": entry.context,
        "form": entry.form,
        "tokens": entry.token_count,
        "model": entry.model,
        "usable": entry.vocabulary == own.vocabulary,
        "streamable": node.contexts.own_model.streams(entry.fingerprint) and own.no_injection is None,
    }


def _rungs(known: Known | None, node: Node) -> list[dict[str, Any]]:
    """The rungs that are known, best quality first; none where the manifest is not here."""
    try:
        return [] if known is None else [_rung(rung, node) for rung in known.streamable()]
    except PrereadError:
        return []


def _rung(rung: Streamable, node: Node) -> dict[str, Any]:
    here_bytes = disk_bytes(rung, node)
    told = {"name": rung.name, "bytes": rung.size_bytes, "dloss": rung.stated_dloss, "disk_bytes": here_bytes}
    return told if rung.base is None else {**told, "base": rung.base}


def disk_bytes(rung: Streamable, node: Node) -> int:
    """Of a rung's segments, with those that they refine, what this edge's disk has."""
    holds = node.sources.disk.holds
    return sum(ref.size_bytes for place in rung.places for ref in place.refs if holds(ref))
