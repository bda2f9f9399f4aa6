"""What an edge's loop needs of an inference engine. `testing/engine.py` states what each of it has to do.

`LlamaCpp` is one such engine; `testing/fake_engine.py` has another, which is exact and takes no time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from preread.engine.cache import Rows
from preread.engine.model import Spec
from preread.engine.sampling import Sampled, Sampling
from preread.values import KVBlock, Span, StateBlock

Tokens = npt.NDArray[np.int32]


class Chooser(Protocol):
    """How one answer's tokens are chosen. The engine's runner asks it, after a step; `scores` are that engine's own."""

    @property
    def ended(self) -> bool:
        """Whether as many tokens were chosen as were wanted at most."""
        ...

    def choose(self, scores: object, index: int, /) -> Sampled:
        """Choose the token after the step's token number `index`."""
        ...

    def given(self, scores: object, first: int, tokens: Tokens, after: int | None, number: int, /) -> list[Sampled]:
        """The prompt's own tokens, each but its first with how likely it was; none is told twice."""
        ...

    def close(self) -> None:
        """Free what the engine keeps for it."""
        ...


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens of one sequence to compute in a step.

    Attributes:
        sequence: that they belong to, of which all before `position` is in the cache.
        tokens: their ids.
        position: of the first.
        chooser: chooses the token after the last; None: none is wanted.
        drafts: so many at the end are guesses: of these, only those stay that the chooser chooses as well.
        after: the token that follows the last, where it is known; None: it is to be chosen, where there is a chooser.
        echoed: the log-probabilities of the prompt's tokens are wanted: the first of these is number so many of it.
        layers: only the first so many layers need be computed, and no token is chosen; None: all.
        rows: its sequence's own, of which it is not known yet where they lie: those of its tokens are noted there. With
            `layers`, they come to lie where their bits are those that an empty cache gives, if they can.
    """

    sequence: int
    tokens: Tokens
    position: int
    chooser: Chooser | None = None
    drafts: int = 0
    after: int | None = None
    echoed: int | None = None
    layers: int | None = None
    rows: Rows | None = None


class Steps(Protocol):
    """Computes steps, on the engine's thread.

    Attributes:
        splits_layers: slices may have `layers` and `rows`.
    """

    splits_layers: bool

    def arm(self, open_layers: int | None = None) -> None:
        """What comes next may be cancelled, and waits for layers beyond the first `open_layers`; None: for none."""
        ...

    def run(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        """The tokens after each slice.

        Where there is but one, and only the first layers of it are needed, the step ends behind these.

        Raises:
            Cancelled: somebody called `cancel`. Nothing of the step stays in the cache.
            EngineError: the engine failed. Nothing of the step stays in the cache.
                Of a model that is `whole`, nothing may stay at all of a sequence that the step was to go on with,
                unless the step was to wait for layers.
        """
        ...


class Held(Protocol):
    """A step that is under way, as other threads see it."""

    def open(self, layers: int) -> None:
        """Let it compute the first `layers` layers."""
        ...

    def cancel(self) -> None:
        """End it within about one layer's time."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether it waits for a layer."""
        ...


class Runner(Steps, Held, Protocol):
    """Steps, and the one that is under way."""


class Shared(Protocol):
    """Which sequences see which cells. On the engine's thread.

    Sequences of a model that is `whole` are shared whole and cut nowhere; EngineError says where that is not so.
    """

    def share(self, source: int, target: int, tokens: Span) -> None:
        """Let `target` see what `source` has at these positions."""
        ...

    def cut(self, sequence: int, position: int) -> None:
        """Take from a sequence what it has at `position` and beyond."""
        ...

    def free(self, sequence: int) -> None:
        """Empty a sequence. Cells that no other sees are free."""
        ...


class Reserved(Protocol):
    """Cells that are written from outside. On the engine's thread. Raises EngineError where cells are wanting."""

    def reserve(self, sequence: int, tokens: int) -> Rows:
        """Give an empty sequence cells for positions 0 … tokens−1."""
        ...

    def take(self, rows: Rows, tokens: Span) -> None:
        """Free the cells of some reserved rows: these positions are going to be computed."""
        ...

    def put_back(self, rows: Rows, tokens: Span) -> None:
        """Reserve rows again that were taken and not computed."""
        ...

    def unplaced(self, sequence: int, tokens: int) -> Rows:
        """Rows for positions 0 … tokens−1 of a sequence, of which steps note where they lie."""
        ...

    def copy(self, source: Rows, target: Rows, tokens: Span, layers: int) -> None:
        """Write to reserved rows what the first so many layers have at these positions where they were computed."""
        ...

    def is_tiled(self, rows: Rows, tokens: Span, layers: int) -> bool:
        """Whether the first so many layers of these positions are computed to the very bits that an empty cache gives.

        rows: say where they lie, and what is before them, as far as that is known.
        """
        ...

    def is_batched(self, part: Span, beside: int, tokens: int) -> bool:
        """Whether these positions, of a context of so many tokens, get prefill's bits in a step with others beside."""
        ...


class Exchange(Protocol):
    """KV in and out."""

    def inject(self, rows: Rows, block: KVBlock) -> None:
        """Write KV into reserved cells. Thread-safe for different rows.

        Raises:
            EngineError: the block is not of these rows.
            CorruptData: it has numbers that are not finite.
        """
        ...

    def export(self, sequence: int, tokens: Span, layers: Span) -> KVBlock:
        """Copy what a sequence has at these positions. On the engine's thread.

        Raises:
            EngineError: it lacks some of them.
        """
        ...

    def inject_state(self, rows: Rows, block: StateBlock) -> None:
        """Write the states of some layers of a reserved sequence. Thread-safe for different layers.

        Raises:
            EngineError: the block is not of these rows.
            CorruptData: it has numbers that are not finite.
        """
        ...

    def export_state(self, sequence: int, layers: Sequence[int]) -> StateBlock:
        """Copy the states that some recurrent layers have of a sequence. On the engine's thread.

        Raises:
            EngineError: it is empty, or the model has none.
        """
        ...


class Cache(Shared, Reserved, Exchange, Protocol):
    """The KV cache that all sequences share."""


class Engine(Protocol):
    """A model with a cache that many requests share.

    Attributes:
        spec: the model.
        cache: its KV, of `cells` tokens.
        runner: computes steps.
        sequences: ids that `cache` and `runner` may be given.
    """

    @property
    def spec(self) -> Spec: ...

    @property
    def cache(self) -> Cache: ...

    @property
    def runner(self) -> Runner: ...

    @property
    def cells(self) -> int: ...

    @property
    def sequences(self) -> range: ...

    def chooser(self, sampling: Sampling, prompt: Tokens) -> Chooser:
        """What chooses the tokens of one answer to `prompt`, on the engine's thread; close it."""
        ...
