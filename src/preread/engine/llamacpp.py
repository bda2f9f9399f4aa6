"""The inference engine: llama.cpp through llama-cpp-python, with the KV cache opened up.

One `LlamaCpp` is a loaded model and one unified KV cache. Many are served by `runner`, which computes steps, and by
`cache`, which says whose cells are whose; `session` holds one context at a time. Sharing is `llama_memory_seq_cp`:
nothing is copied, a context's KV exists once.

It knows nothing of contexts' names, segments or links.
"""

import ctypes
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preread import limits
from preread.codec.rope import Ropes
from preread.compiled import vector_bits
from preread.engine import cells, model
from preread.engine.attention import Attention, attends_in_tiles
from preread.engine.cache import Cache, Tensors
from preread.engine.chat import ChatTemplate
from preread.engine.chooser import Chooser
from preread.engine.context import SCRATCH, SEQUENCES, cells_of, open_context, outputs_of
from preread.engine.context import CacheType as CacheType
from preread.engine.gate import Gate
from preread.engine.ggml import CacheTensors, Embeddings, find_embeddings, library
from preread.engine.grammar import Grammars
from preread.engine.graph import Graph
from preread.engine.infill import FimTokens
from preread.engine.loaded import Loaded
from preread.engine.marks import Prompt
from preread.engine.model import Spec
from preread.engine.native import Native
from preread.engine.native import Tokens as Tokens
from preread.engine.peek import header_of
from preread.engine.placement import Placement
from preread.engine.rotation import find_ropes, for_short_contexts
from preread.engine.runner import Runner
from preread.engine.sampling import Sampling, usual
from preread.engine.session import ECHO_TOKENS, Session
from preread.engine.states import StateTensors
from preread.errors import EngineError, UsageError
from preread.plan.legality import is_whole

_SEEN_TOKENS = (8, 1)
"""Graphs of so many tokens are looked at as an engine starts: recurrent layers have one way for a single token."""

BATCH_TOKENS = 512
"""Prefill goes in batches of so many tokens from the context's start; the same split gives bit-identical KV."""


