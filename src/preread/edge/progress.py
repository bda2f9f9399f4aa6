"""How far the prompt of an answer is, for clients that ask: what llama-server's `return_progress` tells.

A prompt's tokens are processed when their KV is in the engine's cache, whether it was computed or came.
"""

import time
from dataclasses import dataclass, replace

from preread.edge.coming import Asking, Coming
from preread.edge.core import Core, Generation
from preread.edge.load import Loaded, LoadSpec
from preread.edge.request import Progress
from preread.values import ContextId


@dataclass(slots=True)
class UnderWay:
    """One answer until its first token: `answer.py` fills this in, and whoever wants to know looks."""

    asking: Asking | None = None
    generation: Generation | None = None

    def progress(self, core: Core) -> Progress | None:
        """How far it is now; None: nothing has been done for it yet."""
        asking, generation = self.asking, self.generation
        if asking is None or generation is None:
            return None
        question, coming, begun_s = asking.question, asking.coming, generation.begun_s
        began_s = begun_s if coming is None else coming.began_s
        if began_s is None:
            return None
        there = question.reuse if coming is None and not generation.alone else 0
        came = there
        if question.known is not None and coming is not None and not generation.alone:
            context, tokens = question.known.entry.context, len(question.known.tokens)
            came = min(question.reuse, _came(coming, context, tokens, core, begun=begun_s is not None))
        time_ms = round((time.monotonic() - began_s) * 1e3)
        cached = there + generation.resumed_tokens
        return Progress(question.prompt_tokens, cached, came + core.computed(generation.id), time_ms)


def _came(coming: Coming, context: ContextId, tokens: int, core: Core, *, begun: bool) -> int:
    """So many tokens' worth of a context is in the cache. Its prompt begins when all is, or while it is streamed."""
    if coming.spec is None or coming.loaded is None:
        return tokens if begun else core.filled(context)
    if coming.loaded.seconds is not None:
        return tokens
    return min(tokens, _in_place(coming.spec, coming.loaded) + core.filled(context))


def _in_place(what: LoadSpec, loaded: Loaded) -> int:
    """Tokens of the cells that are in place; one that has come in half of the layers counts as a half."""
    chunks, all_tokens = what.manifest.chunks, sum(len(place.tokens) for place in what.places)
    there = {(place.chunk, place.group): len(place.tokens) for place in what.places}
    return sum(there.get(cell, 0) for cell in [*loaded.origins]) * chunks[-1][1] // all_tokens


class Telling:
    """What one client is told: at first what was there, then ever more, and all at the end, as from llama-server."""

    def __init__(self) -> None:
        self._told: Progress | None = None

    def next(self, now: Progress | None) -> Progress | None:
        """What to tell; None: nothing that is new."""
        if now is None:
            return None
        told = self._told
        if told is None:
            there = min(now.cache, now.total)
            self._told = replace(now, cache=there, processed=there)
            return self._told
        processed = min(now.processed, told.total)
        if processed <= told.processed:
            return None
        self._told = replace(told, processed=processed, time_ms=now.time_ms)
        return self._told

    def last(self, now: Progress | None) -> list[Progress]:
        """What is left to tell when the first token is there: the prompt is processed."""
        found = [self.next(now)] if self._told is None else []
        if now is not None:
            found.append(self.next(replace(now, processed=now.total)))
        return [one for one in found if one is not None]
