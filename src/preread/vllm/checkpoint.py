"""What a checkpoint of transformers is to those who run GGUF files of the same model.

It is held against one such file, any quantisation: which says what edges call the tokenizer and the family, and how
they order K. Norms, RoPE, shape and tokens must be the same. Nothing is computed here.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from preread.engine import model, tensors
from preread.engine.family import Traits, family
from preread.errors import UsageError
from preread.values import Family, Fingerprint, Geometry

Single = npt.NDArray[np.float32]
T = TypeVar("T")

_NEAR: Final = {"LlamaForCausalLM": ("llama", True), "MistralForCausalLM": ("llama", True)}
_FAR: Final = {"Qwen2ForCausalLM": ("qwen2", False), "Qwen3ForCausalLM": ("qwen3", False)}
_ARCHITECTURES: Final = {**_NEAR, **_FAR}
"""llama.cpp's name of each, and whether its converter permutes queries and keys."""

_KINDS: Final = {"F32": 0, "F16": 1, "BF16": 30}
_MOST_HEAD_BYTES: Final = 2**26
_NAMES: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OF_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        name: for people.
        fingerprint: digest of its weights, its tokenizer and how they are run.
        vocabulary, family: as edges with GGUF files have them.
        geometry: of its KV cache.
        near: whether llama.cpp orders K otherwise: see `rows.py`.
        same: fingerprint of the GGUF file that it was held against, if that has the same weights bit for bit.
    """

    name: str
    fingerprint: Fingerprint
    vocabulary: Fingerprint
    family: Family
    geometry: Geometry
    near: bool
    same: Fingerprint | None


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]


class _Kind(msgspec.Struct, frozen=True):
    """What config.json says of any model; the rest is named otherwise in some."""

    architectures: list[str] | None = None


class _Config(msgspec.Struct, frozen=True):
    """What config.json says of the shape and the meaning of KV."""

    num_hidden_layers: _Count
    num_attention_heads: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    hidden_size: _Count
    rms_norm_eps: float
    num_key_value_heads: _Count | None = None
    head_dim: _Count | None = None
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    use_sliding_window: bool | None = None
    dtype: str | None = None
    torch_dtype: str | None = None


class _Vocabulary(msgspec.Struct, frozen=True):
    """Tokens' ids, or the tokens in order, each with its score."""

    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _Added(msgspec.Struct, frozen=True):
    id: int
    content: str


class _Tokenizer(msgspec.Struct, frozen=True):
    """What tokenizer.json says of tokens."""

    model: _Vocabulary
    added_tokens: list[_Added] = []


