"""Steps: slices of several sequences, computed as one batch of llama.cpp, and the tokens chosen after them.

A step of complete contexts runs freely. A step behind a context whose layers are still coming waits in front of each
(`gate.py`); llama.cpp's callback holds back a whole graph, so such a step holds slices of that one context only. For
the same reason a slice of which only the first layers are needed goes through all of them unless it is alone. It is
the first of its batch, so that it can be told where to lie.

It must not know why a slice is in a step. All of it belongs to the engine's thread, but for what says otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine.base import Chooser, Slice
from preread.engine.batch import Batch
from preread.engine.cache import Rows
from preread.engine.gate import Gate
from preread.engine.placement import Placement
from preread.engine.sampling import Sampled
from preread.errors import Cancelled, EngineError


class Runner:
    """Computes steps.

    Attributes:
        splits_layers: slices may have `layers` and `rows`.

    Args:
        context: llama.cpp's.
        gate: its gate.
        batch: memory for the largest step.
        layers: of the model.
        outputs: tokens whose logits one step may give.
        placement: shows where tokens lie; None: that cannot be told, and no slice has `rows`.
        spare: a sequence that nobody has, of a model whose sequences are whole; None: of any other.
        tiled: while it is open, what is computed of some rows' positions lies as in an empty cache, if it can.
    """

    def __init__(
        self,
        context: object,
        gate: Gate,
        batch: Batch,
        layers: int,
        outputs: int,
        placement: Placement | None = None,
        spare: int | None = None,
        tiled: Callable[[Rows, int], AbstractContextManager[None]] = lambda *_: nullcontext(),
    ) -> None:
        self._context, self._gate, self._batch, self._layers = context, gate, batch, layers
        self._outputs, self._placement, self._spare, self._waits = outputs, placement, spare, False
        self._tiled = tiled
        self.splits_layers = placement is not None
        self._memory = llama_cpp.llama_get_memory(context)

    def arm(self, open_layers: int | None = None) -> None:
        """What comes next may be cancelled from here on, and waits for `open` to let more layers be computed.

        open_layers: so many are open already; None: all.
        """
        self._waits = open_layers is not None
        if open_layers is None:
            self._gate.arm_open()
        else:
            self._gate.arm()
            self._gate.open(open_layers, self._layers)

    def run(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        """Compute a step that `arm` was called for.

        Args:
            slices: of different sequences, of at most a batch of tokens together.

        Returns:
            Of each slice the tokens that were chosen after it, in order: none without a chooser, one without drafts;
            before them the slice's own where `echo` wants them.

        Raises:
            Cancelled: somebody called `cancel`. Nothing of the step stays in the cache.
            EngineError: llama.cpp failed. Nothing of the step stays in the cache.
                Of a model whose sequences are whole, either may leave nothing at all of the slices' sequences, where
                the step does not wait for layers.
        """
        try:
            if self._spare is not None:
                return self._one_by_one(slices)
            return self._computed(slices)
        except (Cancelled, EngineError):
            for one in slices if self._spare is None else ():
                llama_cpp.llama_memory_seq_rm(self._memory, one.sequence, one.position, -1)
            raise
        finally:
            self._gate.disarm()

    def _computed(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        order = sorted(range(len(slices)), key=lambda index: slices[index].layers is None)
        found = self._computed_in_order([slices[index] for index in order])
        return [steps for _, steps in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    def _computed_in_order(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        self._fill(slices)
        first = slices[0]
        if len(slices) == 1 and first.layers is not None and first.layers < self._layers:
            self._gate.end_behind(first.layers)
        with self._in_tiles(first), self._placed(slices):
            self._decode()
        return self._chosen(slices)

    def _one_by_one(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        """Compute slices of a model whose sequences are whole, each alone: where several are in a batch, llama.cpp
        moves states, also those of other sequences, which somebody may be writing.
        """
        if any(one.drafts for one in slices) or (self._waits and len(slices) > 1):
            raise EngineError("guesses, or several prompts that wait, were to be computed of a model with states")
        self._check(slices)
        if len(slices) > 1:
            slices = [replace(one, layers=one.layers and self._layers) for one in slices]  # the gate is armed once
        return [steps for one in slices for steps in self._alone(one, slices)]

    def _alone(self, one: Slice, slices: Sequence[Slice]) -> list[list[Sampled]]:
        """Compute one of these slices. No state can be taken back: what a step may be made to give up is kept."""
        if self._waits:
            llama_cpp.llama_memory_seq_cp(self._memory, one.sequence, self._spare, -1, -1)
        try:
            return self._computed([one])
        except (Cancelled, EngineError):
            for each in slices:
                llama_cpp.llama_memory_seq_rm(self._memory, each.sequence, -1, -1)
            if self._waits:
                llama_cpp.llama_memory_seq_cp(self._memory, self._spare, one.sequence, -1, -1)
            raise
        finally:
            llama_cpp.llama_memory_seq_rm(self._memory, self._spare, -1, -1)

    def open(self, layers: int) -> None:
        """Let the step that waits compute the first `layers` layers. Thread-safe."""
        self._gate.open(layers, self._layers)

    def cancel(self) -> None:
        """End the step that is under way within about one layer's time. Thread-safe."""
        self._gate.cancel()

    @property
    def waiting(self) -> bool:
        """Whether a step waits for a layer. Thread-safe."""
        return self._gate.waiting >= 0

    def _check(self, slices: Sequence[Slice]) -> None:
        """Raises EngineError where slices are too many for one batch: llama.cpp would end the process."""
        every = [_wanted(one) for one in slices]
        count, outputs = sum(map(len, every)), sum(int(wanted.sum()) for wanted in every)
        if count > self._batch.size_tokens or outputs > self._outputs:
            most = f"{self._batch.size_tokens} and {self._outputs} go at once"
            raise EngineError(f"a step of {count} tokens, and logits of {outputs}, was made: at most {most}")

    def _fill(self, slices: Sequence[Slice]) -> None:
        """Put slices into the batch."""
        self._check(slices)
        self._batch.clear()
        for one in slices:
            self._batch.add(one.tokens, one.position, one.sequence, _wanted(one))

    def _decode(self) -> None:
        if not self._gate.wait_for_first_layer():
            raise Cancelled("cancelled while the context was loading")
        status = llama_cpp.llama_decode(self._context, self._batch.native)
        if self._gate.cancelled:
            raise Cancelled("cancelled during a step")
        if status:
            raise EngineError(f"llama_decode failed with status {status}")

    def _in_tiles(self, one: Slice) -> AbstractContextManager[None]:
        """While this is open, a slice of which layers are to be copied comes to lie where they get the right bits."""
        if one.layers is None or one.rows is None or self._placement is None:
            return nullcontext()
        return self._tiled(one.rows, one.position)

    @contextmanager
    def _placed(self, slices: Sequence[Slice]) -> Iterator[None]:
        """What is computed while this is open are these slices: note where tokens lie, where that is to be known."""
        if self._placement is None or all(one.rows is None for one in slices):
            yield
            return
        with self._placement.noted():
            yield
        ends = np.cumsum([len(one.tokens) for one in slices])
        for one, end in zip(slices, ends.tolist(), strict=True):
            for number, part in enumerate(() if one.rows is None else one.rows.parts):
                cells = self._placement.cells(number)
                if len(cells) == ends[-1]:
                    part[one.position : one.position + len(one.tokens)] = cells[end - len(one.tokens) : end]

    def _chosen(self, slices: Sequence[Slice]) -> list[list[Sampled]]:
        found, end = [], 0
        for one in slices:
            first, end = end, end + len(one.tokens)
            steps: list[Sampled] = []
            if one.echoed is not None and one.chooser is not None:
                steps += one.chooser.given(self._context, first, one.tokens, one.after, one.echoed)
            if one.chooser is not None and one.after is None:
                steps += self._verified(one, one.chooser, end)
            found.append(steps)
        return found

    def _verified(self, one: Slice, chooser: Chooser, end: int) -> list[Sampled]:
        """The tokens after a slice: as many drafts as are chosen, and one more. The others' cells are taken back."""
        steps: list[Sampled] = []
        drafts = one.tokens[len(one.tokens) - one.drafts :].tolist()
        for index, draft in enumerate([*drafts, None]):
            steps.append(chooser.choose(self._context, end - 1 - one.drafts + index))
            if steps[-1].token != draft or steps[-1].end or steps[-1].last or chooser.ended:
                break
        if kept := one.drafts + 1 - len(steps):
            llama_cpp.llama_memory_seq_rm(self._memory, one.sequence, one.position + len(one.tokens) - kept, -1)
        return steps


def _wanted(one: Slice) -> npt.NDArray[np.bool_]:
    """Of which of a slice's tokens the logits are needed."""
    wanted = np.full(len(one.tokens), one.echoed is not None)
    if one.chooser is not None and one.after is None:
        wanted[len(wanted) - 1 - one.drafts :] = True
    return wanted
