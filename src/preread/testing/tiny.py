"""A model of random weights that is quick to run: a llama of eight layers, with the tokenizer of a real model's file.

What it says is nonsense, but it is a real GGUF through all of llama.cpp: its answers are as reproducible as any
model's, and they change when the context's KV does. It is shaped so that streaming pays on ordinary links although the
model is small: one narrow KV head, and much to compute for each token.

GGUF (github.com/ggml-org/ggml, docs/gguf.md), version 3: a magic, two counts, typed key-value pairs, the tensors'
names, shapes, types and offsets, and then their data. Only as much is read here as copying key-value pairs takes.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from preread.engine.trial import vouch
from preread.errors import CorruptData

NAME: Final = "tiny"
LAYERS: Final = 8
_WIDTH, _HEADS, _KV_HEADS, _HEAD_DIM = 256, 4, 1, 64
_WINDOW: Final = 2048
_ALIGNMENT: Final = 32
_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9  # gguf_metadata_value_type
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TENSOR_F32, _TENSOR_F16 = 0, 1  # ggml_type
_Weights = npt.NDArray[np.float16] | npt.NDArray[np.float32]


def write_tiny(path: Path, vocabulary: Path, seed: int = 0, most_tokens: int | None = None, hidden: int = 2048) -> Path:
    """Write such a model, some 50 MB.

    Args:
        path: where to.
        vocabulary: GGUF file whose tokenizer and chat template it gets.
        seed: of the weights.
        most_tokens: the vocabulary's first so many only, of one that begins with its control tokens and bytes (None:
            all). Most of what such a small model computes for an answer goes into the odds of 50,000 tokens.
        hidden: channels of the feed-forward layers, which are most of what it computes for a context.

    Raises:
        CorruptData: `vocabulary` is not a GGUF file.
    """
    with vocabulary.open("rb") as file:
        found = {key: pair for key, pair in _pairs(file) if key.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in found:
        raise CorruptData("schema", f"{vocabulary.name} has no tokenizer")
    size = struct.unpack_from("<Q", found["tokenizer.ggml.tokens"], len(_string("tokenizer.ggml.tokens")) + 8)[0]
    if most_tokens is not None and most_tokens < size:
        found, size = _cut(found, most_tokens), most_tokens
    kept = list(found.values())
    tensors = list(_tensors(size, hidden, np.random.default_rng(seed)))
    pairs = [*_described(size, hidden), *kept]
    with path.open("wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs))
        offset = 0
        for name, values in tensors:
            kind = _TENSOR_F16 if values.dtype == np.float16 else _TENSOR_F32
            shape = values.shape[::-1]  # GGUF names the fastest axis first
            out.write(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
            offset += _padded(values.nbytes)
        out.write(bytes(-out.tell() % _ALIGNMENT))
        for _, values in tensors:
            out.write(values.tobytes() + bytes(_padded(values.nbytes) - values.nbytes))
    vouch(path)
    return path


def _described(vocabulary_size: int, hidden: int) -> Iterator[bytes]:
    yield _string("general.architecture") + struct.pack("<I", _STRING) + _string("llama")
    yield _string("general.name") + struct.pack("<I", _STRING) + _string(NAME)
    counts = {
        "block_count": LAYERS, "context_length": _WINDOW, "embedding_length": _WIDTH, "feed_forward_length": hidden,
        "attention.head_count": _HEADS, "attention.head_count_kv": _KV_HEADS, "vocab_size": vocabulary_size,
        "rope.dimension_count": _HEAD_DIM,
    }  # fmt: skip
    for key, count in counts.items():
        yield _string(f"llama.{key}") + struct.pack("<II", _U32, count)
    for key, value in {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}.items():
        yield _string(f"llama.{key}") + struct.pack("<If", _F32, value)


def _tensors(vocabulary_size: int, hidden: int, random: np.random.Generator) -> Iterator[tuple[str, _Weights]]:
    """Weights of unit gain, so that what each layer adds matters and the residual stream does not explode."""

    def drawn(rows: int, columns: int, gain: float = 1.0) -> _Weights:
        weights = random.standard_normal((rows, columns), np.float32)
        return (weights * np.float32(gain / columns**0.5)).astype(np.float16)

    ones = np.ones(_WIDTH, np.float32)
    yield "token_embd.weight", drawn(vocabulary_size, _WIDTH)
    yield "output_norm.weight", ones
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", ones
        # Queries and keys of more than unit gain: attention then looks at few tokens, which ones depends on the text.
        yield f"blk.{layer}.attn_q.weight", drawn(_HEADS * _HEAD_DIM, _WIDTH, 2.0)
        yield f"blk.{layer}.attn_k.weight", drawn(_KV_HEADS * _HEAD_DIM, _WIDTH, 2.0)
        yield f"blk.{layer}.attn_v.weight", drawn(_KV_HEADS * _HEAD_DIM, _WIDTH)
        yield f"blk.{layer}.attn_output.weight", drawn(_WIDTH, _HEADS * _HEAD_DIM, 2.0)
        yield f"blk.{layer}.ffn_gate.weight", drawn(hidden, _WIDTH)
        yield f"blk.{layer}.ffn_up.weight", drawn(hidden, _WIDTH)
        yield f"blk.{layer}.ffn_down.weight", drawn(_WIDTH, hidden)


def _pairs(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Key-value pairs: the key, and the whole pair as it stands in the file."""
    if file.read(4) != b"GGUF":
        raise CorruptData("magic", f"{file.name} is not a GGUF file")
    _, _, count = struct.unpack("<IQQ", file.read(20))
    for _ in range(count):
        began = file.tell()
        key = _read_string(file).decode()
        (kind,) = struct.unpack("<I", file.read(4))
        _skip(file, kind)
        ended = file.tell()
        file.seek(began)
        yield key, file.read(ended - began)


