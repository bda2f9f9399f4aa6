"""How the timings of one answer come about: noted while it is made."""

import time
from dataclasses import replace
from typing import Any

from preread.edge.coming import Coming
from preread.edge.load import Loaded, LoadSpec
from preread.edge.refine import Refinement
from preread.edge.request import Timings
from preread.edge.understand import Question
from preread.engine.sampling import Sampled


def why_computed(loaded: Loaded) -> str:
    """Why nothing of a load that has ended was streamed. That it was not sooner need not be the link's fault: a short
    context is computed within a round trip."""
    seconds, seen_bytes = loaded.seconds or 0.0, loaded.seen_bytes
    if loaded.failure is not None:
        return str(loaded.failure)
    if not seen_bytes:
        return f"nothing came before it was computed, within {seconds:.1f} s"
    mbps = f" ({seen_bytes * 8e-6 / seconds:.2f} Mbit/s)" if seconds else ""
    return f"computing was sooner: in {seconds:.1f} s {seen_bytes / 1e6:.2f} MB came{mbps}"


class Record:
    """Keeps the timings of one answer to a question that arrived at `arrived_s`, by the monotonic clock."""

    def __init__(self, arrived_s: float) -> None:
        self._arrived = self._last = arrived_s
        self._first: float | None = None
        self.timings = Timings()

    def note(self, **fields: Any) -> None:
        """Set fields of the timings."""
        self.timings = replace(self.timings, **fields)

    def begin(self, question: Question) -> None:
        """It is known what the answer begins with."""
        known = question.known
        self.note(
            context=known.entry.name if known else None,
            context_n=len(known.tokens) if known else 0,
            reason=question.near,
        )
        self._prompt_tokens = question.prompt_tokens

    def begun(self, at_s: float | None) -> None:
        """Something was done for it from then on, of `time.monotonic`."""
        if at_s is not None:
            self.note(queue_ms=max(0.0, at_s - self._arrived) * 1e3)

    def note_coming(self, question: Question, coming: Coming) -> None:
        """The context came while the question waited: from the cloud, or from this machine, or a part from each."""
        if coming.reason is not None:
            self.note(way="computed", reason=coming.reason, context_ms=coming.context_s * 1e3)
        elif coming.spec is None or coming.loaded is None:
            self.note(way="resident", cache_n=question.reuse)
        else:
            self._note_load(question, coming.spec, coming.loaded)

    def _note_load(self, question: Question, what: LoadSpec, loaded: Loaded) -> None:
        computed_n = min(loaded.computed_tokens, question.reuse)
        self.note(
            way="mixed" if loaded.computed_tokens else "streamed",
            rung=what.rung,
            cache_n=question.reuse - computed_n,
            bytes_received=loaded.received_bytes,
            load_ms=(loaded.seconds or 0.0) * 1e3,
            context_ms=loaded.computed_s * 1e3,
        )
        if computed_n == question.reuse:
            self.note(way="computed", rung=None, load_ms=0.0, reason=why_computed(loaded))

    def note_refinement(self, refinement: Refinement | None, question: Question) -> None:
        """How far the context has been brought to a better rung; None: none was."""
        context = None if question.known is None else question.known.entry.context
        if refinement is not None and refinement.context == context:
            self.note(refined_to=refinement.rung, refined_share=refinement.share)

    def token(self, step: Sampled) -> None:
        """A token was generated."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self.note(ttft_ms=(now - self._arrived) * 1e3, prompt_n=self._prompt_tokens - self.timings.cache_n)
        if not step.end:
            self.note(predicted_n=self.timings.predicted_n + 1, predicted_ms=(now - self._first) * 1e3)
