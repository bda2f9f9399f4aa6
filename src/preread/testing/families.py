"""Small models of random weights of any architecture that llama.cpp knows, made by llama.cpp itself from metadata.

What they say is nonsense, but what they keep of a context is what real models of their family keep: windows, recurrent
states, layers that share KV, latent rows. They have six layers and a vocabulary of 128 words that stand for nothing.
"""

import ctypes
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import llama_cpp
import numpy as np

from preread.engine import ggml
from preread.engine.trial import vouch
from preread.errors import EngineError

LAYERS: Final = 6
VOCABULARY: Final = 128
WINDOW: Final = 32
_WIDTH, _HEADS = 256, 2
_F32, _F16, _U32, _INT8 = 0, 1, 4, 7  # ggml_type, ggml_type, gguf_type, gguf_type

_Field = int | float | str | list[int] | list[bool]
_ALTERNATING: Final = [0, _HEADS] * (LAYERS // 2)
_EXPERTS: Final[dict[str, _Field]] = {
    "expert_count": 2, "expert_used_count": 2, "expert_feed_forward_length": 384, "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 192, "expert_gating_func": 2,
}  # fmt: skip
_SSM: Final[dict[str, _Field]] = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 2 * _WIDTH, "ssm.state_size": 128, "ssm.time_step_rank": _HEADS,
    "ssm.group_count": 2,
}  # fmt: skip
_DELTA: Final[dict[str, _Field]] = _SSM | {"ssm.inner_size": _WIDTH, "full_attention_interval": 2}
_SECTIONS: Final[dict[str, _Field]] = {"rope.dimension_sections": [_WIDTH // _HEADS // 4] * 4}
_BLOCKS: Final[dict[str, _Field]] = {
    "attention.head_count_kv": [0, 0, _HEADS, 0, 0, _HEADS],
    "feed_forward_length": [0, 384, 0, 0, 384, 0],
}
_SCALES: Final[dict[str, _Field]] = {
    "residual_scale": 1.0, "logit_scale": 1.0, "embedding_scale": 1.0, "attention.scale": 0.1,
}  # fmt: skip
_SIZED: Final[dict[str, _Field]] = {
    "attention.key_length": _WIDTH // _HEADS,
    "attention.value_length": _WIDTH // _HEADS,
}

FAMILIES: Final[Mapping[str, Mapping[str, _Field]]] = MappingProxyType(
    {
        "gpt2": {}, "llama": {}, "qwen2": {}, "qwen3": {}, "phi3": {"attention.sliding_window": WINDOW}, "smollm3": {},
        "granite": _SCALES,
        "mistral3": {},
        "qwen2vl": _SECTIONS, "qwen3vl": _SECTIONS,
        "gemma2": {"attention.sliding_window": WINDOW},
        "gemma3": {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2},
        "gemma3n": {
            "block_count": 22, "attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2,
            "embedding_length_per_layer_input": 64, "altup.num_inputs": 4, "altup.active_idx": 0,
        },
        "gemma4": {
            "block_count": 12, "attention.sliding_window": WINDOW, "attention.shared_kv_layers": 6,
            "attention.sliding_window_pattern": [True, False] * 6, "attention.key_length": 256,
            "attention.value_length": 256, "attention.key_length_swa": 128, "attention.value_length_swa": 128,
            "rope.dimension_count": 256, "rope.dimension_count_swa": 128, "embedding_length_per_layer_input": 64,
        },
        "gpt-oss": _EXPERTS | {"attention.sliding_window": WINDOW},
        "cohere2": {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2, "logit_scale": 1.0},
        "olmo2": {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2},
        "lfm2": _SIZED | {"attention.head_count_kv": _ALTERNATING, "shortconv.l_cache": 3},
        "qwen35": _DELTA | _SECTIONS, "qwen3next": _DELTA | _EXPERTS,
        "falcon-h1": _SSM, "mamba": _SSM | {"ssm.group_count": 0}, "mamba2": _SSM,
        "jamba": _SSM | _SIZED | {"attention.head_count_kv": _ALTERNATING, "ssm.group_count": 0},
        "granitehybrid": _SSM | _SIZED | _SCALES | {"attention.head_count_kv": _ALTERNATING},
        "nemotron_h": _SSM | _SIZED | _BLOCKS,
        "rwkv7": {
            "wkv.head_size": 64, "attention.decay_lora_rank": 64, "attention.iclr_lora_rank": 64,
            "attention.value_residual_mix_lora_rank": 64, "attention.gate_lora_rank": 128, "token_shift_count": 2,
        },
        "minicpm3": {
            "attention.q_lora_rank": 64, "attention.kv_lora_rank": 64, "attention.key_length": 96,
            "attention.value_length": 64, "rope.dimension_count": 32, "rope.scaling.original_context_length": 16,
        },
        "deepseek2": _EXPERTS | {
            "leading_dense_block_count": 1, "attention.kv_lora_rank": 64, "attention.q_lora_rank": 64,
            "attention.head_count_kv": 1, "attention.key_length": 96, "attention.value_length": 64,
            "attention.key_length_mla": 96, "attention.value_length_mla": 64, "rope.dimension_count": 32,
        },
    }
)  # fmt: skip
"""Architectures, and what they have beside what all models have."""


def write_family(
    path: Path, architecture: str, seed: int = 0, more: Mapping[str, _Field] = MappingProxyType({})
) -> Path:
    """Write such a model, some megabytes.

    Args:
        path: where to.
        architecture: one of `FAMILIES`.
        seed: of the weights.
        more: metadata that takes the place of what the family has, or is added to it.

    Raises:
        EngineError: this build of llama.cpp cannot make it.
    """
    base = ggml.library()
    described = _described(base, architecture, dict(FAMILIES[architecture]) | dict(more))
    written = ctypes.c_void_p(base.gguf_init_empty())
    base.gguf_set_kv(written, described)
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers, parameters.use_extra_bufts = 0, False
    fill = llama_cpp.llama_model_set_tensor_data_t(_weights(base, written, seed))
    model = llama_cpp.llama_model_init_from_user(described.value, fill, None, parameters)
    try:
        if not model:
            raise EngineError(f"llama.cpp makes no model of architecture {architecture}")
        base.gguf_write_to_file.restype = ctypes.c_bool
        if not base.gguf_write_to_file(written, str(path).encode(), ctypes.c_bool(False)):
            raise EngineError(f"llama.cpp could not write {path}")
    finally:
        if model:
            llama_cpp.llama_model_free(model)
        base.gguf_free(written)
        base.gguf_free(described)
    vouch(path)
    return path


def _described(base: ctypes.CDLL, architecture: str, own: Mapping[str, _Field]) -> ctypes.c_void_p:
    """A `gguf_context` with a model's metadata."""
    fields: dict[str, _Field] = {
        "vocab_size": VOCABULARY, "context_length": 2048, "embedding_length": _WIDTH, "block_count": LAYERS,
        "feed_forward_length": 384, "attention.head_count": _HEADS, "attention.head_count_kv": _HEADS,
        "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    base.gguf_init_empty.restype = ctypes.c_void_p
    made = ctypes.c_void_p(base.gguf_init_empty())
    words = {"general.architecture": architecture, "tokenizer.ggml.model": "test"}
    for key, word in words.items():
        base.gguf_set_val_str(made, key.encode(), word.encode())
    for key, value in (fields | dict(own)).items():
        _set(base, made, f"{architecture}.{key}".encode(), value)
    tokens = (ctypes.c_char_p * VOCABULARY)(*[b"word_%d" % number for number in range(VOCABULARY)])
    base.gguf_set_arr_str(made, b"tokenizer.ggml.tokens", tokens, ctypes.c_size_t(VOCABULARY))
    scores = (ctypes.c_float * VOCABULARY)()
    base.gguf_set_arr_data(made, b"tokenizer.ggml.scores", 6, scores, ctypes.c_size_t(VOCABULARY))
    return made


def _set(base: ctypes.CDLL, made: ctypes.c_void_p, key: bytes, value: _Field) -> None:
    if isinstance(value, list):
        flags = isinstance(value[0], bool)
        items = np.array(value, np.int8 if flags else np.uint32)
        kind = _INT8 if flags else _U32
        base.gguf_set_arr_data(made, key, kind, items.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(value)))
    elif isinstance(value, str):
        base.gguf_set_val_str(made, key, value.encode())
    elif isinstance(value, float):
        base.gguf_set_val_f32(made, key, ctypes.c_float(value))
    else:
        base.gguf_set_val_u32(made, key, ctypes.c_uint32(value))


def _weights(base: ctypes.CDLL, written: ctypes.c_void_p, seed: int) -> Any:
    """Fills a tensor, and notes it in `written`: norms near one, decays below zero, RoPE's factors above."""
    seen = set[str]()

    def fill(address: Any, _: object) -> None:
        place = ctypes.cast(address, ctypes.c_void_p).value
        assert place is not None
        tensor = ggml.Tensor.from_address(place)
        name, count = tensor.name.decode(), int(np.prod(list(tensor.ne)))
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(0, 0.1, count).astype(np.float32)
        if "norm" in name:
            values += 1
        if name.startswith("rope_"):
            values = 1 + 10 * np.abs(values)
        if "ssm_a" in name:
            values = -np.abs(values)
        data = values.astype(np.float16) if tensor.type == _F16 else values
        assert tensor.type in (_F32, _F16), name
        base.ggml_backend_tensor_set(place, data.ctypes.data, 0, data.nbytes)
        if name not in seen:
            seen.add(name)
            base.gguf_add_tensor(written, ctypes.c_void_p(place))

    return fill
