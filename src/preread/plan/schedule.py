"""What the engine's next step computes, when many ask at once.

Every request has tokens that are *known*: its prompt, and what was chosen since; of these, so many are *done*, that is,
in the KV cache. A step takes the next few tokens of several requests. Where it reaches the last known one, another is
chosen, so that decoding is nothing but a slice of one token. Contexts that are computed here are slices as well, after
which nothing is chosen.

- Requests whose answers are under way have a token in every step, or in every second one while all of them are of
  callers who have many, and another's prompt is read. Prompts and contexts share what the step has left: few enough
  tokens that those who read along are not kept waiting.
- Callers are served by how few tokens they had so far, each counting alike (Virtual Token Counter; Sheng et al., OSDI
  2024). Who comes back after a pause has saved nothing up.
- A request begins when its context is in the cache, or is none, and cells are free, or can be made so. When cells run
  out, the youngest answer of whoever has most makes way; its tokens are computed again later.
- What a request has had computed is kept when it ends, as long as nothing else needs the cells. The next turn of the
  conversation begins with all of it that it has in common.
- A context comes in layer by layer while its prompt waits in front of each, but only while nobody else has anything to
  compute: such a step holds slices of that context alone, and is given up when others come.

Pure: no clock, no I/O; times are arguments, and never go back. What is said in `Step` is done before the next call.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from preread.plan.residency import Residency
from preread.plan.served import Served
from preread.plan.share import MANY_ANSWERS, SHARED_TOKENS, STEP_TOKENS, pause_for, tokens_beside
from preread.plan.step import Part, Request, Resumed, Step
from preread.plan.step_cost import StepCost

MOST_ANSWERS: Final = 64
"""Requests that are computed at once."""
MOST_DECODED: Final = 96
"""Tokens of a step that are answers' last ones, or guesses of the next: each needs logits."""
ECHO_TOKENS: Final = 16
"""Tokens of a slice all of whose logits are wanted."""
LEAST_KEPT_TOKENS: Final = 16
"""Less of a conversation is not worth a sequence."""
LOADS: Final = 2
"""Contexts that are brought at once: more would share a link and its processors, and each come later."""
MOST_WAIT_S: Final = 600.0
"""Who waited so long is told to come again: no client waits longer, and its answer would be made for nobody."""

_GROWTH_CELLS: Final = 64
"""Cells are claimed ahead in such steps, as an answer grows."""
_PATIENCE_S: Final = 5.0
"""Who has waited so long for cells lets nobody by who came later."""


@dataclass(slots=True)
class _Job:
    """A request under way, or a stretch of a context that is computed (`of`: which).

    It has `claimed` cells of its own, and `shared` ones of the conversation that it resumed.
    """

    request: Request
    order: int
    arrived_s: float
    known: int
    done: int = 0
    claimed: int = 0
    resumed: str | None = None
    shared: int = 0
    running: bool = False
    answered: bool = False
    forgotten: bool = False
    drafts: int = 0
    of: str | None = None

    @property
    def left(self) -> int:
        return self.known - self.done

    @property
    def decodes(self) -> bool:
        return self.answered and self.left == 1


@dataclass(slots=True)
class _Out:
    """A step that is being made; `ranks`: who makes way first, until somebody begins or does."""

    stop: list[int] = field(default_factory=list)
    evict: list[str] = field(default_factory=list)
    bring: list[str] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)
    refuse: list[int] = field(default_factory=list)
    begin: list[int] = field(default_factory=list)
    resume: list[Resumed] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    ranks: list[tuple[int, _Job]] | None = None


