"""A model that llama.cpp has loaded: what it is, what its KV means, and whether its KV may be exchanged."""

from dataclasses import dataclass, replace
from pathlib import Path

import blake3
import llama_cpp
import msgspec

from preread.engine import tensors
from preread.engine.family import family, traits_of
from preread.engine.gguf import Header
from preread.engine.loaded import Loaded
from preread.engine.loaded import load as load
from preread.engine.memory import UNROTATED, memory_of, recurrent_obstacle, windowed_obstacle
from preread.engine.registry import part_paths
from preread.errors import EngineError, UsageError
from preread.plan.legality import STATE, Window
from preread.values import Family, Fingerprint, Geometry, Layer, alike, geometry_of

_DEFAULT_WINDOW = 8192
_PLANES = (llama_cpp.LLAMA_ROPE_TYPE_MROPE, llama_cpp.LLAMA_ROPE_TYPE_IMROPE)
_ROTATED = (llama_cpp.LLAMA_ROPE_TYPE_NORM, llama_cpp.LLAMA_ROPE_TYPE_NEOX, *_PLANES)
_NO_ROWS = "the model is recurrent: its state is not a KV row per token"
_DIFFERENT_ROWS = "the model's layers differ in what they keep of a token"


@dataclass(frozen=True, slots=True)
class Spec:
    """What the rest of preread needs to know of a model.

    Attributes:
        name: what to call it.
        architecture: llama.cpp's name of its architecture.
        fingerprint: digest of everything that changes what its KV rows mean.
        vocabulary: digest of its tokenizer: with the same one, the same token ids mean the same text.
        family: digest of what all its quantisations share; None: nothing tells them from another model's.
        geometry: shape of its KV cache; where `layers` differ, of what llama.cpp says of the model.
        layers: what each of them keeps of a context.
        window_tokens: size of the KV cache, that is, context + prompt + answer.
        trained_tokens: the longest window it was trained for.
        vocab_size: number of token ids.
        token_characters: no token stands for more characters of text.
        rope_near: whether the two halves of a rotated pair lie side by side (llama.cpp's NORM) or not (NEOX).
        planes: positions have several axes.
        recurrent: some layers keep a state, which stands for all tokens.
        no_injection: why its KV can be neither exported nor injected; None when it can.
    """

    name: str
    architecture: str
    fingerprint: Fingerprint
    vocabulary: Fingerprint
    family: Family | None
    geometry: Geometry
    layers: tuple[Layer, ...]
    window_tokens: int
    trained_tokens: int
    vocab_size: int
    token_characters: int
    rope_near: bool
    no_injection: str | None
    planes: bool = False
    recurrent: bool = False

    @property
    def token_bytes(self) -> int:
        """What one more token adds to the cache."""
        rows = (layer.rows for layer in self.layers if layer.rows is not None)
        return sum(2 * shape.kv_heads * (shape.k_dim + shape.v_dim) for shape in rows)

    @property
    def state_bytes(self) -> int:
        """What recurrent layers keep of a sequence, however long it is; 0: there are none."""
        states = (layer.state for layer in self.layers if layer.state is not None)
        return sum(4 * (shape.r_values + shape.s_values) for shape in states)

    @property
    def no_rows(self) -> str | None:
        """Why a context is not a KV row per token, of one size in all layers, that can be exchanged; None: it is."""
        if self.no_injection or self.recurrent:
            return self.no_injection or _NO_ROWS
        return None if geometry_of(self.layers) is not None else _DIFFERENT_ROWS

    @property
    def sight(self) -> tuple[Window, ...]:
        """What `plan/legality.py` has to know: the windows, and that there is a state where there is one."""
        return (*self.windows, STATE) if self.recurrent else self.windows

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer, the tokens that it looks back at, the one that looks included; None: at all."""
        return tuple(layer.window_tokens for layer in self.layers)


def spec(loaded: Loaded, path: Path, name: str, window_tokens: int) -> Spec:
    """Describe a loaded model.

    Raises:
        UsageError: the window asked for is longer than the model's own.
        CorruptData: the file's header, or a tensor of it, cannot be read.
    """
    model = loaded.model
    trained = llama_cpp.llama_model_n_ctx_train(model)
    if window_tokens > trained:
        raise UsageError(f"{name} reads at most {trained} tokens; a window of {window_tokens} was asked for")
    architecture = loaded.metadata("general.architecture") or "unknown"
    heads = llama_cpp.llama_model_n_head(model)
    width = llama_cpp.llama_model_n_embd(model)
    head_dim = int(loaded.metadata(f"{architecture}.attention.key_length") or width // max(heads, 1))
    vocabulary, token_characters = _vocabulary(loaded)
    files = tensors.parts(path)
    geometry = Geometry(llama_cpp.llama_model_n_layer(model), llama_cpp.llama_model_n_head_kv(model), head_dim)
    layers, no_injection = _kept(loaded, files[0][1], geometry)
    if rows := next((layer.rows for layer in layers if layer.rows is not None), None):
        geometry = Geometry(geometry.layers, rows.kv_heads, rows.k_dim)
    rope_type = llama_cpp.llama_model_rope_type(model)
    near = rope_type == llama_cpp.LLAMA_ROPE_TYPE_NORM
    return Spec(
        name=name,
        architecture=architecture,
        fingerprint=_fingerprint(loaded, path, architecture),
        vocabulary=vocabulary,
        family=family(traits_of(files, geometry, vocabulary, rope_near=near)),
        geometry=geometry,
        layers=layers,
        window_tokens=window_tokens or min(trained, _DEFAULT_WINDOW),
        trained_tokens=trained,
        vocab_size=llama_cpp.llama_vocab_n_tokens(loaded.vocab),
        token_characters=token_characters,
        rope_near=near,
        no_injection=no_injection,
        planes=rope_type in _PLANES,
        recurrent=_is_recurrent(model),
    )


def _kept(loaded: Loaded, header: Header, geometry: Geometry) -> tuple[tuple[Layer, ...], str | None]:
    """What each layer keeps of a context, and why that cannot be exchanged; None: it can.

    llama.cpp tells of which kind a model is, and the file's header what its layers keep. Where the header is of a kind
    that is not known here, they are taken to be alike; whether they are is looked at in the graph (`ggml.py`).
    """
    kept, model = memory_of(header), loaded.model
    if kept is not None and len(kept.layers) != geometry.layers:
        kept = None
    if _is_recurrent(model):
        if kept is None or not kept.state_bytes:
            return (Layer(),) * geometry.layers, "the model is recurrent, and its header does not tell what layers keep"
        return kept.layers, recurrent_obstacle(kept) or None
    layers = alike(geometry) if kept is None else kept.layers
    if llama_cpp.llama_model_n_swa(model) <= 0:
        layers = tuple(replace(layer, window_tokens=None) for layer in layers)
    elif kept is None or not kept.windows:
        return layers, "the model has sliding-window attention, in layers that its file's header does not tell"
    elif why := windowed_obstacle(header.text("general.architecture"), kept):
        return tuple(replace(layer, window_tokens=None) for layer in layers), why
    return layers, _obstacle(loaded, geometry, known=kept is not None)


def _is_recurrent(model: object) -> bool:
    return bool(llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))


def _obstacle(loaded: Loaded, geometry: Geometry, *, known: bool) -> str | None:
    architecture = loaded.metadata("general.architecture")
    if llama_cpp.llama_model_has_encoder(loaded.model):
        return "the model has an encoder: its decoder's KV is not all there is"
    v_dim = int(loaded.metadata(f"{architecture}.attention.value_length") or geometry.head_dim)
    if not known and v_dim != geometry.head_dim:
        return "the model's keys and values differ in size, in a way that is not known here"
    return None if llama_cpp.llama_model_rope_type(loaded.model) in _ROTATED else UNROTATED


def apart(spec: Spec) -> Spec:
    """A model whose file is another's, and whose KV is not: of no family, and with a fingerprint of its own."""
    return replace(
        spec, fingerprint=Fingerprint(blake3.blake3(f"apart {spec.fingerprint}".encode()).hexdigest()), family=None
    )


