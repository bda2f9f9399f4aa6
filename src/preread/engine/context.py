"""A llama.cpp context as preread needs it: one unified cache of a few sequences, flash attention, gated evaluation."""

import ctypes
from typing import Literal

import llama_cpp

from preread.engine.gate import Gate
from preread.engine.model import Loaded, Spec
from preread.errors import EngineError

CacheType = Literal["f16", "q8_0", "q4_0"]

SEQUENCES, WINDOWS = 3, 8
"""Sequences of every engine, and how many more there are for windows that are scored."""

_CACHE_TYPES: dict[CacheType, int] = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}


def open_context(
    loaded: Loaded, spec: Spec, gate: Gate, batch_tokens: int, threads: int, scored_tokens: int, cache: CacheType
) -> object:
    """A context of a loaded model, whose batches have up to `batch_tokens` tokens.

    Raises:
        EngineError: there is not enough memory for its cache.
    """
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = spec.window_tokens
    parameters.n_batch = parameters.n_ubatch = batch_tokens
    parameters.n_seq_max = SEQUENCES + WINDOWS
    parameters.n_outputs_max = max(parameters.n_seq_max, scored_tokens)
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