class LlamaCpp:
    """A loaded model with its KV cache. Not thread-safe, except where a method says so.

    Attributes:
        spec: of the model.
        threads: that compute.
        scored_tokens: how many tokens one call of `session.score` may have.
        ropes: how each layer rotates K; none where KV cannot be exchanged.
        attention: what computes attention instead of llama.cpp; None: nothing does.
        runner, cache: for many at once.
        session: for one at a time.
    """

    def __init__(
        self, spec: Spec, loaded: Loaded, native: Native, threads: int, scored_tokens: int, cache: CacheType
    ) -> None:
        self.spec, self.threads, self.scored_tokens, self.native = spec, threads, scored_tokens, native
        self._loaded, self._closed = loaded, False
        self.attention: Attention | None = None
        self.ropes: Ropes = ()
        self._embeddings: Embeddings | None = None
        why_not = spec.no_injection if cache == "f16" else f"its cache is kept as {cache}"
        tensors = why_not or self._opened()
        outputs, whole = outputs_of(native.sequences, scored_tokens), is_whole(spec.sight)
        layout = cells.layout(spec.layers, planes=spec.planes)
        self.cache = Cache(native.context, layout, tensors, SCRATCH, whole=whole)
        placement = None
        if not isinstance(tensors, str):
            keys = [tensors.rows.key_at(part.layers[0]) for part in layout.parts]
            placement = Placement(library(), native.gate, keys)
        layers, spare, tiled = spec.geometry.layers, SCRATCH if whole else None, self.cache.tiled
        self.runner = Runner(native.context, native.gate, native.batch, layers, outputs, placement, spare, tiled)
        self.session = Session(spec, native, self.runner, self.cache, self.chooser)

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
        mapped: bool = False,
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
            mapped: little is going to be computed: see `loaded.load`.

        Raises:
            UsageError: the file is not a model that llama.cpp can load.
            EngineError: there is not enough memory for the KV cache.
        """
        threads = threads or limits.cpus()
        loaded = model.load(path, trusted=trusted, mapped=mapped)
        spec = model.spec(loaded, path, name or path.stem, window_tokens)
        if for_short_contexts(header_of(path), cells_of(spec, kv_memory_bytes)):
            spec = model.apart(spec)
        ggml = library()
        gate = Gate(ctypes.cast(ggml.ggml_get_name, ctypes.c_void_p).value or 0)
        scored = max(scored_tokens, ECHO_TOKENS)
        context = open_context(loaded, spec, gate, BATCH_TOKENS, threads, scored, cache, kv_memory_bytes)
        return cls(spec, loaded, Native(context, gate, BATCH_TOKENS, spec.vocab_size), threads, scored_tokens, cache)

    def _opened(self) -> Tensors | str:
        """The cache's tensors, found in warm-up decodes, or why they cannot be used.

        When they are read, and the form of a sequence's saved state, is learnt as well.
        """
        native, ggml, spec = self.native, library(), self.spec
        layout, graph = cells.layout(spec.layers, planes=spec.planes), Graph(ggml, spec.geometry.layers)
        tensors: Tensors | str
        try:
            for tokens in _SEEN_TOKENS:
                graph.begin()
                native.observe(graph.see, tokens)
            rows = CacheTensors(ggml, graph.found, spec.layers)
            states = None if layout.states is None else StateTensors(ggml, graph.found, layout.states)
            tensors = Tensors(rows, states)
            native.gate.follow(graph.order())
            self.ropes = find_ropes(ggml, native.observe, spec.geometry)
            self._embeddings = find_embeddings(ggml, native.observe, spec.vocab_size)
            cells.check_form(native.context, layout)
            if attends_in_tiles(bits := vector_bits()):
                self.attention = Attention(ggml, bits)
                native.gate.prepare(self.attention)
        except EngineError as error:
            tensors = str(error)
        native.clear()
        return tensors

    def close(self) -> None:
        """Free everything; the object is of no use afterwards."""
        if not self._closed:
            if "chat" in self.__dict__ and self.chat is not None:  # somebody has used it
                self.chat.close()
            self.native.close()
            self._loaded.close()
        self._closed = True

    def tokenize(self, text: str, *, special: bool = True, start: bool = False) -> Tokens:
        """Token ids of a text. `special`: read control tokens in it as such; `start`: add BOS if the model wants it."""
        return self._loaded.tokenize(text, special=special, start=start)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of a token; control tokens have none unless `special`."""
        return self._loaded.piece(token, special=special)

    def control(self, text: str) -> int | None:
        """The id of the control token that a text is, if it is one."""
        return self._loaded.control(text)

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

    @cached_property
    def fim(self) -> FimTokens | None:
        """The model's tokens for filling in the middle, if it has them."""
        return self._loaded.fim()

    @cached_property
    def grammars(self) -> Grammars:
        """What makes constraints of grammars for this model's vocabulary. Thread-safe."""
        return Grammars(self._loaded.words)

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
        loaded, grammar = self._loaded, sampling.grammar
        constraint = None if grammar is None else self.grammars.constraint(grammar)
        return Chooser(sampling, prompt, loaded.vocab, self.spec.vocab_size, loaded.ends, self.piece, constraint)

    @property
    def no_injection(self) -> str | None:
        """Why KV is neither exported nor injected; None: it is."""
        return self.cache.closed

    @no_injection.setter
    def no_injection(self, why: str | None) -> None:
        self.cache.closed = why

    @property
    def no_rows(self) -> str | None:
        """Why a context is not a KV row per token, or these can be neither exported nor injected; None: it is."""
        return self.no_injection or self.spec.no_rows

    @property
    def in_part(self) -> bool:
        """Whether a part of a sequence can be shared, and its end be taken back."""
        return self.no_injection is None and not is_whole(self.spec.sight)

    @property
    def cells(self) -> int:
        """How many tokens the KV cache has room for."""
        return self.native.cells

    @property
    def kv_memory_bytes(self) -> int:
        """Memory of the KV cache, as far as it is rows of tokens."""
        return self.cells * self.spec.token_bytes

    @property
    def sequences(self) -> range:
        """Ids of the sequences that `runner` and `cache` may be given."""
        return range(SEQUENCES, self.native.sequences)
