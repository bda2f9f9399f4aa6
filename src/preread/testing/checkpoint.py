"""A model in a GGUF file that is not quantised, as `save_pretrained` of transformers would write it.

What the converter of llama.cpp does is undone here: its names, and the order of rows of queries and keys.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from preread.engine import model, tensors
from preread.engine.peek import header_of

Weights = dict[str, npt.NDArray[np.float32]]
Change = Callable[[Weights, dict[str, Any], dict[str, int]], object]
"""Given the weights, the configuration and the ids of the tokenizer's words, before they are written."""

_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS: Final = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER: Final = re.compile(r"blk\.(\d+)\.(\w+)\.(weight)")


def write_checkpoint(folder: Path, gguf: Path, change: Change = lambda *_: None) -> Path:
    """Write a LLaMA with tied embeddings; the weights as 32-bit floats. Its tokenizer.json is only the vocabulary."""
    header = header_of(gguf)
    heads, kv_heads = (header.number(f"llama.attention.{key}") for key in ("head_count", "head_count_kv"))
    weights: Weights = {}
    for name, rows in tensors.plain(tensors.parts(gguf), lambda tensor: True):
        if (match := _LAYER.fullmatch(name)) is None:
            weights[_OTHERS[name]] = rows
            continue
        part = match[2]
        if part in ("attn_q", "attn_k"):
            rows = _unpermuted(rows, heads if part == "attn_q" else kv_heads)
        weights[f"model.layers.{match[1]}.{_NAMES[part]}.{match[3]}"] = rows
    vocabulary, width = weights["model.embed_tokens.weight"].shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": header.number("llama.block_count"),
        "max_position_embeddings": header.number("llama.context_length"),
        "rms_norm_eps": header.metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": header.metadata["llama.rope.freq_base"],
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    words = {text: id for id, text in enumerate(_texts(gguf))}
    change(weights, config, words)
    folder.mkdir()
    _write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))
    return folder


def _unpermuted(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _texts(gguf: Path) -> list[str]:
    loaded = model.load(gguf, trusted=True, mapped=True)
    try:
        return loaded.texts()
    finally:
        loaded.close()


def _write_safetensors(path: Path, weights: Weights) -> None:
    head, at = dict[str, Any](), 0
    for name, rows in weights.items():
        head[name] = {"dtype": "F32", "shape": rows.shape, "data_offsets": [at, at + rows.nbytes]}
        at += rows.nbytes
    written = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        for rows in weights.values():
            file.write(rows.astype("<f4").tobytes())