class Schedule:
    """The state of one engine: who waits, who computes, who has which cells.

    Args:
        residency: of an empty cache.
        cost: what steps take, as far as is known.
        most_answers: requests that are computed at once.
        keep_s: for so long conversations are kept at most.
        most_gated: prompts that are computed at once behind the gate.
    """

    def __init__(
        self,
        residency: Residency,
        cost: StepCost,
        most_answers: int = MOST_ANSWERS,
        keep_s: float = 0.0,
        most_gated: int = MOST_ANSWERS,
    ) -> None:
        self.residency, self.cost, self._most_answers, self._keep_s = residency, cost, most_answers, keep_s
        self._most_gated = most_gated
        self._jobs: dict[int, _Job] = {}
        self._fills: dict[int, _Job] = {}
        self._served = Served()
        self._kept_s: dict[str, float] = {}
        self._dropped: list[str] = []
        self._coming: dict[str, bool] = {}  # and whether its prompt may be computed behind the gate
        self._shut: set[str] = set()  # whose prompt may not any more
        self._spare: dict[str, int] = {}  # cells besides a context's own, while it is computed layer by layer
        self._count, self._paused = 0, False

    # What happens

    def arrive(self, request: Request, now_s: float) -> None:
        """Somebody asks."""
        self._count += 1
        self._served.come(request.caller, {job.request.caller for job in self._jobs.values()})
        self._jobs[request.id] = _Job(request, self._count, now_s, request.prompt_tokens)
        if request.context is not None:
            self.residency.used(request.context, now_s, guest=request.guest)

    def leave(self, id: int) -> None:
        """Whoever asked is gone, or has what was wanted: what the request had in the cache is free by the next step."""
        job = self._jobs.pop(id, None)
        if job is not None and job.running:
            self._release(job)

    def end(self, id: int, key: str, now_s: float) -> int | None:
        """As `leave`, but what was computed is kept under this key, if it is to be.

        Returns:
            How many tokens of it are; None: the request is gone already.
        """
        job = self._jobs.get(id)
        if job is None:
            return None
        if not job.running or not self._stays(job):
            self.leave(id)
            return 0
        resumed, shared = job.resumed, job.shared
        self.leave(id)
        if resumed is not None and shared == self.residency.sizes[resumed] and not self.residency.in_use(resumed):
            self._drop(resumed)  # all of it is part of this one
        victims = self.residency.victims(job.done, now_s, guest=True, entering=True)
        if victims is None:
            return 0
        for victim in victims:
            self._drop(victim)
        self.residency.keep(key, job.done, self.cost.token_s * job.done, now_s, job.request.caller)
        self._kept_s[key] = math.inf if job.request.stem else now_s
        return job.done

    def _stays(self, job: _Job) -> bool:
        """Whether what was computed for a request is to stay when it ends."""
        if job.forgotten:
            return False
        if job.request.family is not None:
            return job.request.stem
        return job.done >= LEAST_KEPT_TOKENS and self.keeps

    def propose(self, id: int, drafts: int) -> None:
        """So many of an answer's next tokens are guessed: they may go into its next step."""
        job = self._jobs.get(id)
        if job is not None:
            job.drafts = drafts

    def drop(self, key: str) -> None:
        """A conversation is not to be kept any more: it leaves as soon as no request computes with it."""
        if key in self._kept_s:
            self._kept_s[key] = -math.inf

    def forget(self, caller: str) -> None:
        """Nothing of a caller's requests that are here by now is to be kept when they end."""
        for job in self._jobs.values():
            job.forgotten |= job.request.caller == caller

    def clear(self) -> list[str]:
        """Nobody asks for anything: everything leaves the cache, which is told, and nothing else is to be done."""
        keys, self._dropped = [*self.residency.sizes, *self._dropped], []
        for key in keys:
            self._kept_s.pop(key, None)
            self.residency.leave(key)
        return keys

    def fill(self, id: int, context: str, tokens: int, now_s: float) -> None:
        """So many tokens of a context that is being brought are to be computed here, under this id."""
        asking = min(self._asking(context), key=lambda job: job.order, default=None)
        caller = "" if asking is None else asking.request.caller
        self._count += 1
        request = Request(id, caller, tokens, 0, context)
        self._fills[id] = _Job(request, self._count, now_s, tokens, running=True, of=context)

    def spare(self, context: str, cells: int, now_s: float) -> bool:
        """Keep so many cells besides a context's own until it is ready or lost; False: there are none.

        Only what nobody has asked for by name makes room: the context comes without them as well.
        """
        lacking = cells - self._spare.get(context, 0)
        victims = self.residency.victims(lacking, now_s, guest=True)
        if lacking > 0 and victims is not None:
            for victim in victims:
                self._drop(victim)
            self.residency.claim(lacking)
            self._spare[context] = cells
        return victims is not None

    def drop_fill(self, id: int) -> None:
        """They are not wanted any more."""
        self._fills.pop(id, None)

    def answerable(self, context: str, *, now: bool = True) -> None:
        """The prompt may be computed behind the gate of a context that is coming, or may not any more."""
        if context in self._coming:
            self._coming[context] = now
            self._shut |= set() if now else {context}

    def ready(self, context: str) -> None:
        """All of a context is in its cells."""
        self._coming.pop(context, None)
        self.residency.claim(-self._spare.pop(context, 0))
        self.residency.complete(context)

    def lost(self, context: str) -> None:
        """A context that was coming does not, or is not wanted; its cells are free."""
        self._coming.pop(context, None)
        self.residency.claim(-self._spare.pop(context, 0))
        self._shut.add(context)
        for id, job in [*self._fills.items()]:
            if job.of == context:
                del self._fills[id]
        self.residency.leave(context)

    def stepped(self, step: Step, chosen: Sequence[int], seconds: float | None) -> None:
        """A step was computed.

        Args:
            step: that one.
            chosen: for each part, how many tokens were chosen after it.
            seconds: what it took; None: it waited for something else as well.
        """
        if seconds is not None and step.tokens <= SHARED_TOKENS:
            self.cost = self.cost.took(step.tokens, seconds)
        for part, count in zip(step.parts, chosen, strict=True):
            job = self._jobs.get(part.id) or self._fills.get(part.id)
            if job is None:
                continue
            self._served.add(job.request.caller, part.tokens)
            job.done += part.tokens
            job.drafts = 0
            if count:
                job.done, job.known, job.answered = job.known + count - 1, job.known + count, True
            elif job.of is not None and not job.left:
                del self._fills[part.id]

    # What is asked

    def computed(self, id: int) -> int:
        """How many tokens of a request's prompt are computed, those included that it found."""
        job = self._jobs.get(id)
        return 0 if job is None else min(job.done, job.request.prompt_tokens)

    def filled(self, context: str) -> int:
        """How many tokens of a context are computed, of those that are asked for at the moment."""
        return sum(job.done for job in self._fills.values() if job.of == context)

    @property
    def waiting(self) -> int:
        """Requests that nothing is computed for yet."""
        return sum(not job.running for job in self._jobs.values())

    @property
    def running(self) -> int:
        """Requests that have a sequence."""
        return sum(job.running for job in self._jobs.values())

    @property
    def loading(self) -> int:
        """Contexts that are being brought."""
        return len(self._coming)

    @property
    def sequences(self) -> int:
        """How many answers, contexts and conversations may have in all."""
        return self._most_answers + self.residency.most

    @property
    def keeps(self) -> bool:
        """Whether what was computed for a request is kept at all when it ends."""
        return self._keep_s > 0

    @property
    def idle(self) -> bool:
        """Whether nobody asks for anything."""
        return not self._jobs and not self._fills and not self._coming

    def fills(self, context: str) -> list[int]:
        """The stretches of a context that are being computed."""
        return [id for id, job in self._fills.items() if job.of == context]

    def others_wait(self, step: Step) -> bool:
        """Whether a step behind a gate keeps others from what they could compute."""
        held = {part.id for part in step.parts}
        return any(
            job.request.id not in held and self._may_compute(job)
            for job in (*self._jobs.values(), *self._fills.values())
        )

    def only_for(self, step: Step, ids: Iterable[int]) -> bool:
        """Whether a step computes nothing but what is asked for under these ids, or by nobody any more."""
        wanted = {part.id for part in step.parts if part.id in self._jobs or part.id in self._fills}
        return wanted <= {*ids}

    # What to do

    def next(self, now_s: float) -> Step:
        """The next step. An empty one: nothing is to be done until more happens."""
        for key, at_s in [*self._kept_s.items()]:
            if now_s - at_s > self._keep_s and not self.residency.in_use(key):
                self._drop(key)
        out = _Out(evict=self._dropped)
        self._dropped = []
        self._refuse(now_s, out)
        self._shut_out(out)
        self._grow(now_s, out)
        for job in self._who_waits():
            if not self._begin(job, now_s, out) and now_s - job.arrived_s > _PATIENCE_S:
                break
            out.kept += [] if job.request.context is None else [job.request.context]
        parts, gated = self._parts(), None
        if not parts:
            parts, gated = self._behind_gate(now_s, out)
        return Step(
            stop=tuple(out.stop),
            evict=tuple(out.evict),
            bring=tuple(out.bring),
            alone=tuple(out.alone),
            refuse=tuple(out.refuse),
            begin=tuple(out.begin),
            resume=tuple(out.resume),
            parts=tuple(parts),
            gated=gated,
        )

    def _refuse(self, now_s: float, out: _Out) -> None:
        for job in [*self._jobs.values()]:
            if not job.running and not job.answered and now_s - job.arrived_s > MOST_WAIT_S:
                del self._jobs[job.request.id]
                out.refuse.append(job.request.id)

    def _shut_out(self, out: _Out) -> None:
        """Who began behind a gate that was shut begins again: the context's cells may be others by then."""
        for job in self._jobs.values():
            if job.running and job.request.context in self._shut:
                self._preempt(job, out)
        self._shut = set()

    def _grow(self, now_s: float, out: _Out) -> None:
        """See that who computes has cells for its next tokens."""
        for job in sorted(self._jobs.values(), key=lambda job: job.order):
            while job.running and job.known - job.shared > job.claimed:
                cells = self._ahead(job) - job.shared - job.claimed
                if self._room(cells, now_s, out):
                    self._claim(job, cells)
                else:
                    self._preempt(self._youngest_first(out)[0][1], out)

    def _begin(self, job: _Job, now_s: float, out: _Out) -> bool:
        """Have a request begin if it can, or its context brought if it has to be; False: there is no room for it."""
        if self._outgrown(job):
            self._go_alone(job, out)
        request = job.request
        if request.context is not None and not self.residency.is_ready(request.context):
            return self._bring(job, now_s, out)
        return self._start(job, now_s, out, request.caller)

    def _start(self, job: _Job, now_s: float, out: _Out, caller: str | None = None) -> bool:
        """Give a request what it needs to compute, if that is to be had, or others make way for its caller."""
        request, cells = job.request, self._ahead(job)
        spared = () if request.context is None else (request.context,)
        least = max(0, len(self._youngest_first(out)) + 1 - self._most_answers)
        kept = request.kept if request.kept is not None and self.residency.is_ready(request.kept) else None
        fewer = cells - request.kept_tokens
        if kept is not None and self._room(fewer, now_s, out, (*spared, kept), caller=caller, least=least):
            self._resume(job, kept, out)
        elif not self._room(cells, now_s, out, spared, caller=caller, least=least):
            return False
        self._claim(job, cells - job.shared)
        job.running, out.ranks = True, None
        if request.context is not None:
            self.residency.join(request.context)
        out.begin.append(request.id)
        return True

    def _resume(self, job: _Job, kept: str, out: _Out) -> None:
        """Have a request begin with what is kept of its conversation."""
        job.resumed, job.done, job.shared = kept, job.request.kept_tokens, job.request.kept_tokens
        self.residency.join(kept)
        out.kept.append(kept)
        out.resume.append(Resumed(job.request.id, kept, job.done))

    def _bring(self, job: _Job, now_s: float, out: _Out) -> bool:
        """Have a request's context brought, if not too many are on their way; False: there is no room for it."""
        request = job.request
        assert request.context is not None
        if request.context in self._coming or len(self._coming) >= LOADS:
            return True
        guest = all(each.request.guest for each in self._asking(request.context))
        caller = None if guest else request.caller
        if self._room(request.context_tokens, now_s, out, guest=guest, entering=True, caller=caller):
            self.residency.enter(
                request.context, request.context_tokens, request.cost_s, guest=guest, pinned=request.pinned
            )
            self.residency.used(request.context, now_s, guest=guest)
            self._coming[request.context] = False
            out.bring.append(request.context)
            return True
        if not request.guest:
            return False
        self._go_alone(job, out)
        return self._begin(job, now_s, out)

    def _go_alone(self, job: _Job, out: _Out) -> None:
        job.known += job.request.reuse_tokens
        job.request = job.request.alone()
        out.alone.append(job.request.id)

    def _outgrown(self, job: _Job) -> bool:
        """Whether a request has no room beside all of its context any more: it may use but the beginning of that."""
        return job.request.context_tokens + job.known > self.residency.cells

    def _ahead(self, job: _Job) -> int:
        """Cells of a request's own, with some for the tokens to come as far as the cache has room for them at all."""
        cells = job.known + min(_GROWTH_CELLS, job.request.most_tokens)
        return max(job.known, min(cells, self.residency.cells - job.request.context_tokens))

    def _room(
        self,
        cells: int,
        now_s: float,
        out: _Out,
        spared: Iterable[str] = (),
        *,
        guest: bool = False,
        entering: bool = False,
        caller: str | None = None,
        least: int = 0,
    ) -> bool:
        """Make room for so many cells, if possible: as many answers make way for `caller` as have to, or `least`."""

        def victims(freed: int) -> list[str] | None:
            lacking = cells - freed
            return self.residency.victims(lacking, now_s, (*spared, *out.kept), guest=guest, entering=entering)

        way = [] if caller is None or (not least and victims(0) is not None) else self._making_way(caller, out)
        freed = [0, *accumulate(job.claimed for job in way)]
        count = bisect_left(freed, True, least, key=lambda cells: victims(cells) is not None)
        if count >= len(freed):
            return False
        for key in victims(freed[count]) or ():
            self._kept_s.pop(key, None)
            self.residency.leave(key)
            out.evict.append(key)
        for job in way[:count]:
            self._preempt(job, out)
        return True

    def _drop(self, key: str) -> None:
        """A conversation leaves the cache, or a guest does, with which no request computes: its cells are free."""
        self._kept_s.pop(key, None)
        self.residency.leave(key)
        self._dropped.append(key)

    def _making_way(self, caller: str, out: _Out) -> list[_Job]:
        """Answers that make way for a caller who has none, first to last: of callers who keep one."""
        running = self._youngest_first(out)
        has_one = any(job.request.caller == caller for _, job in running)
        return [] if has_one else [job for nth, job in running if nth > 1]

    def _youngest_first(self, out: _Out) -> list[tuple[int, _Job]]:
        """Answers under way as they make way, always the youngest of whoever has most then; and how many these are."""
        if out.ranks is None:
            counts, ranks = Counter[str](), []
            for job in sorted((job for job in self._jobs.values() if job.running), key=lambda job: job.order):
                counts[job.request.caller] += 1
                ranks.append((counts[job.request.caller], job))
            out.ranks = sorted(ranks, key=lambda pair: (-pair[0], -pair[1].order))
        return out.ranks

    def _preempt(self, job: _Job, out: _Out) -> None:
        self._release(job)
        job.running, job.done, out.ranks = False, 0, None
        if job.request.id in out.begin:
            out.begin.remove(job.request.id)
            out.resume = [one for one in out.resume if one.id != job.request.id]
        else:
            out.stop.append(job.request.id)

    def _claim(self, job: _Job, cells: int) -> None:
        self.residency.claim(cells)
        job.claimed += cells

    def _release(self, job: _Job) -> None:
        self.residency.claim(-job.claimed)
        job.claimed = job.shared = 0
        if job.resumed is not None:
            self.residency.part(job.resumed)
            job.resumed = None
        if job.request.context is not None:
            self.residency.part(job.request.context)

    # Who is served

    def _in_turn(self, jobs: Iterable[_Job]) -> list[_Job]:
        """Callers who had least first, and of each who came first."""
        return sorted(jobs, key=lambda job: (self._served.of(job.request.caller), job.order))

    def _who_waits(self) -> list[_Job]:
        """In turn. Who had a context brought has had its turn: else whoever comes first now might displace that."""
        waiting, new = [job for job in self._jobs.values() if not job.running], self.residency.new_keys
        return sorted(self._in_turn(waiting), key=lambda job: job.request.context not in new)

    def _asking(self, context: str) -> Iterable[_Job]:
        return (job for job in self._jobs.values() if job.request.context == context)

    def _may_compute(self, job: _Job) -> bool:
        """Whether a request, or a context, has something to compute that need not wait."""
        context = job.request.context
        return job.of is not None or context is None or self.residency.is_ready(context)

    def _parts(self) -> list[Part]:
        able = (job for job in (*self._jobs.values(), *self._fills.values()) if self._may_compute(job))
        running = [job for job in able if job.running and job.left > 0]
        answers = [job for job in self._in_turn(running) if job.decodes]
        counts = Counter(job.request.caller for job in answers)
        others = sorted(
            (job for job in running if not job.decodes),
            key=lambda job: (
                counts[job.request.caller] >= MANY_ANSWERS,
                self._served.of(job.request.caller),
                job.of is not None,
                job.order,
            ),
        )
        # Every second time: nobody's answer stands still for long.
        self._paused = not self._paused and bool(others) and pause_for(others[0].request.caller, counts)
        parts = [] if self._paused else self._decoded(answers)
        waiting = sum(not job.answered for job in self._jobs.values())
        left = tokens_beside(self.cost, sum(part.tokens for part in parts), len(others), waiting)
        for job in others:
            if left <= 0:
                break
            parts.append(self._part(job, left))
            left -= parts[-1].tokens
        return parts

    def _decoded(self, answers: Sequence[_Job]) -> list[Part]:
        """A token of each answer, and its drafts as far as there is room for them."""
        parts, spare = list[Part](), MOST_DECODED - len(answers)
        for job in answers:
            drafts = max(0, min(job.drafts, spare, job.claimed + job.shared - job.known))
            spare -= drafts
            parts.append(Part(job.request.id, 1 + drafts, True))
        return parts

    def _part(self, job: _Job, most: int) -> Part:
        """The next tokens of a prompt or a context."""
        tokens = min(job.left, most, ECHO_TOKENS if job.request.echo and not job.answered else most)
        return Part(job.request.id, tokens, job.of is None and tokens == job.left)

    def _behind_gate(self, now_s: float, out: _Out) -> tuple[list[Part], str | None]:
        """With nothing else to compute: the prompts about one context that is coming, of which nothing is done yet."""
        for context, answerable in self._coming.items():
            parts: list[Part] = []
            for job in self._in_turn(self._asking(context)) if answerable else ():
                left = STEP_TOKENS - sum(part.tokens for part in parts)
                if left <= 0 or len(parts) == self._most_gated or (parts and job.left > left):
                    break
                if (job.running or self._start(job, now_s, out)) and job.left:
                    parts.append(self._part(job, left))
            if parts:
                return parts, context
        return [], None
