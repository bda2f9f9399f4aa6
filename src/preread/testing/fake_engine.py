"""An engine without a model: exact, and done in no time. For tests of what drives an engine.

Its "model" is a hash. Each layer makes a row of KV from a token's state, and the next state from all rows that the
token sees, as they lie in the cache: so the next token depends on each bit of them, and a single row that is not what
it should be, or is missing, changes every answer. Sums of 64-bit integers do not round: what else is in a step changes
nothing. Cells, sequences, the gate and its threads are as real as llama.cpp's.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from preread.engine.base import Chooser, Engine, Slice, Tokens
from preread.engine.cache import COMPUTED, UNPLACED, Rows
from preread.engine.model import Spec
from preread.engine.sampling import Sampled, Sampling
from preread.errors import Cancelled, CorruptData, EngineError
from preread.testing.fake_chooser import FakeChooser
from preread.values import Fingerprint, Geometry, KVBlock, Span, StateBlock, alike

STEP_TOKENS: Final = 512
"""Tokens of the largest step."""
STEP_SCORES: Final = 256
"""Tokens of a step whose scores may be wanted."""

_U64 = npt.NDArray[np.uint64]
_VOCABULARY: Final = 96
_GEOMETRY: Final = Geometry(3, 2, 4)
_HALF_VALUES: Final = _GEOMETRY.kv_heads * _GEOMETRY.head_dim
_INFINITE: Final = np.uint16(0x7C00)
_FINITE: Final = np.uint64(0xBBFF)
"""Bits that make no exponent of a float16 that stands for none."""
_ALL_LAYERS: Final = _GEOMETRY.layers
_SPREAD: Final = 8.0
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio


class FakeEngine:
    """Not thread-safe, except where the protocols of `engine/base.py` say so.

    Args:
        cells: of its cache; `sequences`: that share it.
        window_tokens: of a context, a prompt and an answer together.
    """

    no_injection: str | None = None

    def __init__(self, cells: int = 512, sequences: int = 32, window_tokens: int = 256) -> None:
        self.spec = _spec(window_tokens)
        self.sequences, self.cells = range(3, 3 + sequences), cells
        self.cache = FakeCache(cells, self.sequences)
        self.runner = FakeRunner(self.cache)

    def chooser(self, sampling: Sampling, prompt: Tokens) -> Chooser:
        """What chooses the tokens of one answer."""
        return FakeChooser(sampling)


class FakeCache:
    """The cells: of each, its position, its rows in every layer, and which sequences see it.

    Attributes:
        tiled: whether cells are said to lie where they give the bits of an empty cache.
    """

    tiled = True

    def __init__(self, cells: int, sequences: range) -> None:
        self._first = sequences.start
        self._seen = np.zeros((len(sequences), cells), bool)
        self._positions = np.zeros(cells, np.int64)
        self._rows = np.zeros((_GEOMETRY.layers, cells, 2, _HALF_VALUES), np.uint16)

    @property
    def free_cells(self) -> int:
        """Cells that no sequence sees."""
        return int((~self._seen.any(0)).sum())

    def reserve(self, sequence: int, tokens: int) -> Rows:
        """See `Cache`."""
        return Rows(sequence, self.allocated([(sequence, 0, tokens)])[0].astype(np.int32))

    def take(self, rows: Rows, tokens: Span) -> None:
        """See `Cache`."""
        self._remove(rows.sequence, tokens.start, tokens.stop)
        rows.cells[tokens.start : tokens.stop] = COMPUTED

    def put_back(self, rows: Rows, tokens: Span) -> None:
        """See `Cache`."""
        rows.cells[tokens.start : tokens.stop] = self.allocated([(rows.sequence, tokens.start, len(tokens))])[0]

    def unplaced(self, sequence: int, tokens: int) -> Rows:
        """See `Cache`."""
        return Rows(sequence, np.full(tokens, UNPLACED, np.int32))

    def copy(self, source: Rows, target: Rows, tokens: Span, layers: int) -> None:
        """See `Cache`."""
        at, to = (rows.cells[tokens.start : tokens.stop] for rows in (source, target))
        kept = to != COMPUTED
        if (at[kept] < 0).any():
            raise EngineError("the cells that layers were computed into cannot be told")
        self._rows[:layers, to[kept]] = self._rows[:layers, at[kept]]

    def is_tiled(self, rows: Rows, tokens: Span, layers: int) -> bool:
        """See `Cache`: sums do not round, wherever cells lie."""
        return self.tiled

    def is_batched(self, part: Span, beside: int, tokens: int) -> bool:
        """See `Cache`."""
        return True

    def share(self, source: int, target: int, tokens: Span) -> None:
        """See `Cache`."""
        inside = (self._positions >= tokens.start) & (self._positions < tokens.stop)
        self._of(target)[:] |= self._of(source) & inside

    def cut(self, sequence: int, position: int) -> None:
        """See `Cache`."""
        self._remove(sequence, position, None)

    def free(self, sequence: int) -> None:
        """See `Cache`."""
        self._of(sequence)[:] = False

    def inject(self, rows: Rows, block: KVBlock) -> None:
        """See `Cache`."""
        shape = len(block.layers), _GEOMETRY.kv_heads, len(block.tokens), _GEOMETRY.head_dim
        inside = 0 <= block.layers.start and block.layers.stop <= _GEOMETRY.layers
        if (block.k.shape, block.v.shape) != (shape, shape) or not inside or block.tokens.stop > len(rows.cells):
            raise EngineError(f"a KV block of shape {block.k.shape} does not fit the reserved {shape}")
        halves = [half.view(np.uint16) for half in (block.k, block.v)]
        if any(((half & _INFINITE) == _INFINITE).any() for half in halves):
            raise CorruptData("values", "a KV block has numbers that are not finite")
        cells = rows.cells[block.tokens.start : block.tokens.stop]
        kept = cells != COMPUTED
        for which, half in enumerate(halves):
            values = half.transpose(0, 2, 1, 3).reshape(shape[0], shape[2], _HALF_VALUES)
            self._rows[block.layers.start : block.layers.stop, cells[kept], which] = values[:, kept]

    def export(self, sequence: int, tokens: Span, layers: Span) -> KVBlock:
        """See `Cache`."""
        cells = np.flatnonzero(self._of(sequence))
        cells = cells[np.argsort(self._positions[cells])]
        cells = cells[(self._positions[cells] >= tokens.start) & (self._positions[cells] < tokens.stop)]
        if not np.array_equal(self._positions[cells], np.arange(tokens.start, tokens.stop)):
            raise EngineError(f"tokens {tokens.start} to {tokens.stop} are not all in the cache")
        shape = len(layers), len(tokens), 2, _GEOMETRY.kv_heads, _GEOMETRY.head_dim
        rows = self._rows[layers.start : layers.stop, cells].reshape(shape).view(np.float16)
        k, v = (np.ascontiguousarray(rows[:, :, which].transpose(0, 2, 1, 3)) for which in (0, 1))
        return KVBlock(tokens, layers, k, v)

    def inject_state(self, rows: Rows, block: StateBlock) -> None:
        """See `Cache`."""
        raise EngineError("this model keeps no states")

    def export_state(self, sequence: int, layers: Sequence[int]) -> StateBlock:
        """See `Cache`."""
        raise EngineError("this model keeps no states")

    # For the runner

    def allocated(self, wanted: Sequence[tuple[int, int, int]]) -> list[npt.NDArray[np.int64]]:
        """The first free cells for each (sequence, first position, count), or none for any of them.

        Raises:
            EngineError: there are not enough.
        """
        free, lists = np.flatnonzero(~self._seen.any(0)), []
        if sum(count for _, _, count in wanted) > len(free):
            raise EngineError("no cells are free")
        for sequence, position, count in wanted:
            cells, free = free[:count], free[count:]
            self._of(sequence)[cells] = True
            self._positions[cells] = np.arange(position, position + count)
            self._rows[:, cells] = 0
            lists.append(cells)
        return lists

    def end(self, sequence: int) -> int:
        """The position after a sequence's last."""
        cells = self._of(sequence)
        return int(self._positions[cells].max()) + 1 if cells.any() else 0

    def before(self, layer: int, sequence: int, position: int) -> _U64:
        """What a token at a position sees of the rows before it, (1,)."""
        cells = np.flatnonzero(self._of(sequence) & (self._positions < position))
        total: _U64 = self._digests(layer, cells).sum(keepdims=True)
        return total

    def write(self, layer: int, cells: npt.NDArray[np.int64], states: _U64) -> _U64:
        """Make rows of states (tokens,); what whoever sees them sees, (tokens,)."""
        number = np.arange(2 * _HALF_VALUES, dtype=np.uint64) + np.uint64(1 + layer * 2 * _HALF_VALUES)
        values = (_mixed(states[:, None] ^ number * _ODD) & _FINITE).astype(np.uint16)
        self._rows[layer, cells] = values.reshape(-1, 2, _HALF_VALUES)
        return self._digests(layer, cells)

    def _digests(self, layer: int, cells: npt.NDArray[np.int64]) -> _U64:
        values = self._rows[layer, cells].reshape(len(cells), 2 * _HALF_VALUES).astype(np.uint64)
        weights = _mixed(np.arange(1, 1 + 2 * _HALF_VALUES, dtype=np.uint64))
        return _mixed((values * weights).sum(1, dtype=np.uint64) + self._positions[cells].astype(np.uint64) * _ODD)

    def _remove(self, sequence: int, start: int, stop: int | None) -> None:
        inside = (self._positions >= start) & (True if stop is None else self._positions < stop)
        self._of(sequence)[inside] = False

    def _of(self, sequence: int) -> npt.NDArray[np.bool_]:
        """Which cells a sequence sees: a view."""
        if sequence < self._first:
            raise EngineError(f"there is no sequence {sequence}")
        seen: npt.NDArray[np.bool_] = self._seen[sequence - self._first]
        return seen