def _cut(pairs: dict[str, bytes], most_tokens: int) -> dict[str, bytes]:
    """A tokenizer with its first tokens only, and the merges that lead to them."""
    cut = dict(pairs)
    tokens = [*_items(pairs, "tokens")][:most_tokens]
    cut["tokenizer.ggml.tokens"] = _array("tokens", _STRING, [_packed(token) for token in tokens])
    for name in ("token_type", "scores"):
        if (pair := pairs.get(f"tokenizer.ggml.{name}")) is not None:
            at = len(_string(f"tokenizer.ggml.{name}"))
            kind, _ = struct.unpack_from("<IQ", pair, at + 4)
            items = pair[at + 16 : at + 16 + 4 * most_tokens]
            cut[f"tokenizer.ggml.{name}"] = _array(name, kind, [items[i : i + 4] for i in range(0, len(items), 4)])
    known = set(tokens)
    merges = [_packed(merge) for merge in _items(pairs, "merges") if merge.replace(b" ", b"", 1) in known]
    cut["tokenizer.ggml.merges"] = _array("merges", _STRING, merges)
    return cut


def _items(pairs: dict[str, bytes], name: str) -> Iterator[bytes]:
    """The strings of an array."""
    file = BytesIO(pairs.get(f"tokenizer.ggml.{name}", _array(name, _STRING, [])))
    _read_string(file)
    _, _, count = struct.unpack("<IIQ", file.read(16))
    for _ in range(count):
        yield _read_string(file)


def _array(name: str, kind: int, items: list[bytes]) -> bytes:
    return _string(f"tokenizer.ggml.{name}") + struct.pack("<IIQ", _ARRAY, kind, len(items)) + b"".join(items)


def _packed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _read_string(file)
    elif kind == _ARRAY:
        item, count = struct.unpack("<IQ", file.read(12))
        if item in _SIZES:
            file.seek(_SIZES[item] * count, 1)
        else:
            for _ in range(count):
                _skip(file, item)
    else:
        file.seek(_SIZES[kind], 1)


def _read_string(file: BinaryIO) -> bytes:
    return file.read(struct.unpack("<Q", file.read(8))[0])


def _string(text: str) -> bytes:
    return _packed(text.encode())


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
