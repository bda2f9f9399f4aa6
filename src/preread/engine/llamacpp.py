"""The inference engine: llama.cpp through llama-cpp-python, with the KV cache opened up.

One `LlamaCpp` holds one llama.cpp context with two sequences: sequence 0 is the shared context, in cells 0 … N−1, and
sequence 1 the prompt and answer of the request being served, behind it. Sharing is `llama_memory_seq_cp`: nothing is
copied, the context's KV exists once. The context gets into sequence 0 either by `prefill`, or by `reserve` and then
`inject` from other threads while `generate` already computes the layers that have arrived (see `gate.py`).

It knows nothing of contexts' names, segments or links.
"""

import ctypes
import threading
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread import limits
from preread.compiled import vector_bits
from preread.engine import cells, model
from preread.engine.attention import Attention, attends_in_tiles
from preread.engine.base import Slice
from preread.engine.batch import Batch
from preread.engine.cache import Cache
from preread.engine.chat import ChatTemplate
from preread.engine.chooser import Chooser
from preread.engine.context import SEQUENCES, open_context, outputs_of
from preread.engine.context import CacheType as CacheType
from preread.engine.gate import Gate
from preread.engine.ggml import CacheTensors, Embeddings, Queries, Residuals, find_cache, find_embeddings, library
from preread.engine.marks import Prompt
from preread.engine.model import Spec
from preread.engine.runner import Runner
from preread.engine.sampling import Sampled, Sampling, usual
from preread.errors import Cancelled, EngineError, UsageError
from preread.values import KVBlock, Span

Tokens = npt.NDArray[np.int32]

_ECHO_TOKENS = 16
"""A prompt whose own log-probabilities are wanted goes in batches of so many: each row of logits takes memory."""

BATCH_TOKENS = 512
"""Prefill goes in batches of so many tokens from the context's start; the same split gives bit-identical KV."""

_CONTEXT, _REQUEST, _SCRATCH = 0, 1, 2