class FakeRunner:
    """Steps, layer by layer.

    Attributes:
        before_layer: called on the engine's thread before each layer of each step: a test may hold it there, look
            around, or raise EngineError. Until it returns, `cancel` waits too.
        steps: how many were computed to their end.
    """

    splits_layers = True

    def __init__(self, cache: FakeCache) -> None:
        self._cache, self._changed = cache, threading.Condition()
        self._cancelled, self._open, self._waiting = False, _ALL_LAYERS, False
        self.before_layer: Callable[[Sequence[Slice], int], None] = lambda slices, layer: None
        self.steps = 0

    def arm(self, open_layers: int | None = None) -> None:
        """See `Runner`."""
        with self._changed:
            self._cancelled = False
            self._open = _ALL_LAYERS if open_layers is None else open_layers

    def open(self, layers: int) -> None:
        """See `Runner`."""
        with self._changed:
            self._open = max(self._open, layers)
            self._changed.notify_all()

    def cancel(self) -> None:
        """See `Runner`."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    @property
    def waiting(self) -> bool:
        """See `Runner`."""
        with self._changed:
            return self._waiting

    def run(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        """See `Runner`."""
        _check(slices, self._cache)
        try:
            scores = self._computed(slices)
            self.steps += 1
            return self._chosen(slices, scores)
        except (Cancelled, EngineError):
            for one in slices:
                self._cache.cut(one.sequence, one.position)
            raise
        finally:
            with self._changed:
                self._cancelled, self._open = False, _ALL_LAYERS

    def _pass(self, slices: Sequence[Slice], layer: int) -> None:
        """Wait until a layer may be computed."""
        self.before_layer(slices, layer)
        with self._changed:
            self._waiting = True
            self._changed.wait_for(lambda: self._cancelled or layer < self._open)
            self._waiting = False
            if self._cancelled:
                raise Cancelled("cancelled during a step")

    def _computed(self, slices: Sequence[Slice]) -> npt.NDArray[np.float32]:
        """Scores (tokens of the step, vocabulary)."""
        cache, states = self._cache, [_begun(one) for one in slices]
        cells: list[npt.NDArray[np.int64]] = []
        for layer in range(_layers(slices)):
            self._pass(slices, layer)
            cells = cells or cache.allocated([(one.sequence, one.position, len(one.tokens)) for one in slices])
            for i, one in enumerate(slices):
                if one.rows is not None:
                    one.rows.cells[one.position : one.position + len(one.tokens)] = cells[i]
                before = cache.before(layer, one.sequence, one.position)
                states[i] = _mixed(states[i] + before + cache.write(layer, cells[i], states[i]).cumsum())
        every = np.concatenate(states)[:, None] ^ np.arange(1, 1 + _VOCABULARY, dtype=np.uint64) * _ODD
        return (_mixed(every) * (_SPREAD / 2.0**64)).astype(np.float32)

    def _chosen(self, slices: Sequence[Slice], scores: npt.NDArray[np.float32]) -> list[list[Sampled]]:
        found, end = [], 0
        for one in slices:
            first, end = end, end + len(one.tokens)
            steps: list[Sampled] = []
            if one.chooser is not None and one.echoed is not None:
                steps += one.chooser.given(scores, first, one.tokens, one.after, one.echoed)
            if one.chooser is not None and one.after is None:
                steps += self._verified(one, one.chooser, scores, end)
            found.append(steps)
        return found

    def _verified(self, one: Slice, chooser: Chooser, scores: object, end: int) -> list[Sampled]:
        """The tokens after a slice; drafts that were not chosen go."""
        sure = len(one.tokens) - one.drafts
        steps = [chooser.choose(scores, end - 1 - one.drafts)]
        for index in range(one.drafts):
            if steps[-1].token != int(one.tokens[sure + index]) or steps[-1].end or chooser.ended:
                self._cache.cut(one.sequence, one.position + sure + index)
                break
            steps.append(chooser.choose(scores, end - one.drafts + index))
        return steps


if TYPE_CHECKING:
    _IS_ONE: type[Engine] = FakeEngine


def _spec(window_tokens: int) -> Spec:
    none = Fingerprint("0" * 64)
    return Spec(
        name="fake",
        architecture="fake",
        fingerprint=none,
        vocabulary=none,
        family=None,
        geometry=_GEOMETRY,
        layers=alike(_GEOMETRY),
        token_characters=1,
        rope_near=True,
        no_injection=None,
        window_tokens=window_tokens,
        trained_tokens=window_tokens,
        vocab_size=_VOCABULARY,
    )


def _check(slices: Sequence[Slice], cache: FakeCache) -> None:
    """Raises EngineError where whoever makes steps is wrong."""
    if sum(len(one.tokens) for one in slices) > STEP_TOKENS:
        raise EngineError(f"a step has at most {STEP_TOKENS} tokens")
    if sum(len(one.tokens) if one.echoed is not None else 1 + one.drafts for one in slices) > STEP_SCORES:
        raise EngineError(f"a step has scores of at most {STEP_SCORES} tokens")
    if len({one.sequence for one in slices}) < len(slices):
        raise EngineError("two slices of a step are of one sequence")
    for one in slices:
        if not len(one.tokens) or one.position != (end := cache.end(one.sequence)):
            raise EngineError(f"sequence {one.sequence} goes on at {end}, not at {one.position}")


def _layers(slices: Sequence[Slice]) -> int:
    """How many layers a step goes through."""
    alone = slices[0].layers if len(slices) == 1 else None
    return _GEOMETRY.layers if alone is None else alone


def _begun(one: Slice) -> _U64:
    """The states (tokens,) of a slice's tokens before the first layer."""
    positions = np.arange(one.position, one.position + len(one.tokens), dtype=np.uint64)
    return _mixed(one.tokens.astype(np.uint64) * _ODD + positions)


def _mixed(values: _U64) -> _U64:
    """Bijective, and each bit depends on all: the finaliser of splitmix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
