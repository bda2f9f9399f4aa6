"""Which rung of a context is streamed to this edge.

The choice itself is `plan.choose`'s; here are the terms on which it is made, and what stands against a rung.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from preread.edge.known import Known
from preread.edge.rungs import NotStreamable, Streamable
from preread.errors import CorruptData, UsageError
from preread.plan.beliefs import Beliefs
from preread.plan.choose import choose_rung
from preread.plan.cost import Link, Need, floor_in_order_s
from preread.values import ObjectRef

_ABOVE_FLOOR = 1.3
"""A first token comes so many times later than the floor, as a rule."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what a rung is chosen: what the operator told, what is believed, and what is on the disk.

    Attributes:
        rung: the one to stream; None: the budget decides.
        max_dloss: by how much a rung may be stated to raise the loss, nats a token.
        deadline_s: when the first token should be there; None: the fewest bytes are wanted.
        beliefs: of this machine and its link.
        prompt_s: what computing the prompt is expected to take, where there is one.
        on_disk: whether a segment is on this edge's disk.
    """

    rung: str | None
    max_dloss: float
    deadline_s: float | None
    beliefs: Beliefs
    prompt_s: float
    on_disk: Callable[[ObjectRef], bool]


def chosen(known: Known, terms: Terms, *, here: bool = False) -> Streamable:
    """What to stream of a context: the rung that this edge was told to use, or else the one that its budget allows.

    Args:
        known, terms: the context, and on what to choose.
        here: only a rung that is whole on this edge's disk will do.

    Raises:
        PrereadError: why there is none, in one line.
    """
    if terms.rung is not None:
        told = known.rung(terms.rung)
        if (problem := _problem(told, terms, here)) is not None:
            raise NotStreamable(problem)
        return told
    rungs = {rung.name: rung for rung in known.streamable()}
    problems: list[str] = []

    def usable(name: str) -> bool:
        problem = _problem(rungs[name], terms, here)
        if problem is not None:
            problems.append(f"rung {name}: {problem}")
        return problem is None

    if terms.deadline_s is None:
        offers = [rung.offer() for rung in rungs.values()]
    else:
        offers = [rung.offer(expected_s(rung, terms)) for rung in rungs.values()]
    name = choose_rung(offers, terms.max_dloss, usable, terms.deadline_s)
    if name is not None:
        for problem in problems:
            _log.info("context %r is streamed at %s, since it cannot be at %s", known.entry.name, name, problem)
        return rungs[name]
    if problems:
        raise CorruptData("rung", "; ".join(problems))
    best = min((offer.dloss for offer in offers if offer.dloss is not None), default=0.0)
    raise UsageError(f"no rung keeps the budget of {terms.max_dloss:g} nats a token; the best costs {best:.3g}")


def expected_s(rung: Streamable, terms: Terms) -> float:
    """Seconds until the first token if a context is streamed at this rung, what is on this edge's disk from there.

    The link is taken to be what it was when it was seen last, hours ago if need be: a wrong choice costs bytes or
    quality within the budget, and the plan sees to the time. One that was never seen brings nothing, as far as is
    known: then everything is computed here.
    """
    beliefs, tokens = terms.beliefs, rung.manifest.tokens.count
    group_bytes = [0] * len(rung.manifest.groups)
    for place in rung.places:
        group_bytes[place.group] += sum(ref.size_bytes for ref in place.refs if not terms.on_disk(ref))
    away_bytes, prefill_tokens_s = sum(group_bytes), tokens / beliefs.prefill.seconds(0, tokens)
    need = Need(tokens, away_bytes, prefill_tokens_s, terms.prompt_s, tuple(group_bytes))
    link = beliefs.last_link or Link(0.0, beliefs.rtt_s)
    return _ABOVE_FLOOR * (floor_in_order_s(need, link) if away_bytes else terms.prompt_s)


def _problem(rung: Streamable, terms: Terms, here: bool) -> str | None:
    """What stands against streaming a rung, if anything does."""
    if isinstance(rung.decoder, str):
        return rung.decoder
    if rung.foreign_dloss > terms.max_dloss:
        cost, budget = f"{rung.foreign_dloss:.3g}", f"{terms.max_dloss:g}"
        name = rung.manifest.model.name
        return f"reading KV of {name} at rung {rung.name} costs up to {cost} nats a token, above the budget of {budget}"
    if here and not all(terms.on_disk(ref) for place in rung.places for ref in place.refs):
        return f"rung {rung.name} is not whole on this disk"
    return None
