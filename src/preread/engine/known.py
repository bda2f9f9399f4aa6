"""What models that many people run say of themselves: of their headers, what decides what they keep of a context. Pure.

The numbers are those of the models' published configurations, under GGUF's names. It must not know what follows from
them: that is `memory.py`'s, which reads a file's own header in the same way.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from preread.engine.gguf import Header, Value

_Fields = Mapping[str, Value]


def _attention(
    layers: int, width: int, heads: int, kv_heads: Value, head_dim: int, more: _Fields = MappingProxyType({})
) -> _Fields:
    return {
        "block_count": layers, "embedding_length": width,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim, "attention.value_length": head_dim, **more,
    }  # fmt: skip


def _window(tokens: int) -> dict[str, Value]:
    return {"attention.sliding_window": tokens}


def _ssm(inner: int, size: int, groups: int) -> dict[str, Value]:
    return {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": size, "ssm.group_count": groups}


def _only(layers: int, attending: set[int], kv_heads: int) -> tuple[int, ...]:
    """KV heads of each layer: a layer without is recurrent."""
    return tuple(kv_heads if layer in attending else 0 for layer in range(layers))


_PLANES: Final[_Fields] = {"rope.dimension_sections": (24, 20, 20, 0)}

_KNOWN: Final[Mapping[str, tuple[str, _Fields]]] = {
    "SmolLM2-135M": ("llama", _attention(30, 576, 9, 3, 64)),
    "Qwen2.5-0.5B": ("qwen2", _attention(24, 896, 14, 2, 64)),
    "Qwen2.5-1.5B": ("qwen2", _attention(28, 1536, 12, 2, 128)),
    "Qwen3-0.6B": ("qwen3", _attention(28, 1024, 16, 8, 128)),
    "Qwen3-4B": ("qwen3", _attention(36, 2560, 32, 8, 128)),
    "Llama-3.2-1B": ("llama", _attention(16, 2048, 32, 8, 64)),
    "Llama-3.2-3B": ("llama", _attention(28, 3072, 24, 8, 128)),
    "Llama-3.1-8B": ("llama", _attention(32, 4096, 32, 8, 128)),
    "Phi-4-mini": ("phi3", _attention(32, 3072, 24, 8, 128)),
    "gemma-2-2b": ("gemma2", _attention(26, 2304, 8, 4, 256, _window(4096))),
    "gemma-3-270m": ("gemma3", _attention(18, 640, 4, 1, 256, _window(512))),
    "gemma-3-1b": ("gemma3", _attention(26, 1152, 4, 1, 256, _window(512))),
    "gemma-3-4b": ("gemma3", _attention(34, 2560, 8, 4, 256, _window(1024))),
    "gemma-3n-E2B": ("gemma3n", _attention(30, 2048, 8, 2, 256, _window(512))),
    "gemma-4-E2B": (
        "gemma4",
        _attention(35, 1536, 8, 1, 512, _window(512) | {
            "attention.shared_kv_layers": 20, "attention.sliding_window_pattern": (True, True, True, True, False) * 7,
            "attention.key_length_swa": 256, "attention.value_length_swa": 256,
        }),
    ),
    "gpt-oss-20b": ("gpt-oss", _attention(24, 2880, 64, 8, 64, _window(128))),
    "Qwen3-VL-2B": ("qwen3vl", _attention(28, 2048, 16, 8, 128, _PLANES)),
    "LFM2-350M": ("lfm2", _attention(16, 1024, 16, _only(16, {2, 5, 8, 10, 12, 14}, 8), 64, {"shortconv.l_cache": 3})),
    "LFM2-1.2B": ("lfm2", _attention(16, 2048, 32, _only(16, {2, 5, 8, 10, 12, 14}, 8), 64, {"shortconv.l_cache": 3})),
    "Qwen3.5-0.8B": ("qwen35", _attention(24, 1024, 8, 2, 256, _ssm(2048, 128, 16) | {"full_attention_interval": 4})),
    "Qwen3.5-4B": ("qwen35", _attention(32, 2560, 16, 4, 256, _ssm(4096, 128, 16) | {"full_attention_interval": 4})),
    "Granite-4.0-H-Micro": (
        "granitehybrid", _attention(40, 2048, 32, _only(40, {5, 15, 25, 35}, 8), 64, _ssm(4096, 128, 1)),
    ),
    "Jamba-v0.1": ("jamba", _attention(32, 4096, 32, _only(32, {4, 12, 20, 28}, 8), 128, _ssm(8192, 16, 0))),
    "Mamba-130m": ("mamba", _attention(24, 768, 0, 0, 0, _ssm(1536, 16, 0))),
    "DeepSeek-V2-Lite": (
        "deepseek2",
        _attention(27, 2048, 16, 1, 576, {"attention.value_length": 512, "attention.key_length_mla": 192}),
    ),
}  # fmt: skip


def known() -> dict[str, Header]:
    """Headers of well-known models by their names, with no more than tells what they keep."""
    return {
        name: Header(
            MappingProxyType(
                {"general.architecture": architecture} | {f"{architecture}.{key}": fields[key] for key in fields}
            ),
            (),
            0,
        )
        for name, (architecture, fields) in _KNOWN.items()
    }