class LlamaCpp:
    """A loaded model with its KV cache. Not thread-safe, except where a method says so."""

    def __init__(
        self, spec: Spec, loaded: "model.Loaded", context: object, gate: Gate, threads: int, scored_tokens: int
    ) -> None:
        self.spec, self.threads, self.scored_tokens = spec, threads, scored_tokens
        self.no_injection: str | None = spec.no_injection
        self._loaded, self._context, self._gate = loaded, context, gate
        self._memory = llama_cpp.llama_get_memory(context)
        self._batch = Batch(BATCH_TOKENS)
        outputs = outputs_of(int(llama_cpp.llama_n_seq_max(context)), scored_tokens)
        self.runner = Runner(context, gate, self._batch, spec.geometry.layers, outputs)
        self.cache = Cache(context, spec.geometry, None, _SCRATCH)
        self.attention: Attention | None = None  # llama.cpp's own
        self._tensors: CacheTensors | None = None
        self._embeddings: Embeddings | None = None
        self._context_tokens, self._loading, self._open_layers = 0, False, 0
        self._opening = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str | None = None,
        window_tokens: int = 0,
        threads: int = 0,
        scored_tokens: int = 0,
        cache: CacheType = "f16",
        trusted: bool = False,
        kv_memory_bytes: int | None = None,
    ) -> "LlamaCpp":
        """Load a GGUF file.

        Args:
            path: the file.
            name: what to call the model; by default the file's stem.
            window_tokens: size of the KV cache in tokens; 0: the model's own window, at most 8,192.
            threads: 0: as many as this process may use.
            scored_tokens: how many tokens one call of `score` may have.
            cache: how llama.cpp keeps KV; with anything but "f16", KV is neither exported nor injected.
            trusted: it need not be tried in another process first; see `trial.py`.
            kv_memory_bytes: of a cache that many sequences share, see `cache` and `runner`; at least a window's. None:
                there is room for one window.

        Raises:
            UsageError: the file is not a model that llama.cpp can load.
            EngineError: there is not enough memory for the KV cache.
        """
        threads = threads or limits.cpus()
        loaded = model.load(path, trusted=trusted)
        spec = model.spec(loaded, path, name or path.stem, window_tokens)
        ggml = library()
        gate = Gate(ctypes.cast(ggml.ggml_get_name, ctypes.c_void_p).value or 0)
        scored = max(scored_tokens, _ECHO_TOKENS)
        context = open_context(loaded, spec, gate, BATCH_TOKENS, threads, scored, cache, kv_memory_bytes)
        engine = cls(spec, loaded, context, gate, threads, scored_tokens)
        if cache != "f16":
            engine.no_injection = f"its cache is kept as {cache}"
        if engine.no_injection is None:
            engine._open_cache(ggml)
        engine.cache = Cache(context, spec.geometry, engine._tensors, _SCRATCH)
        return engine

    def _open_cache(self, ggml: ctypes.CDLL) -> None:
        """Find the cache's tensors in a warm-up decode, and learn the form of a sequence's saved state."""
        try:
            self._tensors = find_cache(ggml, self._warm_up, self.spec.geometry)
            self._embeddings = find_embeddings(ggml, self._warm_up, self.spec.vocab_size)
            cells.check_form(self._context, self.spec.geometry)
            if attends_in_tiles(bits := vector_bits()):
                self.attention = Attention(ggml, bits)
                self._gate.prepare(self.attention)
        except EngineError as error:
            self._tensors, self.no_injection = None, str(error)
        self.clear()

    def _warm_up(self, see: Callable[[int], None]) -> None:
        """Decode one token, and call `see` with the address of every node of the graph."""
        llama_cpp.llama_memory_clear(self._memory, False)
        self._gate.observe(lambda: self._decode(np.zeros(1, np.int32), 0, _CONTEXT), see)

    def close(self) -> None:
        """Free everything; the object is of no use afterwards."""
        if self._context:
            if "chat" in self.__dict__ and self.chat is not None:  # somebody has used it
                self.chat.close()
            self._batch.close()
            llama_cpp.llama_free(self._context)
            self._gate.close()
            self._loaded.close()
        self._context = None

    # Text

    def tokenize(self, text: str, *, special: bool = True, start: bool = False) -> Tokens:
        """Token ids of a text. `special`: read control tokens in it as such; `start`: add BOS if the model wants it."""
        return self._loaded.tokenize(text, special=special, start=start)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of a token; control tokens have none unless `special`."""
        return self._loaded.piece(token, special=special)

    def tokenize_prompt(self, prompt: Prompt, *, start: bool = True, most: int | None = None) -> Tokens:
        """Token ids of a rendered chat, in whose contents no control token is read; `start`: nothing precedes it.

        BOS is added where the model wants it and the template did not write it. After `most` tokens, the part in which
        they end is the last one that is read: the prompt is too long then.
        """
        if self.chat is None:
            return self.tokenize(prompt.text, special=False, start=start)
        adds_bos = start and not (self.chat.bos and prompt.text.startswith(self.chat.bos))
        ids: list[Tokens] = []
        count = 0
        for text, own in self.chat.controls.parts(prompt):
            ids.append(self.tokenize(text, special=own, start=adds_bos and not ids))
            count += len(ids[-1])
            if most is not None and count > most:
                break
        return np.concatenate(ids) if ids else self.tokenize("", start=adds_bos)

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """The model's chat template, if it has one."""
        return self._loaded.chat_template(self.tokenize)

    @cached_property
    def sampling(self) -> Sampling:
        """How tokens are chosen where a request does not say: as the model's file recommends."""
        return usual(self._loaded.metadata)

    def check_tokens(self, tokens: Tokens) -> None:
        """Raises UsageError when an id is not of this model's vocabulary."""
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.spec.vocab_size):
            raise UsageError(f"token ids must lie in 0 … {self.spec.vocab_size - 1} for {self.spec.name}")

    def embeddings(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """The model's embeddings (tokens, width) of token ids. Thread-safe.

        Raises:
            UsageError: an id is not of this model's vocabulary.
            EngineError: this model's embeddings cannot be read.
        """
        self.check_tokens(tokens)
        if self._embeddings is None:
            raise EngineError(f"the embeddings of {self.spec.name} cannot be read: {self.no_injection}")
        return self._embeddings.rows(tokens)

    def chooser(self, sampling: Sampling, prompt: Tokens) -> Chooser:
        """What chooses the tokens of one answer to `prompt`, on the engine's thread; close it."""
        loaded = self._loaded
        return Chooser(sampling, prompt, loaded.vocab, self.spec.vocab_size, loaded.ends, self.piece)

    @property
    def cells(self) -> int:
        """How many tokens the KV cache has room for."""
        return int(llama_cpp.llama_n_ctx(self._context))

    @property
    def kv_memory_bytes(self) -> int:
        """Memory of the KV cache, as far as it is rows of tokens."""
        return 2 * self.cells * self.spec.geometry.values_per_token

    @property
    def sequences(self) -> range:
        """Ids of the sequences that `runner` and `cache` may be given."""
        return range(SEQUENCES, int(llama_cpp.llama_n_seq_max(self._context)))

    # The shared context

    @property
    def context_tokens(self) -> int:
        """How many tokens of context sequence 0 holds."""
        return self._context_tokens

    def clear(self, *, wipe: bool = False) -> None:
        """Forget everything in the cache; with `wipe`, zero its bytes too, as after any failure."""
        self._gate.disarm()
        llama_cpp.llama_memory_clear(self._memory, wipe)
        self._context_tokens, self._loading, self._open_layers = 0, False, 0

    def prefill(
        self, tokens: Tokens, progress: Callable[[int], None] | None = None, scored: Sequence[Span] = ()
    ) -> npt.NDArray[np.float32] | None:
        """Compute a context from its start, in batches of `BATCH_TOKENS`. `cancel` ends it.

        Args:
            tokens: the context's.
            progress: is told how many were computed.
            scored: where to take logits on the way, in order, without overlap, and of no more tokens in a batch than
                the engine was opened to score.

        Returns:
            Logits (tokens of `scored`, vocab), if there are any: what the context's KV is does not depend on it.

        Raises:
            UsageError: it does not fit the window.
            Cancelled: somebody called `cancel`; nothing is held then.
            EngineError: llama.cpp failed; nothing is held then.
        """
        self._check_room(len(tokens))
        self.clear()
        self._gate.arm_open()
        wanted = np.zeros(len(tokens), bool)
        for span in scored:
            wanted[span.start : span.stop] = True
        found = []
        try:
            for start in range(0, len(tokens), BATCH_TOKENS):
                these = slice(start, start + BATCH_TOKENS)
                self._batch.clear()
                self._batch.add(tokens[these], start, _CONTEXT, wanted[these])
                self._run_batch(gated=True)
                if count := int(wanted[these].sum()):
                    found.append(self._rows(count).copy())
                if progress:
                    progress(min(start + BATCH_TOKENS, len(tokens)))
        except (Cancelled, EngineError):
            self.clear(wipe=True)
            raise
        self._gate.disarm()
        self._context_tokens = len(tokens)
        return np.concatenate(found) if scored else None

    def export(self, tokens: Span, layers: Span) -> KVBlock:
        """Copy KV of the context out of the cache.

        Raises:
            EngineError: this model's cache cannot be read, or the span is not of the context.
        """
        if tokens.stop > self._context_tokens:
            raise EngineError(f"only {self._context_tokens} tokens of context are in the cache")
        tensors, shape = self._opened(), self.spec.geometry
        k = np.empty((len(layers), shape.kv_heads, len(tokens), shape.head_dim), np.float16)
        v = np.empty_like(k)
        for i, layer in enumerate(range(layers.start, layers.stop)):
            k[i], v[i] = tensors.read(layer, tokens.start, len(tokens))
        return KVBlock(tokens, layers, k, v)

    def queries(self, tokens: Tokens) -> npt.NDArray[np.float32] | None:
        """Queries (layers, heads, tokens, head_dim) of at most a batch of tokens from a context's start, after RoPE.

        None: this model's graph does not name them. What the engine held is gone.

        Raises:
            UsageError: more than a batch, or than fit the window.
            EngineError: llama.cpp failed.
        """
        if len(tokens) > BATCH_TOKENS:
            raise UsageError(f"queries of {len(tokens)} tokens were asked for: at most {BATCH_TOKENS} go at once")
        self._check_room(len(tokens))
        self.clear()
        found = Queries(library(), len(tokens), self.spec.geometry)
        try:
            self._gate.observe(lambda: self._decode(tokens, 0, _CONTEXT), found.see, found.take)
        finally:
            self.clear(wipe=True)
        return found.all()

    def inputs(
        self, tokens: Tokens, layers: Sequence[int], progress: Callable[[int], None] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Compute a context as `prefill` does; the residual stream that each of `layers` reads, (tokens, width).

        Before layer 0 that is the tokens' embeddings as they are in the file, which some models scale.

        Raises:
            UsageError, Cancelled, EngineError: as `prefill` does; the graph does not show the stream.
        """
        before = {layer - 1 for layer in layers if layer}
        found = Residuals(library(), before)
        self._gate.observe(lambda: self.prefill(tokens, progress), found.see, found.take)
        return [found.of(layer - 1, len(tokens)) if layer else self.embeddings(tokens) for layer in layers]

    def reserve(self, tokens: int) -> None:
        """Make room for a context that is going to be injected: cells and positions, without computing anything.

        The next `generate` waits before each layer until `open_layers` lets it go on.

        Raises:
            UsageError: it does not fit the window.
            EngineError: llama.cpp did not give the cells that were asked for; nothing is held then.
        """
        self._check_room(tokens)
        tensors = self._opened()
        self.clear()
        try:
            span = Span(0, tokens)
            found = cells.allocate(self._context, self.spec.geometry, tensors, span, _CONTEXT, _SCRATCH)
            if not np.array_equal(found, np.arange(tokens)):
                raise EngineError("llama.cpp did not allocate the cells in order")
        except EngineError:
            self.clear(wipe=True)
            raise
        self._context_tokens, self._loading = tokens, True
        self._gate.arm()

    def compute(self, tokens: Tokens, start: int) -> None:
        """Compute tokens start … start+n of a reserved context, of which all earlier ones are in place.

        Other threads may inject other rows meanwhile, of earlier tokens too as long as these were there before.

        Raises:
            EngineError: nothing is reserved there, or llama.cpp failed; what is held is of no use then.
            Cancelled: somebody called `cancel`; these tokens' rows are of no use, everything else is as it was.
        """
        stop = start + len(tokens)
        if not (self._loading and 0 <= start < stop <= self._context_tokens):
            raise EngineError(f"tokens {start} to {stop} of the context are not reserved")
        self._gate.arm_open()
        try:
            for at in range(start, stop, BATCH_TOKENS):
                self._compute(tokens[at - start : at - start + BATCH_TOKENS], at)
        finally:
            self._arm()

    def _compute(self, tokens: Tokens, start: int) -> None:
        """One batch. llama.cpp appends only to a sequence's end, so it is computed in a sequence of its own."""
        memory, stop = self._memory, start + len(tokens)
        llama_cpp.llama_memory_seq_cp(memory, _CONTEXT, _SCRATCH, 0, start)
        llama_cpp.llama_memory_seq_rm(memory, _CONTEXT, start, stop)  # the first free cells: the decode takes them
        try:
            self._decode(tokens, start, _SCRATCH, gated=True)
        finally:
            llama_cpp.llama_memory_seq_cp(memory, _SCRATCH, _CONTEXT, start, stop)
            llama_cpp.llama_memory_seq_rm(memory, _SCRATCH, -1, -1)

    def inject(self, block: KVBlock) -> None:
        """Write KV into reserved cells. Thread-safe for different blocks, also while `generate` runs behind the gate.

        Raises:
            EngineError: the block does not fit what was reserved.
        """
        tensors, shape = self._opened(), self.spec.geometry
        expected = (len(block.layers), shape.kv_heads, len(block.tokens), shape.head_dim)
        inside = (
            0 <= block.layers.start and block.layers.stop <= shape.layers and block.tokens.stop <= self._context_tokens
        )
        if block.k.shape != expected or block.v.shape != expected or not inside:
            raise EngineError(f"a KV block of shape {block.k.shape} does not fit the reserved {expected}")
        for i, layer in enumerate(range(block.layers.start, block.layers.stop)):
            tensors.write(layer, block.tokens.start, block.k[i], block.v[i])

    def open_layers(self, layers: int) -> None:
        """All KV of the first `layers` layers is in place. Thread-safe."""
        with self._opening:
            self._open_layers = max(self._open_layers, layers)
            self._gate.open(layers, self.spec.geometry.layers)

    def cancel(self) -> None:
        """End the `prefill`, `compute` or `generate` that is under way within about one layer's time. Thread-safe."""
        self._gate.cancel()

    @property
    def waiting_for_layer(self) -> int:
        """The layer whose KV the engine waits for; −1 when it does not wait. Thread-safe."""
        return self._gate.waiting

    # The request

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
        self._check_room(self._context_tokens + len(prompt), "the prompt")
        self.cache.share(_CONTEXT, _REQUEST, Span(0, reuse))
        echo = sampling.prompt_logprobs and sampling.top_logprobs is not None
        chooser = self.chooser(sampling, prompt)
        count = min(sampling.max_tokens, self.spec.window_tokens - self._context_tokens - len(prompt))
        try:
            steps = yield from self._prompted(prompt, reuse, chooser, echo=echo)
            self._loading = False
            for position in range(reuse + len(prompt), reuse + len(prompt) + count):
                yield from steps
                if steps[-1].end or chooser.ended:
                    break
                self._gate.arm_open()
                last = np.array([steps[-1].token], np.int32)
                (steps,) = self.runner.run([Slice(_REQUEST, last, position, chooser)])
        finally:
            chooser.close()
            self.cache.free(_REQUEST)

    def _prompted(
        self, prompt: Tokens, position: int, chooser: Chooser, *, echo: bool
    ) -> Generator[Sampled, None, list[Sampled]]:
        """Compute a prompt; its tokens where they are wanted, and at last the first that is chosen."""
        size, steps = _ECHO_TOKENS if echo else BATCH_TOKENS, list[Sampled]()
        for start in range(0, len(prompt), size):
            batch, rest = prompt[start : start + size], prompt[start + size :]
            after, echoed = int(rest[0]) if len(rest) else None, start if echo else None
            self._arm()
            (steps,) = self.runner.run([Slice(_REQUEST, batch, position + start, chooser, after=after, echoed=echoed)])
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
        self._check_room(self._context_tokens + len(tokens), "the text")
        if held:
            llama_cpp.llama_memory_seq_cp(self._memory, _CONTEXT, _REQUEST, 0, held)
        self._arm()
        try:
            self._decode(tokens, held, _REQUEST, gated=True, logits=len(tokens))
            self._gate.disarm()
            self._loading = False
            return self._rows(len(tokens)).copy()
        finally:
            llama_cpp.llama_memory_seq_rm(self._memory, _REQUEST, -1, -1)

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
        self._check_room(self._context_tokens + total, "the text")
        self._batch.clear()
        for sequence, span in enumerate(windows, SEQUENCES):
            llama_cpp.llama_memory_seq_cp(self._memory, _CONTEXT, sequence, 0, span.start)
            self._batch.add(tokens[span.start : span.stop], span.start, sequence, np.ones(len(span), bool))
        self._arm()
        try:
            self._run_batch(gated=True)
            self._gate.disarm()
            self._loading = False
            return self._rows(total).copy()
        finally:
            for sequence in range(SEQUENCES, SEQUENCES + len(windows)):
                llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits (vocab,) of the last decoded position, copied."""
        return self._last_row().copy()

    def _last_row(self) -> npt.NDArray[np.float32]:
        """The same, in llama.cpp's own memory."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.spec.vocab_size,))

    def _rows(self, count: int) -> npt.NDArray[np.float32]:
        """Logits (count, vocab) of the last batch, which wanted so many: llama.cpp's own memory, until the next."""
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self.spec.vocab_size))

    def _arm(self) -> None:
        """Let the layers be computed that are open, and forget a cancellation."""
        if not self._loading:
            return self._gate.arm_open()
        with self._opening:
            self._gate.arm()
            self._gate.open(self._open_layers, self.spec.geometry.layers)

    def _decode(self, tokens: Tokens, position: int, sequence: int, *, gated: bool = False, logits: int = 0) -> None:
        """One batch; `logits`: of how many of its last tokens."""
        self._batch.clear()
        self._batch.add(tokens, position, sequence, np.arange(len(tokens)) >= len(tokens) - logits)
        self._run_batch(gated=gated)

    def _run_batch(self, *, gated: bool) -> None:
        status = llama_cpp.llama_decode(self._context, self._batch.native)
        if gated and self._gate.cancelled:
            raise Cancelled("cancelled during prefill")
        if status:
            raise EngineError(f"llama_decode failed with status {status} at position {self._batch.native.pos[0]}")

    def _opened(self) -> CacheTensors:
        if self._tensors is None or self.no_injection:
            raise EngineError(f"KV of {self.spec.name} cannot be exchanged: {self.no_injection}")
        return self._tensors

    def _check_room(self, tokens: int, what: str = "the context") -> None:
        if tokens > self.spec.window_tokens:
            over = tokens - self.spec.window_tokens
            raise UsageError(f"{what} needs {tokens} tokens, {over} more than the window of {self.spec.window_tokens}")
