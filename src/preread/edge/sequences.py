"""Who has which sequence of the engine, and what they have in its cache: contexts, stretches of them that are computed,
requests. All of it belongs to the engine's thread.

It must not know why somebody gets cells or gives them back: `plan/schedule.py` decides that.
"""

from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from preread.edge.conversations import Conversation
from preread.edge.live import Live
from preread.edge.offload import Blocks
from preread.engine.base import Engine, Slice, Tokens
from preread.engine.cache import Rows
from preread.engine.states import having_state
from preread.errors import EngineError
from preread.plan.drafts import Runs
from preread.plan.legality import goes_on, is_in_order, is_whole, spare_cells
from preread.plan.step import Part
from preread.values import ContextId, KVBlock, Span, runs_of


@dataclass(slots=True)
class Fill:
    """A stretch of a context that is computed.

    Attributes:
        context: which one; `tokens`: the stretch, from `start` on.
        done: told when it is in place (False: it was computed in vain), or why it is not.
        sequence: that it is computed in: the context's, or one of its own where the context's rows were reserved.
        reserved: whether they were.
        layers: only the first so many are computed, and are copied into the context's rows then; None: all.
        exact: its rows are to be of use only with the very bits that an empty cache gives, as those are that come.
        rows: say where its sequence's cells lie, where the context's rows were reserved.
        computed: so many tokens are.
    """

    context: ContextId
    tokens: Tokens
    start: int
    done: Future[bool]
    sequence: int
    reserved: bool
    layers: int | None = None
    exact: bool = False
    rows: Rows | None = None
    computed: int = 0

    @property
    def span(self) -> Span:
        """Its positions."""
        return Span(self.start, self.start + len(self.tokens))

    def slice(self, part: Part) -> Slice:
        """The tokens of a part."""
        tokens = self.tokens[self.computed : self.computed + part.tokens]
        return Slice(self.sequence, tokens, self.start + self.computed, layers=self.layers, rows=self.rows)


@dataclass(slots=True)
class Place:
    """What a context has.

    Attributes:
        sequence: its own; `tokens`: its size.
        rows: if they were reserved; `computed`: where those lie that were computed since, as far as was seen.
        open_layers: so many are open.
        runs: of its tokens.
        beginning: what was computed of the context from its start on, one stretch behind the other: what windows have
            left behind of it is lost to the context's own sequence, whose end lies ahead, as soon as nobody else has
            it. Whoever computes on needs it.
    """

    sequence: int
    tokens: int
    rows: Rows | None = None
    computed: Rows | None = None
    open_layers: int = 0
    runs: Runs | None = None
    beginning: "Beginning | None" = None


@dataclass(frozen=True, slots=True)
class Beginning:
    """The sequence in which a context's beginning was computed, of so many tokens, in the first so many layers.

    rows: say where its cells lie.
    """

    sequence: int
    tokens: int
    layers: int
    rows: Rows


