"""What an edge's /metrics say before and after its clients were killed, and what follows from that. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families

from preread.plan.share import STEP_TOKENS

MOST_TOKENS: Final = 8
"""So many tokens may still be computed of the answer to a client that is gone."""

Phase = Literal["arriving", "queued", "loading", "prefill", "decode", "over"]
"""Sent, and nothing seen of it yet; waiting for others; for a context; read; answered; and no more to be sent."""

Kind = Literal["plain", "about", "long"]
"""A short prompt, one about a context, and a long one; all but the last ask for a long answer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an edge's /metrics say at one moment.

    Attributes:
        running, waiting, loading: requests that are computed or wait, and contexts on their way.
        free_sequences: that nothing has.
        context_cells, other_cells: that contexts have, and that requests and conversations have.
        answer_tokens, read_tokens: that were ever computed: of answers, and of prompts and contexts.
    """

    running: int
    waiting: int
    loading: int
    free_sequences: int
    context_cells: int
    other_cells: int
    answer_tokens: int
    read_tokens: int

    @property
    def idle(self) -> bool:
        """Whether the edge does nothing for anybody."""
        return not (self.running or self.waiting or self.loading)


def reading(text: str) -> Reading:
    """What the text of /metrics says."""
    found = {
        (sample.name, sample.labels.get("of", "")): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    cells, tokens = "preread_kv_cells", "preread_tokens_total"
    return Reading(
        found["preread_requests_running", ""],
        found["preread_requests_waiting", ""],
        found["preread_contexts_loading", ""],
        found["preread_sequences_free", ""],
        found[cells, "contexts"],
        found[cells, "requests"] + found[cells, "conversations"],
        found[tokens, "answer"],
        found[tokens, "prompt"] + found[tokens, "context"],
    )


def phase(told: bytes, kind: Kind, seen: Reading, answering: int) -> Phase:
    """What a client is killed in, as far as that can be known.

    Args:
        told: what it has told.
        kind: of what it asked.
        seen: the edge's metrics just before.
        answering: clients that have a first token and no last one.
    """
    if b"e" in told:
        return "over"
    if b"t" in told:
        return "decode"
    if seen.loading and kind == "about":
        return "loading"
    if seen.waiting:
        return "queued"
    return "prefill" if seen.running > answering else "arriving"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What came after the last kill of a group.

    Attributes:
        answer_tokens, read_tokens: that were still computed: of answers, and of prompts and contexts.
        went_on: whether that is more than may be.
        leaked_cells, leaked_sequences: that somebody still has, and should not; below 0: that are free twice.
        late: somebody is still computed for, or waits.
    """

    answer_tokens: int
    read_tokens: int
    went_on: bool
    leaked_cells: int
    leaked_sequences: int
    late: bool

    @property
    def over(self) -> bool:
        """Whether nothing goes on, and nothing is left."""
        return not (self.late or self.leaked_cells or self.leaked_sequences)


def aftermath(start: Reading, last: Reading, after: Reading, contexts: int, context_tokens: int) -> Aftermath:
    """Judge a group of clients that were killed.

    Contexts stay, each with a sequence of its own. A step that has begun may be computed to its end.

    Args:
        start: what the metrics said before anybody was killed.
        last, after: just before the group's last kill, and at its end.
        contexts, context_tokens: how many are published, and how many tokens each of them has.
    """
    answer_tokens, read_tokens = after.answer_tokens - last.answer_tokens, after.read_tokens - last.read_tokens
    most = MOST_TOKENS * max(1, last.running)
    resident, partial = divmod(after.context_cells, context_tokens)
    had = start.free_sequences + start.context_cells // context_tokens
    return Aftermath(
        answer_tokens,
        read_tokens,
        went_on=answer_tokens > most or read_tokens > STEP_TOKENS,
        leaked_cells=after.other_cells + partial + max(0, resident - contexts) * context_tokens,
        leaked_sequences=had - after.free_sequences - resident,
        late=not after.idle,
    )


def failings(seen: Sequence[Aftermath], same_answer: bool) -> list[str]:
    """What is not as it should be."""
    found = {
        "groups for which too much was computed": sum(one.went_on for one in seen),
        "groups that left cells": sum(one.leaked_cells > 0 for one in seen),
        "groups that left sequences": sum(one.leaked_sequences != 0 for one in seen),
        "groups that were not over in time": sum(one.late for one in seen),
        "other answer than before": int(not same_answer),
    }
    return [f"{count} {what}" for what, count in found.items() if count]
