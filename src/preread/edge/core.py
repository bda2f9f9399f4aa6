"""The engine's loop: what `plan/schedule.py` says is done here, step by step, on the engine's own thread.

Whoever asks is in asyncio's thread. The schedule belongs to both, under a lock that nobody holds for longer than a
decision takes; the engine, its cache and all sequences belong to the engine's thread. What else has to be done there is
done between two steps (`call`). Tokens go back through a queue for each request.

It must not decide what is computed, and must not know names of contexts, links or prompts' texts.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from preread.edge.conversations import Conversations
from preread.edge.live import Live
from preread.edge.offload import Blocks
from preread.edge.sequences import Fill, Sequences
from preread.edge.spans import span
from preread.engine.base import Engine, Slice, Tokens
from preread.engine.cache import COMPUTED, Rows
from preread.engine.sampling import Sampled, Sampling
from preread.engine.worker import Worker
from preread.errors import Cancelled, EngineError, Overloaded, PrereadError
from preread.plan.legality import goes_on
from preread.plan.plan import LONGEST_BATCH_TOKENS
from preread.plan.schedule import MOST_WAIT_S, Schedule
from preread.plan.step import Part, Request, Resumed, Step
from preread.values import ContextId, KVBlock, StateBlock

T = TypeVar("T")

_LOOK_S: Final = 5.0
_LOOK_SOON_S: Final = 0.005
_FIRST_TOKEN_S: Final = 0.0003
"""For so long the engine rests when an answer has its first token: while it prepares its next step it has the
interpreter's lock, and asyncio's thread would tell whoever waits 0.4 to 0.6 ms later."""
_log = logging.getLogger(__name__)


class Bringer(Protocol):
    """Told, in asyncio's thread, what becomes of contexts, and what computing takes."""

    def bring(self, context: ContextId) -> None:
        """It has room in the cache, and somebody waits for it."""
        ...

    def evicted(self, context: ContextId, blocks: Blocks) -> None:
        """It has left the cache; all that it had, if `keeps` wanted it."""
        ...

    def keeps(self, context: ContextId, size_bytes: int) -> bool:
        """Whether so much KV of it is wanted when it leaves. In the engine's thread."""
        ...

    def observed(self, position: int, tokens: int, seconds: float) -> None:
        """So many tokens from a position on were computed by themselves, and took so long."""
        ...


@dataclass(frozen=True, slots=True)
class Stats:
    """What the loop counts.

    Attributes:
        running, waiting: requests that are computed, and that are not yet.
        loading: contexts on their way.
        free_sequences: that nothing has.
        cells: by what has them: contexts, conversations, requests, nothing.
        kv_bytes: memory of the cache.
        steps: that were computed.
        tokens: that were computed in them: of prompts, of contexts, of answers, and guesses that were wrong.
    """

    running: int
    waiting: int
    loading: int
    free_sequences: int
    cells: dict[str, int]
    kv_bytes: int
    steps: int
    tokens: dict[str, int]


@dataclass(slots=True)
class Generation:
    """One answer under way: `steps` are put in by the engine, and end with None or an error.

    Attributes:
        id: of the request.
        begun_s: when it got its sequence, of `time.monotonic`; None: it has not.
        alone: it goes on without the context that it was to begin with.
        resumed_tokens: so many tokens of its prompt were in the cache, from the conversation so far.
    """

    id: int
    steps: asyncio.Queue[Sequence[Sampled] | BaseException | None]
    begun_s: float | None = None
    alone: bool = False
    resumed_tokens: int = 0