class Sequences:
    """All sequences of an engine that is shared. Raises EngineError where llama.cpp fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._cache = engine, engine.cache
        self._free = [*engine.sequences]
        self._places: dict[ContextId, Place] = {}

    @property
    def free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    @property
    def beginnings(self) -> int:
        """How many hold the beginning of a context."""
        return sum(place.beginning is not None for place in self._places.values())

    # Contexts

    def place(self, context: ContextId) -> Place | None:
        """What a context has; None: nothing."""
        return self._places.get(context)

    def bring(self, context: ContextId, tokens: int) -> None:
        """A context of so many tokens gets a sequence."""
        self._places[context] = Place(self._free.pop(), tokens)

    def drop(self, context: ContextId) -> None:
        """A context has none any more."""
        self.settle(context)
        place = self._places.pop(context, None)
        if place is not None:
            self._give_back(place.sequence)

    def reserve(self, context: ContextId) -> Rows:
        """Rows for all of a context."""
        place = self._places[context]
        place.rows = self._cache.reserve(place.sequence, place.tokens)
        place.computed = self._cache.unplaced(place.sequence, place.tokens)
        return place.rows

    def clear(self, context: ContextId) -> None:
        """Nothing of a context is there any more, but its sequence."""
        self.settle(context)
        place = self._places[context]
        self._cache.free(place.sequence)
        place.rows, place.computed, place.open_layers = None, None, 0

    def settle(self, context: ContextId) -> None:
        """Nothing more is computed of a context."""
        place = self._places.get(context)
        if place is not None:
            self._end_beginning(place)

    def export(self, context: ContextId) -> KVBlock:
        """A copy of all KV of a context."""
        place, layers = self._places[context], self._engine.spec.geometry.layers
        return self._cache.export(place.sequence, Span(0, place.tokens), Span(0, layers))

    def all_of(self, context: ContextId) -> Blocks:
        """A copy of all that a context has."""
        states = having_state(self._engine.spec.layers)
        place, runs = self._places[context], runs_of(self._engine.spec.layers)
        state = (self._cache.export_state(place.sequence, states),) if states else ()
        return (*(self._cache.export(place.sequence, Span(0, place.tokens), run) for run in runs), *state)

    def runs(self, live: Live) -> Runs:
        """Of the tokens that a request begins with; made once for all requests about a context."""
        if live.request.context is None:
            return Runs()
        place, tokens = self._places[ContextId(live.request.context)], live.context_tokens
        if place.runs is None or len(place.runs.tokens) < len(tokens):
            place.runs = Runs(tokens.tolist())
        return place.runs

    # Stretches of contexts

    def fill(
        self, context: ContextId, tokens: Tokens, start: int, done: Future[bool], layers: int | None = None
    ) -> Fill | None:
        """A stretch of a context is going to be computed, of which all earlier tokens are in place.

        layers: only the first so many of it, of whose earlier tokens these layers are in place; None: all. It gets
            cells of its own (`spare_cells`), so that the others' rows may be written meanwhile.

        Returns:
            None: only some layers were to be computed, and what they look at lies where sums have another order than in
            an empty cache, or prefill has other batches: the rows would not be those that the cloud computes.

        Raises:
            EngineError: windows would look at rows that the context does not keep; `plan/legality.py` forbids it.
        """
        place = self._places[context]
        if place.rows is None:
            return Fill(context, tokens, start, done, place.sequence, reserved=False)
        exact, layers = layers is not None, self.aside(context, layers)
        beginning = self._beginning(place, start, self._layers if layers is None else layers)
        rows = self._cache.unplaced(self._free[-1], start + len(tokens))
        self._note_before(rows, place, beginning, start)
        stretch = Span(start, start + len(tokens))
        alike = layers is None or self._cache.is_tiled(rows, Span(start, start), layers)
        if exact and not (alike and self._cache.is_batched(stretch, 0, place.tokens)):
            return None
        fill = Fill(context, tokens, start, done, self._free.pop(), True, layers, exact, rows)
        before = place.sequence if beginning is None else beginning.sequence
        self._cache.share(before, fill.sequence, Span(0, start))
        if layers is None:
            self._cache.take(place.rows, fill.span)
        return fill

    def _note_before(self, rows: Rows, place: Place, beginning: Beginning | None, start: int) -> None:
        """Note where what is before a stretch lies: in the context's cells, or in those of what it goes on behind."""
        assert place.rows is not None and place.computed is not None
        for part, into in enumerate(rows.parts):
            own, computed = place.rows.parts[part][:start], place.computed.parts[part][:start]
            into[:start] = (
                np.where(own >= 0, own, computed) if beginning is None else beginning.rows.parts[part][:start]
            )

    def _beginning(self, place: Place, start: int, layers: int) -> Beginning | None:
        """What a stretch goes on behind; None: the context's own rows. Where nothing is before it, nothing is kept.

        Raises:
            EngineError: it has to, and is not there.
        """
        if not self._in_order(place):
            return None
        if not start:
            self._end_beginning(place)
            return None
        beginning = place.beginning
        if beginning is None or beginning.tokens != start or beginning.layers < layers:
            raise EngineError("a stretch was to be computed behind rows that are not kept: this is a bug in preread")
        return beginning

    def aside(self, context: ContextId, layers: int | None) -> int | None:
        """In how many layers a stretch of a context is computed in cells of its own, and copied; None: it is not.

        Where sequences are whole, all that is computed is: the context has a state that must stay.
        """
        reserved = self._places[context].rows is not None
        return self._layers if layers is None and reserved and self._whole else layers

    def spare_cells(self, context: ContextId, tokens: int) -> int:
        """Cells that stretches of so many tokens take besides a context's, of which only some layers are computed."""
        return spare_cells(self._places[context].tokens, tokens, self._engine.spec.sight)

    def proceed(self, fill: Fill, tokens: int, beside: int) -> bool:
        """So many tokens of a stretch were computed, in a step with others beside; False: in vain, they have other bits
        than they are to have.
        """
        part = Span(fill.start + fill.computed, fill.start + fill.computed + tokens)
        fill.computed += tokens
        return not fill.exact or self._cache.is_batched(part, beside, self._places[fill.context].tokens)

    def filled(self, fill: Fill) -> bool:
        """All of a stretch is computed: it becomes part of the context. False: it does not, since it has other bits
        than it is to have: nothing of it stays.
        """
        if not fill.reserved:
            return True
        place = self._places[fill.context]
        assert place.rows is not None and place.computed is not None and fill.rows is not None
        if fill.exact and fill.layers is not None and not self._cache.is_tiled(fill.rows, fill.span, fill.layers):
            self.undo(fill)
            return False
        if fill.layers is None:
            self._cache.share(fill.sequence, place.sequence, fill.span)
            for into, of in zip(place.computed.parts, fill.rows.parts, strict=True):
                into[fill.start : fill.span.stop] = of[fill.start :]
        else:
            self._cache.copy(fill.rows, place.rows, fill.span, fill.layers)
        if self._in_order(place):
            self._end_beginning(place)
            layers = self._layers if fill.layers is None else fill.layers
            place.beginning = Beginning(fill.sequence, fill.span.stop, layers, fill.rows)
        else:
            self._give_back(fill.sequence)
        return True

    def undo(self, fill: Fill) -> None:
        """Nothing of a stretch stays: its rows are as reserved again."""
        if not fill.reserved:
            self._cache.cut(fill.sequence, fill.start)
            return
        self._give_back(fill.sequence)
        place = self._places.get(fill.context)
        if place is not None and place.rows is not None and fill.layers is None:
            self._cache.put_back(place.rows, fill.span)

    # Requests

    def begin(self, live: Live) -> None:
        """A request gets a sequence, which sees what it begins with of its context."""
        live.sequence = self._free.pop()
        if live.request.context is not None:
            place = self._places[ContextId(live.request.context)]
            self._cache.share(place.sequence, live.sequence, Span(0, len(live.context_tokens)))
        if live.chooser is None:
            live.chooser = self._engine.chooser(live.sampling, live.tokens)

    def resume(self, live: Live, kept: Conversation, tokens: int) -> None:
        """A request that has begun sees the first so many tokens of a conversation."""
        assert live.sequence is not None
        self._cache.share(kept.sequence, live.sequence, Span(kept.position, kept.position + tokens))
        live.done = tokens

    def stop(self, live: Live) -> None:
        """A request has nothing in the cache any more; it may begin again."""
        if live.sequence is not None:
            self._give_back(live.sequence)
            live.sequence, live.done = None, 0

    def keep(self, live: Live, tokens: int) -> Conversation:
        """Keep the first so many tokens of a request without the context before them, which may have to make way.

        No tokens, where more is in the cache by now, and windows have left behind what would go on from them.
        """
        assert live.sequence is not None
        position, own = len(live.context_tokens), self._free.pop()
        if not goes_on(position + tokens, position + live.done, self._engine.spec.sight):
            tokens = 0
        self._cache.share(live.sequence, own, Span(position, position + tokens))
        self.stop(live)
        whose = live.request.family or live.request.caller
        return Conversation(whose, live.request.context, position, live.tokens[:tokens], own)

    def let_go(self, kept: Conversation) -> None:
        """A conversation is kept no more."""
        self._give_back(kept.sequence)

    def _end_beginning(self, place: Place) -> None:
        if place.beginning is not None:
            self._give_back(place.beginning.sequence)
            place.beginning = None

    @property
    def _whole(self) -> bool:
        return is_whole(self._engine.spec.sight)

    @property
    def _layers(self) -> int:
        return self._engine.spec.geometry.layers

    def _in_order(self, place: Place) -> bool:
        return is_in_order(place.tokens, self._engine.spec.sight)

    def _give_back(self, sequence: int) -> None:
        self._cache.free(sequence)
        self._free.append(sequence)