class _Tensor(msgspec.Struct, frozen=True):
    """What the head of a safetensors file says of a tensor."""

    dtype: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=4)]
    data_offsets: tuple[_Count, _Count]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a checkpoint: llama.cpp's name of it, its shape, ggml's number of its type, and where it lies."""

    name: str
    shape: tuple[int, ...]
    kind: int
    path: Path
    start: int

    def values(self) -> Single:
        size_bytes = math.prod(self.shape) * (4 if self.kind == 0 else 2)
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(size_bytes)
        if len(data) != size_bytes:
            raise UsageError(f"{self.path} ends in the middle of a tensor: it is not whole")
        return tensors.floats(data, self.kind).reshape(self.shape)

    def rows(self, at: npt.NDArray[np.int32]) -> Single:
        """Some rows of a matrix; of the file no more than these is read."""
        try:
            stored = np.memmap(self.path, "<f4" if self.kind == 0 else "<u2", "r", self.start, self.shape)
        except ValueError as error:
            raise UsageError(f"{self.path} ends in the middle of a tensor: it is not whole") from error
        return tensors.floats(stored[at].tobytes(), self.kind).reshape(len(at), *self.shape[1:])


class Checkpoint:
    """A folder as `save_pretrained` writes it: config.json, tokenizer.json and safetensors.

    Raises:
        UsageError: it is none, or of an architecture, or with a scaling of RoPE, that is not known here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, told = folder, _json(folder / "config.json")
        name, *_ = _converted(told, _Kind, folder / "config.json").architectures or ["nothing"]
        if name not in _ARCHITECTURES:
            raise UsageError(f"{folder.name} is a {name}: known are {', '.join(_ARCHITECTURES)}")
        self.architecture, self.near = _ARCHITECTURES[name]
        self._config = _converted(told, _Config, folder / "config.json")
        self.files = sorted(folder.glob("*.safetensors"))
        self._stored = {one.name: one for file in self.files for one in _tensors(file)}
        if "token_embd.weight" not in self._stored:
            raise UsageError(f"{folder} holds no weights as safetensors that are known here")

    @property
    def geometry(self) -> Geometry:
        """Of the KV cache."""
        config = self._config
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        return Geometry(config.num_hidden_layers, config.num_key_value_heads or config.num_attention_heads, head_dim)

    def traits(self, vocabulary: Fingerprint) -> Traits:
        """What its family is made of, with this tokenizer."""
        config = self._config
        rope = config.rope_parameters or config.rope_scaling or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or config.use_sliding_window or rope.get("partial_rotary_factor", 1) != 1:
            raise UsageError(
                f"{self.folder.name} has RoPE of type {kind!r}, or a window: only plain RoPE is known here"
            )
        base = float(rope.get("rope_theta") or config.rope_theta or 10_000)
        norms = sorted((name, one.values()) for name, one in self._stored.items() if name.endswith("_norm.weight"))
        shape, epsilon = self.geometry, config.rms_norm_eps
        return Traits(
            self.architecture, shape, vocabulary, self.near, base, shape.head_dim // 2, (), (), epsilon, norms
        )

    @property
    def dtype(self) -> str:
        """In which it computes unless somebody says otherwise."""
        return self._config.dtype or self._config.torch_dtype or "float32"

    def embeddings(self, ids: npt.NDArray[np.int32]) -> Single:
        """Embeddings (tokens, width) of token ids."""
        return self._stored["token_embd.weight"].rows(ids)

    def words(self) -> dict[int, str]:
        """What tokens are called, by id."""
        path = self.folder / "tokenizer.json"
        told = _converted(_json(path), _Tokenizer, path)
        vocab = told.model.vocab
        pairs = vocab.items() if isinstance(vocab, dict) else ((word, id) for id, (word, _) in enumerate(vocab))
        return {id: word for word, id in pairs} | {one.id: one.content for one in told.added_tokens}

    def same_as(self, path: Path) -> bool:
        """Whether a GGUF file has the same weights, bit for bit; of a quantised one it never has."""
        heads = self._config.num_attention_heads, self.geometry.kv_heads
        files, compared = tensors.parts(path), 0
        if any(tensor.kind not in _KINDS.values() for _, header in files for tensor in header.tensors):
            return False
        for name, values in tensors.plain(files, lambda tensor: tensor.name in self._stored):
            ours = self._stored[name].values()
            if self.near and (name.endswith(("attn_q.weight", "attn_k.weight"))):
                ours = _permuted(ours, heads[0 if "attn_q" in name else 1])
            if not np.array_equal(ours, values):
                return False
            compared += 1
        return compared == sum(len(header.tensors) for _, header in files) - _extra(files)

    def fingerprint(self, of: Family, dtype: str) -> Fingerprint:
        """Digest of what changes the meaning of KV rows: weights, what the family covers, and how it is run."""
        digest = blake3(max_threads=blake3.AUTO)
        for file in self.files:
            digest.update_mmap(file)
        meaning = {"weights": digest.hexdigest(), "family": of, "run": "vllm", "dtype": dtype, "kv": "f16", "layout": 1}
        return Fingerprint(blake3(msgspec.json.encode(meaning, order="sorted")).hexdigest())