class Core:
    """One engine, many requests.

    Args:
        engine: opened with a cache that many share.
        worker: its thread, which runs `run` until `close`.
        plan: the schedule, of an empty cache.
        drafts: guess the next tokens of answers, where that pays.
    """

    def __init__(self, engine: Engine, worker: Worker, plan: Schedule, *, drafts: bool = True) -> None:
        self._engine, self._worker, self._plan, self._drafts = engine, worker, plan, drafts
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._sequences, self._conversations = Sequences(engine), Conversations()
        self._live: dict[int, Live] = {}
        self._generations: dict[int, Generation] = {}
        self._fills: dict[int, Fill] = {}
        self._count, self._pauses, self._closing = 0, 0, False
        self._current, self._give_up = Step(), False
        self._bringer: Bringer | None = None
        self._usual_s = 1.0
        self._steps, self._tokens = 0, {"prompt": 0, "context": 0, "answer": 0, "wrong_guess": 0}
        self._running = asyncio.ensure_future(worker.run(self._run))

    def begin(self, bringer: Bringer) -> None:
        """From now on contexts are brought by `bringer`."""
        self._bringer = bringer

    async def close(self) -> None:
        """End the loop, once nobody asks for anything."""
        while not self.idle:
            await asyncio.sleep(_LOOK_SOON_S)
        with self._lock:
            self._closing = True
            self._lock.notify()
        await asyncio.wait([self._running])

    @property
    def idle(self) -> bool:
        """Whether nobody asks for anything, and no context is on its way."""
        with self._lock:
            return self._plan.idle and not self._live

    def stats(self) -> Stats:
        """What is counted, now."""
        with self._lock:
            plan, sizes = self._plan, self._plan.residency.sizes
            kept = sum(size for key, size in sizes.items() if key in self._conversations)
            cells = {
                "contexts": sum(sizes.values()) - kept,
                "conversations": kept,
                "requests": plan.residency.claimed_cells,
                "free": plan.residency.free_cells,
            }
            running, waiting, loading = plan.running, plan.waiting, plan.loading
        engine = self._engine
        free, kv_bytes = self._sequences.free, engine.cells * engine.spec.token_bytes
        return Stats(running, waiting, loading, free, cells, kv_bytes, self._steps, dict(self._tokens))

    @property
    def wait_s(self) -> float:
        """How long who asks now will wait until something is computed for it, as a guess."""
        with self._lock:
            waiting, running = self._plan.waiting, self._plan.running
        return self._usual_s * waiting / max(1, running)

    # Requests

    @asynccontextmanager
    async def generation(
        self, request: Request, prompt: Tokens, context_tokens: Tokens, sampling: Sampling
    ) -> AsyncGenerator[Generation, None]:
        """A request's answer, while the context is open. `request.id` is set here.

        Args:
            request: what is asked for.
            prompt: its tokens behind the context, `context_tokens` those that it begins with.
            sampling: how tokens are chosen.
        """
        self._count += 1
        began_s = time.monotonic()
        generation = Generation(self._count, asyncio.Queue())
        request = replace(request, id=generation.id)
        live = Live(request, prompt, context_tokens, sampling, len(prompt))
        with self._lock:
            self._post(lambda: self._arrive(live))
            self._live[request.id], self._generations[request.id] = live, generation
        try:
            yield generation
        finally:
            with self._changing(leaving=generation.id):
                kept = self._plan.end(generation.id, _key(generation.id), time.monotonic())
                self._calls.append(lambda: self._leave(generation.id, kept or 0))
            self._usual_s += (time.monotonic() - began_s - self._usual_s) / 8

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked for while this is open comes to the schedule at once. Open it for as long as that takes."""
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._changing():
                self._pauses -= 1

    @contextmanager
    def family(self, name: str) -> Iterator[None]:
        """When this is left, nothing of the stems of a family is kept any more."""

        try:
            yield
        finally:
            with self._changing():
                self._calls.append(lambda: self._disown(name))  # behind what its stems leave

    def computed(self, id: int) -> int:
        """How many tokens of a generation's prompt are computed, those included that were in the cache."""
        with self._lock:
            return self._plan.computed(id)

    def filled(self, context: ContextId) -> int:
        """How many tokens of a context are computed, of those that `compute` was last asked for."""
        with self._lock:
            return self._plan.filled(context)

    @property
    def keeps(self) -> bool:
        """Whether conversations are kept."""
        return self._plan.keeps

    def said(self, caller: str, context: ContextId | None, position: int) -> list[Tokens]:
        """What is kept of somebody's conversations behind the first `position` tokens of a context, or behind none."""
        return self._conversations.said(caller, context, position)

    async def drop_conversations(self, caller: str) -> None:
        """Keep nothing of what somebody has said: neither what is kept, nor what is being answered."""

        def drop() -> None:
            with self._lock:
                self._plan.forget(caller)
                self._disown(caller)

        await self.call(drop)  # after what was left a moment ago has come to be kept

    # Contexts

    def present(self, context: ContextId) -> bool:
        """Whether a context has cells, all of it or not."""
        with self._lock:
            return context in self._plan.residency

    def residents(self) -> list[ContextId]:
        """The contexts of which all is in the cache."""
        with self._lock:
            return [ContextId(key) for key in self._plan.residency.ready_keys if key not in self._conversations]

    def takes_guest(self, tokens: int) -> bool:
        """Whether a context of so many tokens would have room without that one makes way that was asked for by name."""
        with self._lock:
            return self._plan.residency.victims(tokens, time.monotonic(), guest=True) is not None

    async def reserve(self, context: ContextId) -> Rows:
        """Rows for a context that is being brought.

        Raises:
            EngineError: llama.cpp gave none.
        """
        return await self.call(lambda: self._sequences.reserve(context))

    def inject(self, rows: Rows, block: KVBlock | StateBlock) -> None:
        """Write KV, or states, of a context that is being brought. Thread-safe for different rows, or layers.

        Raises:
            CorruptData: it has numbers that are none.
            EngineError: it is not of these rows, or they are being computed.
        """
        if isinstance(block, StateBlock):
            self._engine.cache.inject_state(rows, block)
            return
        if (rows.cells[block.tokens.start : block.tokens.stop] == COMPUTED).any():
            raise EngineError("rows were to be written that are being computed: this is a bug in preread")
        self._engine.cache.inject(rows, block)

    async def export(self, context: ContextId) -> KVBlock:
        """A copy of all KV of a context that is in the cache.

        Raises:
            KeyError: it is not.
            EngineError: this model's cache cannot be read.
        """
        return await self.call(lambda: self._sequences.export(context))

    async def rewrite(self, context: ContextId, rows: Rows, block: KVBlock) -> bool:
        """Write better KV of a context that answers are computed with, between two steps; False: it has gone.

        Raises:
            CorruptData: as `inject` does.
        """

        def write() -> bool:
            place = self._sequences.place(context)
            if place is None or place.rows is not rows:
                return False
            self._engine.cache.inject(rows, block)
            return True

        return await self.call(write)

    async def restart(self, context: ContextId) -> None:
        """Forget what was loaded of a context: it is going to be computed from its start."""
        self.answerable(context, now=False)

        def forget() -> None:  # and what began just when whoever wanted it was stopped
            self._sequences.clear(context)
            self._give_up_fills([id for id, fill in self._fills.items() if fill.context == context])

        await self.call(forget)

    async def compute(self, context: ContextId, tokens: Tokens, start: int, layers: int | None = None) -> float | None:
        """Compute tokens of a context that is being brought, of which all earlier ones are in place.

        layers: only the first so many layers of them, of whose earlier tokens these are in place; None: all.

        Returns:
            Seconds that it took; None: nothing is computed, since the cache has no room for that beside the context's
            rows, or, of some layers only, sums would have another order than where all is computed.

        Raises:
            Cancelled: `interrupt` came before the end; nothing of it stays.
            EngineError: llama.cpp failed.
        """
        self._count += 1
        id, done, began_s = self._count, Future[bool](), time.monotonic()

        def begin() -> bool:
            at_s, most_tokens = time.monotonic(), max(LONGEST_BATCH_TOKENS, len(tokens))
            aside = self._sequences.aside(context, layers)
            spare_cells = 0 if aside is None else self._sequences.spare_cells(context, most_tokens)
            able = aside is None or (self._engine.runner.splits_layers and self._has_spare_sequence)
            with self._lock:
                room = able and self._plan.spare(context, spare_cells, at_s)
            if not room:
                return False
            fill = self._sequences.fill(context, tokens, start, done, layers)
            if fill is None:
                return False
            self._fills[id] = fill
            with self._lock:
                self._plan.fill(id, context, len(tokens), at_s)
            return True

        if not await self.call(begin):
            return None
        waiting = asyncio.wrap_future(done)
        try:
            with span("prefill", tokens=len(tokens)):
                filled = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            waiting.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody asks any more
            self.interrupt(context)
            raise
        return time.monotonic() - began_s if filled else None

    def interrupt(self, context: ContextId) -> None:
        """Give up what is being computed of a context."""

        def give_up() -> None:  # also what is to begin before this, and had not when it was asked for
            self._give_up_fills([id for id, fill in self._fills.items() if fill.context == context])

        with self._lock:
            if self._current.parts and self._plan.only_for(self._current, self._plan.fills(context)):
                self._cancel()
        self._post(give_up)

    def open(self, context: ContextId, layers: int) -> None:
        """The first `layers` layers of a context are in place."""
        with self._lock:
            place = self._sequences.place(context)
            if place is None:
                return
            place.open_layers = max(place.open_layers, layers)
            if self._current.gated == context:
                self._engine.runner.open(place.open_layers)

    def answerable(self, context: ContextId, *, now: bool = True) -> None:
        """Prompts about a context that is being brought may be computed as its layers open, or may not any more."""
        with self._lock:
            self._plan.answerable(context, now=now)
            if not now and self._current.gated == context:
                self._cancel()
            self._lock.notify()

    def ready(self, context: ContextId) -> None:
        """All of a context is in its rows."""
        with self._changing():
            self._calls.append(lambda: self._sequences.settle(context))
            self._plan.ready(context)

    def lost(self, context: ContextId, error: PrereadError | None = None) -> None:
        """A context is not brought any more. Whoever waits for it gets the error."""

        def lose() -> None:
            for live in [*self._live.values()]:
                if error is not None and live.request.context == context:
                    self._end(live, error)
            with self._lock:
                self._plan.lost(context)
            self._drop(context)

        self._post(lose)

    async def forget(self) -> None:
        """Empty the cache, once nobody asks for anything; nothing of it is kept."""
        while not await self.call(self._forget):
            await asyncio.sleep(_LOOK_SOON_S)

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns, on the engine's thread, between two steps."""
        done: Future[T] = Future()

        def call() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as error:
                    done.set_exception(error)

        self._post(call)
        return await asyncio.wrap_future(done)

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None, None]:
        """No step begins while this is open, and none is under way."""
        with self.together():
            await self.call(lambda: None)
            yield

    # The other thread's end

    @contextmanager
    def _changing(self, leaving: int | None = None) -> Iterator[None]:
        """Change the schedule, and see what that means for the step that is under way."""
        with self._lock:
            yield
            step = self._current
            if step.gated is not None and self._plan.others_wait(step):
                self._cancel()
            if leaving is not None and step.parts and self._plan.only_for(step, (leaving,)):
                self._cancel()
            self._lock.notify()

    def _cancel(self) -> None:
        self._give_up = True
        self._engine.runner.cancel()

    def _post(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._closing:
                raise EngineError("the engine is being closed")
            self._calls.append(call)
            if self._current.gated is not None:
                self._cancel()  # it waits for a link: that must keep nobody
            self._lock.notify()

    # The engine's thread

    def _run(self) -> None:
        while True:
            while self._calls:
                self._called(self._calls.popleft())
            with self._lock:
                if self._calls:
                    continue
                if self._closing:
                    return
                step = Step() if self._pauses else self._plan.next(time.monotonic())
                if step == Step():
                    self._lock.wait(_LOOK_S)
                    continue
                self._current, self._give_up = step, False
            try:
                self._perform(step)
            except Exception as error:
                _log.exception("a step failed in a way that nobody foresaw")
                self._failed(step, EngineError(f"the engine failed: {error}"))
            finally:
                with self._lock:
                    self._current = Step()

    def _called(self, call: Callable[[], None]) -> None:
        """What is done between two steps ends no loop."""
        try:
            call()
        except Exception:
            _log.exception("what was to be done between two steps failed in a way that nobody foresaw")

    def _perform(self, step: Step) -> None:
        """One step as it is said: cells are given back first, then given out, and then something is computed."""
        for id in step.stop:
            self._stop(id)
        for key in step.evict:
            self._evict(key)
        for context in step.bring:
            self._bring(ContextId(context))
        for id in step.alone:
            self._live[id].go_alone()
            self._generations[id].alone = True
        for id in step.refuse:
            message = f"this request has waited for {MOST_WAIT_S:g} s, and others are still before it"
            self._end(self._live[id], Overloaded(message, retry_after_s=MOST_WAIT_S))
        for id in step.begin:
            try:
                self._begin(id)
            except Exception as error:
                _log.exception("a request could not begin")
                self._end(self._live[id], EngineError(f"the engine could not begin an answer: {error}"))
        for resumed in step.resume:
            if resumed.id in self._live:
                self._resume(resumed)
        for id in step.begin:  # now it is known as well what was there already
            if id in self._live:
                self._tell(_begun, self._generations[id], time.monotonic())
        parts = tuple(part for part in step.parts if part.id in self._live or part.id in self._fills)
        if parts:
            self._compute(replace(step, parts=parts))

    def _compute(self, step: Step) -> None:
        slices = [(self._fills.get(part.id) or self._live[part.id]).slice(part) for part in step.parts]
        began_s = time.monotonic()
        try:
            chosen = self._ran(slices, step.gated)
        except Cancelled:
            return
        except EngineError as error:
            self._failed(step, error)
            return
        partly = len(slices) == 1 and slices[0].layers is not None
        seconds = None if step.gated is not None or partly else time.monotonic() - began_s
        with self._lock:
            self._plan.stepped(step, [sum(not one.given for one in steps) for steps in chosen], seconds)
        self._hand_out(step, chosen)
        if seconds is not None and len(step.parts) == 1:
            assert self._bringer is not None
            self._tell(self._bringer.observed, slices[0].position, step.tokens, seconds)

    def _ran(self, slices: list[Slice], gated: str | None) -> list[list[Sampled]]:
        runner, place = self._engine.runner, None if gated is None else self._sequences.place(ContextId(gated))
        runner.arm(None if place is None else place.open_layers)
        with self._lock:
            if place is not None:
                runner.open(place.open_layers)  # more may be by now
            if self._give_up:
                runner.cancel()
        return runner.run(slices)

    def _hand_out(self, step: Step, chosen: list[list[Sampled]]) -> None:
        """Give everybody the tokens of a step."""
        puts: list[tuple[Generation, list[Sampled]]] = []
        self._steps, begins = self._steps + 1, False
        for part, steps in zip(step.parts, chosen, strict=True):
            fill, live = self._fills.get(part.id), self._live.get(part.id)
            if fill is not None:
                self._tokens["context"] += part.tokens
                if not self._sequences.proceed(fill, part.tokens, step.tokens - part.tokens):
                    self._in_vain(part.id, fill)
                elif fill.computed == len(fill.tokens):
                    self._filled(part.id, fill)
            if live is None:
                continue
            chosen_here = _chosen(steps)
            self._count_tokens(part, live, len(chosen_here))
            begins = begins or (bool(chosen_here) and live.unanswered)
            live.computed(part, chosen_here)
            puts.append((self._generations[part.id], steps))
        self._tell(_put, puts)
        if begins:
            time.sleep(_FIRST_TOKEN_S)
        for part, steps in zip(step.parts, chosen, strict=True):
            live = self._live.get(part.id)
            if live is None or not part.chooses:
                continue
            if live.is_over(steps, self._engine.spec.window_tokens):
                self._end(live, None)
            elif self._drafts:  # after the tokens went out: the first of a long prompt's guesses takes milliseconds
                self._guess(live, [one for one in steps if not one.given], len(step.parts) - 1)

    def _count_tokens(self, part: Part, live: Live, chosen: int) -> None:
        prompt = max(0, min(part.tokens, live.prompt_tokens - live.done))
        self._tokens["prompt"] += prompt
        self._tokens["answer"] += chosen
        self._tokens["wrong_guess"] += max(0, part.tokens - chosen) if live.done + 1 >= len(live.tokens) else 0

    def _guess(self, live: Live, steps: Sequence[Sampled], beside: int) -> None:
        """Propose what may come after the tokens that came."""
        runs, window_tokens = self._sequences.runs(live), self._engine.spec.window_tokens
        count = live.propose(runs, steps, beside, self._plan.cost, window_tokens)
        with self._lock:
            self._plan.propose(live.request.id, count)

    # Requests, on the engine's thread

    def _arrive(self, live: Live) -> None:
        """A request comes, with the conversation that is kept and has most in common with its prompt, if one has."""
        request, position = live.request, len(live.context_tokens)
        whose = request.family or request.caller
        tokens, key = self._conversations.nearest(whose, request.context, position, live.tokens[:-1])
        if tokens and not request.echo and self._goes_on(position + tokens, key):
            live.request = replace(request, kept=key, kept_tokens=tokens)
        with self._lock:
            self._plan.arrive(live.request, time.monotonic())

    def _goes_on(self, at: int, key: str) -> bool:
        """Whether a request may go on at a position from what is kept of a conversation."""
        kept = self._conversations[key]
        return goes_on(at, kept.position + len(kept.tokens), self._engine.spec.sight)

    def _begin(self, id: int) -> None:
        self._sequences.begin(self._live[id])

    def _resume(self, resumed: Resumed) -> None:
        self._sequences.resume(self._live[resumed.id], self._conversations[resumed.kept], resumed.tokens)
        self._generations[resumed.id].resumed_tokens = resumed.tokens

    def _stop(self, id: int) -> None:
        """Give back what a request has in the cache; it begins again later."""
        live = self._live.get(id)
        if live is not None:
            self._sequences.stop(live)
            if live.unanswered:
                self._generations[id].resumed_tokens = 0

    def _disown(self, whose: str) -> None:
        """Nothing is kept any more of what somebody, or a family, has left."""
        with self._lock:
            for key in self._conversations.disown(whose):
                self._plan.drop(key)

    def _leave(self, id: int, kept: int = 0) -> None:
        """A request is over, if it was not before; its first so many tokens are kept."""
        live = self._live.pop(id, None)
        if live is None:
            return
        del self._generations[id]
        with self._lock:
            self._plan.leave(id)
        if live.chooser is not None:
            live.chooser.close()
        if kept and live.sequence is not None:
            self._conversations.add(_key(id), self._sequences.keep(live, kept))
        else:
            self._sequences.stop(live)

    def _end(self, live: Live, error: BaseException | None) -> None:
        """An answer is over."""
        id, generation = live.request.id, self._generations[live.request.id]
        kept: int | None = 0
        with self._lock:
            if error is not None:
                self._plan.leave(id)
            else:
                kept = self._plan.end(id, _key(id), time.monotonic())
        if kept is not None:  # or whoever asked has left just now, and what comes of it is a call that waits
            self._leave(id, kept)
        self._tell(generation.steps.put_nowait, error)

    def _failed(self, step: Step, error: EngineError) -> None:
        """Whoever was in a step gets the error."""
        for part in step.parts:
            fill, live = self._fills.get(part.id), self._live.get(part.id)
            if live is not None:
                self._end(live, error)
            if fill is not None:
                self._give_up_fills([part.id], error)

    # Contexts, on the engine's thread

    def _bring(self, context: ContextId) -> None:
        self._sequences.bring(context, self._plan.residency.sizes[context])
        assert self._bringer is not None
        self._tell(self._bringer.bring, context)

    @property
    def _has_spare_sequence(self) -> bool:
        """Whether one is left for a stretch that is computed aside: the others may be wanted at any step."""
        taken = self._sequences.beginnings + sum(fill.reserved for fill in self._fills.values())
        return taken < len(self._engine.sequences) - self._plan.sequences

    def _evict(self, key: str) -> None:
        if (kept := self._conversations.pop(key)) is not None:
            self._sequences.let_go(kept)
            return
        context, bringer = ContextId(key), self._bringer
        place = self._sequences.place(context)
        assert place is not None and bringer is not None
        blocks: Blocks = ()
        spec = self._engine.spec
        if bringer.keeps(context, place.tokens * spec.token_bytes + spec.state_bytes):
            try:
                blocks = self._sequences.all_of(context)
            except EngineError as error:
                _log.warning("a context that leaves the cache is not kept: %s", error)
        self._drop(context)
        self._tell(bringer.evicted, context, blocks)

    def _drop(self, context: ContextId) -> None:
        self._sequences.drop(context)  # first: rows of a context that goes are not reserved again
        self._give_up_fills([id for id, fill in self._fills.items() if fill.context == context])

    def _filled(self, id: int, fill: Fill) -> None:
        """All of a stretch is computed."""
        try:
            filled = self._sequences.filled(fill)
        except PrereadError as error:
            self._give_up_fills([id], error)
            return
        del self._fills[id]
        fill.done.set_result(filled)

    def _in_vain(self, id: int, fill: Fill) -> None:
        """What is computed of a stretch is of no use."""
        del self._fills[id]
        with self._lock:
            self._plan.drop_fill(id)
        self._sequences.undo(fill)
        fill.done.set_result(False)

    def _give_up_fills(self, ids: Sequence[int], error: PrereadError | None = None) -> None:
        """Undo what is computed of stretches that are not wanted: their rows are as reserved again."""
        for id in ids:
            fill = self._fills.pop(id, None)
            if fill is None:
                continue
            with self._lock:
                self._plan.drop_fill(id)
            why: PrereadError = error or Cancelled("it was not wanted any more")
            try:
                self._sequences.undo(fill)
            except EngineError as failure:
                why = failure
            if not fill.done.done():
                fill.done.set_exception(why)

    def _forget(self) -> bool:
        with self._lock:
            if self._live or not self._plan.idle:
                return False
            keys = self._plan.clear()
        for key in keys:
            if key in self._conversations:
                self._evict(key)
            else:
                self._drop(ContextId(key))
        return True

    def _tell(self, call: Callable[..., object], *values: Any) -> None:
        """Call something in asyncio's thread."""
        self._loop.call_soon_threadsafe(call, *values)


def _key(id: int) -> str:
    """Of the conversation that a request leaves: none that a context could have."""
    return f"conversation {id}"


def _chosen(steps: Sequence[Sampled]) -> list[int]:
    """The tokens of a step that were chosen, not given."""
    return [one.token for one in steps if not one.given]


def _put(puts: list[tuple[Generation, list[Sampled]]]) -> None:
    for generation, steps in puts:
        generation.steps.put_nowait(steps)


def _begun(generation: Generation, at_s: float) -> None:
    if generation.begun_s is None:  # or it made way, and begins again
        generation.begun_s = at_s
