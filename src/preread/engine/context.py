"""A llama.cpp context as preread needs it: one unified cache of a few sequences, flash attention, gated evaluation."""

import ctypes
from typing import Final, Literal

import llama_cpp

from preread.engine.gate import Gate
from preread.engine.loaded import Loaded
from preread.engine.model import Spec
from preread.errors import EngineError

CacheType = Literal["f16", "q8_0", "q4_0"]

CONTEXT, REQUEST, SCRATCH = 0, 1, 2
"""The sequences of whoever has one context at a time, and one that is empty between two calls."""

SEQUENCES, WINDOWS = 3, 8
"""Sequences of every engine, and how many more there are for windows that are scored."""

_TESTED: Final = 3
"""Sequences that the engine's self-test takes."""

MOST_SEQUENCES: Final = llama_cpp.llama_max_parallel_sequences()
MOST_OUTPUTS: Final = 128
"""Tokens of a step whose logits may be wanted in any case."""
_FEW_SEQUENCES: Final = SEQUENCES + 6
"""Of an engine that many share, at least."""
_STATES_SHARE: Final = 0.25
"""So much of a cache's memory may be states: one for each sequence."""

_PADDED: Final = 256
"""Cells of a cache are a multiple of so many."""

_CACHE_TYPES: dict[CacheType, int] = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}


def open_context(
    loaded: Loaded,
    spec: Spec,
    gate: Gate,
    batch_tokens: int,
    threads: int,
    scored_tokens: int,
    cache: CacheType,
    kv_memory_bytes: int | None,
) -> object:
    """A context of a loaded model, whose batches have up to `batch_tokens` tokens.

    kv_memory_bytes: of its cache, which many share; at least a window's. None: one answers at a time, in one window.

    Raises:
        EngineError: there is not enough memory for its cache.
    """
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = cells_of(spec, kv_memory_bytes)
    parameters.n_batch = parameters.n_ubatch = batch_tokens
    few = SEQUENCES + (_TESTED if spec.recurrent else WINDOWS)
    parameters.n_seq_max = few if kv_memory_bytes is None else sequences_of(spec, kv_memory_bytes)
    parameters.n_outputs_max = outputs_of(parameters.n_seq_max, scored_tokens)
    parameters.type_k = parameters.type_v = _CACHE_TYPES[cache]
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    parameters.kv_unified = True
    parameters.no_perf = True
    parameters.cb_eval = ctypes.cast(gate.callback, llama_cpp.ggml_backend_sched_eval_callback)
    parameters.cb_eval_user_data = gate.user_data
    context = llama_cpp.llama_init_from_model(loaded.model, parameters)
    if not context:
        raise EngineError(
            f"no KV cache of {spec.window_tokens} tokens could be made for {spec.name}: try a smaller --ctx-size"
        )
    return context


def cells_of(spec: Spec, kv_memory_bytes: int | None) -> int:
    """How many tokens the cache of an engine has room for."""
    if kv_memory_bytes is None:
        return spec.window_tokens
    if not spec.token_bytes:  # or it keeps states only, and tokens take nothing
        return _FEW_SEQUENCES * spec.window_tokens if spec.recurrent else spec.window_tokens
    rows_bytes = max(0, kv_memory_bytes - spec.state_bytes * sequences_of(spec, kv_memory_bytes))
    return max(spec.window_tokens, rows_bytes // spec.token_bytes // _PADDED * _PADDED)


def sequences_of(spec: Spec, kv_memory_bytes: int) -> int:
    """How many sequences an engine has that many share. Of a model with states each takes one, used or not."""
    if spec.state_bytes:
        most = SEQUENCES + int(_STATES_SHARE * kv_memory_bytes) // spec.state_bytes
        return int(min(MOST_SEQUENCES, max(_FEW_SEQUENCES, most)))
    return MOST_SEQUENCES if spec.no_injection is None else _FEW_SEQUENCES


def outputs_of(sequences: int, scored_tokens: int) -> int:
    """How many tokens' logits a step of an engine may give: llama.cpp ends the process where more are wanted."""
    return max(sequences, scored_tokens, MOST_OUTPUTS)