def fingerprint_of(path: Path) -> Fingerprint:
    """The fingerprint of a model in a GGUF file, which nothing is going to be computed with.

    Raises:
        UsageError: as for `load`, or nobody could serve it.
    """
    loaded = load(path, mapped=True)
    try:
        return spec(loaded, path, path.stem, 0).fingerprint
    finally:
        loaded.close()


def _fingerprint(loaded: Loaded, path: Path, architecture: str) -> Fingerprint:
    """Digest of what changes the meaning of KV rows: the file (weights, RoPE, tokenizer) and how it is run here."""
    digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for part in part_paths(path):
        digest.update_mmap(part)
    meaning = {
        "file": digest.hexdigest(),
        "architecture": architecture,
        "rope": llama_cpp.llama_model_rope_type(loaded.model),
        "rope_base": loaded.metadata(f"{architecture}.rope.freq_base"),
        "tokenizer": loaded.metadata("tokenizer.ggml.model"),
        "k": "f16",
        "v": "f16",
        "flash_attention": True,
        "layout": 1,
    }
    return Fingerprint(blake3.blake3(msgspec.json.encode(meaning, order="sorted")).hexdigest())


def _vocabulary(loaded: Loaded) -> tuple[Fingerprint, int]:
    """Digest of the tokenizer, and the most characters of a token's text.

    The vocabulary's own text has at least as many characters as what the token stands for: one for each byte (BPE), or
    one for each character (SentencePiece).
    """
    digest, most = blake3.blake3(), 1
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        digest.update((loaded.metadata(key) or "").encode() + b"\0")
    for token in range(llama_cpp.llama_vocab_n_tokens(loaded.vocab)):
        text = llama_cpp.llama_vocab_get_text(loaded.vocab, token)
        digest.update(text + b"\0")
        if len(text) > most:
            most = max(most, len(text.decode(errors="replace")))
    return Fingerprint(digest.hexdigest()), most


def engine_version() -> str:
    """Name and version of the inference engine, for manifests and `doctor`."""
    version = getattr(llama_cpp, "__version__", None)
    if version is None:
        raise EngineError("llama-cpp-python does not say its version: reinstall it")
    return f"llama-cpp-python {version}"