def identified(folder: Path, gguf: Path, dtype: str) -> Identity:
    """What a checkpoint is, held against a GGUF file of the same model.

    Args:
        dtype: in which vLLM computes.

    Raises:
        UsageError: they are not the same model, and what differs; or one of them cannot be read.
    """
    checkpoint = Checkpoint(folder)
    loaded = model.load(gguf, mapped=True)
    try:
        spec = model.spec(loaded, gguf, gguf.stem, 0)
        texts = loaded.texts()
    finally:
        loaded.close()
    if spec.no_rows:
        raise UsageError(f"KV of {gguf.name} cannot be streamed: {spec.no_rows}")
    if differ := _differing(checkpoint.words(), texts):
        raise UsageError(f"{folder.name} and {gguf.name} differ in token {differ[0]}: they are not of one tokenizer")
    ours = family(checkpoint.traits(spec.vocabulary))
    if ours is None or ours != spec.family:
        raise UsageError(f"{folder.name} and {gguf.name} are not one model: norms, shape or RoPE differ")
    same = spec.fingerprint if checkpoint.same_as(gguf) else None
    name = folder.name
    fingerprint = checkpoint.fingerprint(ours, dtype)
    return Identity(name, fingerprint, spec.vocabulary, ours, checkpoint.geometry, checkpoint.near, same)


def _differing(words: dict[int, str], texts: list[str]) -> list[int]:
    """Ids of tokens that a tokenizer and a GGUF file call otherwise; what fills the file's up does not count."""
    unknown = [id for id in words if id >= len(texts)]
    return unknown + [id for id, text in enumerate(texts) if words.get(id, _filling(id)) != text]


def _filling(id: int) -> str:
    """What llama.cpp's converter calls a token that the tokenizer does not have."""
    return f"[PAD{id}]"


def _extra(files: tensors.Parts) -> int:
    """Tensors that a converter computes, such as factors of RoPE."""
    return sum(tensor.name == "rope_freqs.weight" for _, header in files for tensor in header.tensors)


def _permuted(weights: Single, heads: int) -> Single:
    """Rows of queries or keys as llama.cpp's converter orders them."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _tensors(path: Path) -> Iterator[_Stored]:
    """Those of a safetensors file that llama.cpp has a name for.

    Raises:
        UsageError: it is none, or its weights are of a type that is not known here.
    """
    with path.open("rb") as file:
        size_bytes = int.from_bytes(file.read(8), "little")
        if size_bytes > _MOST_HEAD_BYTES:
            raise UsageError(f"{path} is no safetensors file")
        head = _decoded(file.read(size_bytes), path)
    for name, told in head.items():
        if (known := _name(name)) is None:
            continue
        tensor = _converted(told, _Tensor, path)
        if tensor.dtype not in _KINDS:
            raise UsageError(f"{path.name} has weights of type {tensor.dtype}: F32, F16 and BF16 are known")
        yield _Stored(known, tensor.shape, _KINDS[tensor.dtype], path, 8 + size_bytes + tensor.data_offsets[0])


def _name(name: str) -> str | None:
    """llama.cpp's name of a tensor.

    Raises:
        UsageError: it is a norm that llama.cpp's model does not have.
    """
    if (match := _LAYER.fullmatch(name)) is not None and match[2] in _OF_LAYER:
        return f"blk.{match[1]}.{_OF_LAYER[match[2]]}.{match[3]}"
    if name not in _NAMES and name.endswith("norm.weight"):
        raise UsageError(f"{name} is a norm that is not known here")
    return _NAMES.get(name)


def _json(path: Path) -> dict[str, Any]:
    try:
        return _decoded(path.read_bytes(), path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _converted(told: object, kind: type[T], path: Path) -> T:
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not what it should be: {error}") from error


def _decoded(data: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UsageError(f"{path} is not what it should be: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not what it should be")
    return found
