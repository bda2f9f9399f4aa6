"""How the contexts of the last answers came, for the edge's page: where each cell came from, and what was waited for.

Nothing of what was asked or answered is kept: names of contexts, sizes, counts and times. It belongs to the event loop.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from preread.edge.coming import Asking, Coming
from preread.edge.known import Known
from preread.edge.record import Record
from preread.edge.refine import Refinement
from preread.page import kvmap
from preread.page.first_token import first_token_parts
from preread.page.kvmap import KvMap, Origin, Pair
from preread.page.values import Answer
from preread.values import ContextId

MOST: Final = 64
"""Answers that are remembered, of all callers."""

_MOST_CONTEXTS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Past:
    caller: str
    context: ContextId | None
    answer: Answer


@dataclass(eq=False, slots=True)
class _Live:
    number: int
    at: str
    caller: str
    asking: Asking
    record: Record


class History:
    """The last answers, and those under way.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: int) -> None:
        self._layers, self._count = layers, 0
        self._past: deque[_Past] = deque(maxlen=MOST)
        self._live: list[_Live] = []
        self._came: dict[ContextId, KvMap] = {}
        self.used, self.hits = Counter[ContextId](), Counter[ContextId]()
        """Answers that began with a context, and those of them for which nothing had to come."""

    @contextmanager
    def answering(self, caller: str, asking: Asking, record: Record) -> Iterator[None]:
        """An answer to `caller` is under way while this is open."""
        self._count += 1
        live = _Live(self._count, time.strftime("%H:%M:%S"), caller, asking, record)
        self._live.append(live)
        try:
            yield
        finally:
            self._live.remove(live)
            if record.timings.ttft_ms:
                self._end(live)

    def of(self, caller: str, refinement: Refinement | None, most: int) -> tuple[Answer, ...]:
        """The last answers to a caller, the newest first; of others it is told nothing.

        refinement: how far the context that was streamed last has been brought to a better rung.
        """
        live = [(_context(one), self._answer(one, live=True)) for one in reversed(self._live) if one.caller == caller]
        past = [(one.context, one.answer) for one in reversed(self._past) if one.caller == caller]
        found = [*live, *past][:most]
        answers = [answer for _, answer in found]
        if found and refinement is not None and refinement.context == found[0][0] and answers[0].kv is not None:
            better = kvmap.bettered(answers[0].kv, refinement.rung, refinement.replaced)
            answers[0] = replace(answers[0], kv=better)
        return tuple(answers)

    def _end(self, live: _Live) -> None:
        answer, context, coming = self._answer(live, live=False), _context(live), live.asking.coming
        self._past.append(_Past(live.caller, context, answer))
        if context is None or answer.kv is None:
            return
        self.used[context] += 1
        self.hits[context] += coming is None
        if coming is not None and answer.kv.complete:
            self._came.pop(context, None)
            self._came[context] = answer.kv
        for counted in (self._came, self.used, self.hits):
            while len(counted) > _MOST_CONTEXTS:
                del counted[next(iter(counted))]

    def _answer(self, one: _Live, *, live: bool) -> Answer:
        timings, question, coming = one.record.timings, one.asking.question, one.asking.coming
        begun = timings.ttft_ms > 0
        known = question.known if timings.context is not None else None
        kv = None if known is None else _map(known, coming, self._layers, begun=begun)
        came = None if known is None or coming is not None else self._came.get(known.entry.context)
        here = 0 if known is None or not begun else question.reuse - _computed_tokens(coming, question.reuse)
        return Answer(
            number=one.number,
            at=one.at,
            context=None if known is None else known.entry.name,
            kv=kv,
            before=None if came is None else kvmap.told(came),
            reason=timings.reason,
            question_tokens=question.prompt_tokens - (0 if known is None else question.reuse),
            kept_tokens=max(0, timings.cache_n - here) if begun else 0,
            answer_tokens=timings.predicted_n,
            received_bytes=timings.bytes_received,
            ttft_ms=timings.ttft_ms if begun else None,
            parts=first_token_parts(timings.queue_ms, timings.load_ms, timings.context_ms, timings.ttft_ms),
            tokens_s=timings.predicted_per_second,
            live=live,
        )


def _context(one: _Live) -> ContextId | None:
    known = one.asking.question.known
    return None if known is None else known.entry.context


def _map(known: Known, coming: Coming | None, layers: int, *, begun: bool) -> KvMap:
    """Where the cells of a context came from, as far as is known now. `begun`: the answer has begun."""
    chunks, groups = _shape(known, layers)
    if coming is not None and coming.spec is not None and coming.loaded is not None:
        return kvmap.loaded(coming.loaded.origins, chunks, groups, coming.spec.rung)
    return kvmap.one_origin(_origin(coming, begun=begun), chunks, groups)


def _origin(coming: Coming | None, *, begun: bool) -> Origin | None:
    """Where a context came from that was not loaded; None: it is still on its way, or waited for."""
    if not begun:
        return None
    if coming is None:
        return kvmap.RESIDENT
    return kvmap.MEMORY if coming.reason is None else kvmap.HERE


def _shape(known: Known, layers: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Chunks of tokens and groups of layers; one of each, where nobody said how it is divided."""
    if known.manifest is None:
        return ((0, len(known.tokens)),), ((0, layers),)
    return known.manifest.chunks, tuple(group.layers for group in known.manifest.groups)


def _computed_tokens(coming: Coming | None, reuse: int) -> int:
    """Tokens of a context that were computed here."""
    if coming is None or (coming.loaded is None and coming.reason is None):
        return 0
    return reuse if coming.loaded is None else min(coming.loaded.computed_tokens, reuse)
