"""One context at a time, and one request behind it: what a cloud, fits and measurements do with an engine.

Sequence 0 is the context, in cells 0 … N−1, and sequence 1 the prompt and answer behind it. The context gets there
either by `prefill`, or by `reserve` and then `inject` from other threads, while `generate` or `score` already computes
the layers that have arrived (see `gate.py`). Many at once are the business of `runner.py` and `cache.py`.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine import cells
from preread.engine.base import Slice
from preread.engine.cache import Cache, Rows
from preread.engine.chooser import Chooser
from preread.engine.context import CONTEXT as CONTEXT
from preread.engine.context import REQUEST, SEQUENCES
from preread.engine.model import Spec
from preread.engine.native import Native
from preread.engine.runner import Runner
from preread.engine.sampling import Sampled, Sampling
from preread.errors import Cancelled, EngineError, UsageError
from preread.values import KVBlock, Span, StateBlock

Tokens = npt.NDArray[np.int32]

ECHO_TOKENS: Final = 16
"""A prompt whose own log-probabilities are wanted goes in batches of so many: each row of logits takes memory."""


class Session:
    """The one context that an engine holds when it does not serve many. Not thread-safe, except where a method says so.

    Args:
        spec: of the model.
        native: llama.cpp's context.
        runner, cache: the engine's.
        chooser: makes what chooses the tokens of an answer to a prompt.
    """

    def __init__(
        self,
        spec: Spec,
        native: Native,
        runner: Runner,
        cache: Cache,
        chooser: Callable[[Sampling, Tokens], Chooser],
    ) -> None:
        self._spec, self._native, self._runner, self._cache, self._chooser = spec, native, runner, cache, chooser
        self._context_tokens, self._loading, self._open_layers = 0, False, 0
        self._rows: Rows | None = None
        self._opening = threading.Lock()

    @property
    def context_tokens(self) -> int:
        """How many tokens of context sequence 0 holds."""
        return self._context_tokens

    def clear(self, *, wipe: bool = False) -> None:
        """Forget everything in the cache; with `wipe`, zero its bytes too, as after any failure."""
        self._native.clear(wipe=wipe)
        self._context_tokens, self._loading, self._open_layers, self._rows = 0, False, 0, None

    def prefill(
        self,
        tokens: Tokens,
        progress: Callable[[int], None] | None = None,
        scored: Sequence[Span] = (),
        start: int = 0,
    ) -> npt.NDArray[np.float32] | None:
        """Compute a context, in batches that end where those do that begin at its start. `cancel` ends it.

        Args:
            tokens: the context's, from its start.
            progress: is told how many were computed.
            scored: where to take logits on the way, in order, without overlap, and of no more tokens in a batch than
                the engine was opened to score; not before `start`.
            start: so many tokens are held already, computed or injected, and stay as they are; 0: none are.

        Returns:
            Logits (tokens of `scored`, vocab), if there are any: what the context's KV is does not depend on it.

        Raises:
            UsageError: it does not fit the window, or other than `start` tokens are held.
            Cancelled: somebody called `cancel`; nothing is held then.
            EngineError: llama.cpp failed; nothing is held then.
        """
        self.check_room(len(tokens))
        if not start:
            self.clear()
        elif start != self._context_tokens:
            raise UsageError(f"{self._context_tokens} tokens are held, and a context is to be computed behind {start}")
        self._native.gate.arm_open()
        wanted = np.zeros(len(tokens), bool)
        for span in scored:
            wanted[span.start : span.stop] = True
        found = []
        try:
            for batch in batches(Span(start, len(tokens)), self._native.batch.size_tokens):
                these = slice(batch.start, batch.stop)
                self._native.batch.clear()
                self._native.batch.add(tokens[these], batch.start, CONTEXT, wanted[these])
                self._native.run(gated=True)
                if count := int(wanted[these].sum()):
                    found.append(self._native.rows(count).copy())
                if progress:
                    progress(batch.stop)
        except (Cancelled, EngineError):
            self.clear(wipe=True)
            raise
        self._native.gate.disarm()
        self._context_tokens, self._loading = len(tokens), False
        return np.concatenate(found) if scored else None

    def export(self, tokens: Span, layers: Span) -> KVBlock:
        """Copy KV of the context out of the cache.

        Raises:
            EngineError: this model's cache cannot be read, or the span is not of the context.
        """
        if tokens.stop > self._context_tokens:
            raise EngineError(f"only {self._context_tokens} tokens of context are in the cache")
        rows = self._cache.tensors.rows
        k, v = (np.empty(shape, np.float16) for shape in cells.shapes_of(self._spec.layers, len(tokens), layers))
        for i, layer in enumerate(cells.having_rows(self._spec.layers, layers)):
            k[i], v[i] = rows.read(layer, tokens.start, len(tokens))
        return KVBlock(tokens, layers, k, v)

    def export_state(self, layers: Sequence[int]) -> StateBlock:
        """Copy the states that some recurrent layers have of the context.

        Raises:
            EngineError: this model's states cannot be read, or it has none; or there is no context.
        """
        return self._cache.export_state(CONTEXT, layers)

    def reserve(self, tokens: int) -> None:
        """Make room for a context that is going to be injected: cells and positions, without computing anything.

        The next `generate` waits before each layer until `open_layers` lets it go on.

        Raises:
            UsageError: it does not fit the window.
            EngineError: llama.cpp did not give the cells that were asked for; nothing is held then.
        """
        self.check_room(tokens)
        self.clear()
        try:
            self._rows = self._cache.reserve(CONTEXT, tokens)
            for found in self._rows.parts:
                if not np.array_equal(found[found >= 0], np.flatnonzero(found >= 0)):
                    raise EngineError("llama.cpp did not allocate the cells in order")
        except EngineError:
            self.clear(wipe=True)
            raise
        self._context_tokens, self._loading = tokens, True
        self._native.gate.arm()

    def inject(self, block: KVBlock) -> None:
        """Write KV into reserved cells. Thread-safe for different blocks, also while `generate` runs behind the gate.

        Raises:
            EngineError: the block does not fit what was reserved.
        """
        rows, layers = self._cache.tensors.rows, self._spec.layers
        inside = 0 <= block.layers.start and block.layers.stop <= len(layers)
        expected = cells.shapes_of(layers, len(block.tokens), block.layers) if inside else None
        if (block.k.shape, block.v.shape) != expected or block.tokens.stop > self._context_tokens:
            raise EngineError(f"a KV block of shape {block.k.shape} does not fit the reserved {expected}")
        for i, layer in enumerate(cells.having_rows(layers, block.layers)):
            rows.write(layer, block.tokens.start, block.k[i], block.v[i])

    def inject_state(self, block: StateBlock) -> None:
        """Write states of the context, as `inject` does KV.

        Raises:
            EngineError: the block does not fit what was reserved.
        """
        if self._rows is None:
            raise EngineError("states were to be written, and nothing was reserved")
        self._cache.inject_state(self._rows, block)

    def open_layers(self, layers: int) -> None:
        """All KV of the first `layers` layers is in place. Thread-safe."""
        with self._opening:
            self._open_layers = max(self._open_layers, layers)
            self._native.gate.open(layers, self._spec.geometry.layers)

    def cancel(self) -> None:
        """End the `prefill`, `compute` or `generate` that is under way within about one layer's time. Thread-safe."""
        self._native.gate.cancel()

    @property
    def waiting_for_layer(self) -> int:
        """The layer whose KV the engine waits for; −1 when it does not wait. Thread-safe."""
        return self._native.gate.waiting

    def generate(
        self, prompt: Tokens, sampling: Sampling, *, reuse: int | None = None
    ) -> Generator[Sampled, None, None]:
        """Answer a prompt that follows the context; the prompt's and the answer's KV are dropped at the end.

        Args:
            prompt: token ids after the first `reuse` tokens of context; at least one.
            sampling: how to choose tokens, and whether to give the prompt's own first.
            reuse: how many tokens of context precede the prompt; all of it by default, 0 for none.

        Raises:
            UsageError: the prompt is empty or does not fit the window.
            Cancelled: somebody called `cancel` during the prompt's prefill.
            EngineError: llama.cpp failed.
        """
        reuse = self._context_tokens if reuse is None else reuse
        if not len(prompt):
            raise UsageError("the prompt is empty")
        self.check_room(self._context_tokens + len(prompt), "the prompt")
        self._cache.share(CONTEXT, REQUEST, Span(0, reuse))
        echo = sampling.prompt_logprobs and sampling.top_logprobs is not None
        chooser = self._chooser(sampling, prompt)
        count = min(sampling.max_tokens, self._spec.window_tokens - self._context_tokens - len(prompt))
        try:
            steps = yield from self._prompted(prompt, reuse, chooser, echo=echo)
            self._loading = False
            for position in range(reuse + len(prompt), reuse + len(prompt) + count):
                yield from steps
                if steps[-1].end or chooser.ended:
                    break
                self._native.gate.arm_open()
                last = np.array([steps[-1].token], np.int32)
                (steps,) = self._runner.run([Slice(REQUEST, last, position, chooser)])
        finally:
            chooser.close()
            self._cache.free(REQUEST)

    def _prompted(
        self, prompt: Tokens, position: int, chooser: Chooser, *, echo: bool
    ) -> Generator[Sampled, None, list[Sampled]]:
        """Compute a prompt; its tokens where they are wanted, and at last the first that is chosen."""
        size, steps = ECHO_TOKENS if echo else self._native.batch.size_tokens, list[Sampled]()
        for start in range(0, len(prompt), size):
            batch, rest = prompt[start : start + size], prompt[start + size :]
            after, echoed = int(rest[0]) if len(rest) else None, start if echo else None
            self._arm()
            (steps,) = self._runner.run([Slice(REQUEST, batch, position + start, chooser, after=after, echoed=echoed)])
            yield from (step for step in steps if step.given)
        return [step for step in steps if not step.given]

    def score(self, tokens: Tokens, *, reuse: int | None = None) -> npt.NDArray[np.float32]:
        """Logits (tokens, vocab) after each of `tokens`, which follow the context; their KV is dropped at the end.

        Args:
            tokens: at most as many as the engine was opened to score.
            reuse: how many tokens of context precede them; all of it by default.

        Raises:
            UsageError: more tokens than the engine was opened for, or than fit the window.
            Cancelled, EngineError: as `generate` does.
        """
        held = self._context_tokens if reuse is None else reuse
        self.check_room(self._context_tokens + len(tokens), "the text")
        self._cache.share(CONTEXT, REQUEST, Span(0, held))
        self._arm()
        try:
            self._native.decode(tokens, held, REQUEST, gated=True, logits=len(tokens))
            self._native.gate.disarm()
            self._loading = False
            return self._native.rows(len(tokens)).copy()
        finally:
            llama_cpp.llama_memory_seq_rm(self._native.memory, REQUEST, -1, -1)

    def score_windows(self, tokens: Tokens, windows: Sequence[Span]) -> npt.NDArray[np.float32]:
        """Logits (tokens of `windows`, vocab) after each token of some windows of a context, in one batch.

        Each window's tokens are computed anew, behind the KV that is held of all tokens before it; their own KV is
        dropped at the end.

        Args:
            tokens: the context's.
            windows: at most `WINDOWS`, of as many tokens in all as the engine was opened to score.

        Raises:
            UsageError: they do not fit the window of the model besides the context.
            Cancelled, EngineError: as `generate` does.
        """
        total = sum(map(len, windows))
        self.check_room(self._context_tokens + total, "the text")
        self._native.batch.clear()
        for sequence, span in enumerate(windows, SEQUENCES):
            self._cache.share(CONTEXT, sequence, Span(0, span.start))
            self._native.batch.add(tokens[span.start : span.stop], span.start, sequence, np.ones(len(span), bool))
        self._arm()
        try:
            self._native.run(gated=True)
            self._native.gate.disarm()
            self._loading = False
            return self._native.rows(total).copy()
        finally:
            for sequence in range(SEQUENCES, SEQUENCES + len(windows)):
                llama_cpp.llama_memory_seq_rm(self._native.memory, sequence, -1, -1)

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits (vocab,) of the last decoded position, copied."""
        return self._native.last_row().copy()

    def _arm(self) -> None:
        """Let the layers be computed that are open, and forget a cancellation."""
        if not self._loading:
            return self._native.gate.arm_open()
        with self._opening:
            self._native.gate.arm()
            self._native.gate.open(self._open_layers, self._spec.geometry.layers)

    def check_room(self, tokens: int, what: str = "the context") -> None:
        if tokens > self._spec.window_tokens:
            over = tokens - self._spec.window_tokens
            raise UsageError(f"{what} needs {tokens} tokens, {over} more than the window of {self._spec.window_tokens}")


def batches(tokens: Span, size_tokens: int) -> Iterator[Span]:
    """Batches of some tokens of a context, each of which ends where a batch of the whole context does."""
    start = tokens.start
    while start < tokens.stop:
        stop = min(start - start % size_tokens + size_tokens, tokens.stop)
        yield Span(start, stop)
        start = stop
