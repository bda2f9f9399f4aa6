"""What a model keeps of the tokens that it has read, layer by layer, as its file's header says. Pure.

The rules are llama.cpp's own (`load_arch_hparams` of each `src/models/*.cpp`, `llama_hparams::n_embd_r` and `n_embd_s`,
`llama_model::create_memory`) at the commit that the pinned llama-cpp-python carries. A test holds them against what
llama.cpp allocates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from preread.engine.gguf import Header, Long
from preread.errors import CorruptData
from preread.plan.legality import first_seen
from preread.values import Layer, RowShape, StateShape

_MOST_LAYERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """What every layer keeps: nothing where it computes no attention, or reads another layer's.

    Attributes:
        layers: of the model.
        shared_layers: how many of them read another layer's.
    """

    layers: tuple[Layer, ...]
    shared_layers: int = 0

    def bytes_of(self, tokens: int) -> int:
        """What a context of so many tokens takes, as llama.cpp has it: of windows what is seen behind it."""
        rows = sum(_row_bytes(layer) * (tokens - first_seen(tokens, layer.window_tokens)) for layer in self.layers)
        return rows + (self.state_bytes if tokens else 0)

    @property
    def token_bytes(self) -> int:
        """What one more token adds once every window is full."""
        return sum(_row_bytes(layer) for layer in self.layers if layer.window_tokens is None)

    @property
    def state_bytes(self) -> int:
        """What recurrent layers keep, however long a context is: float32."""
        states = [layer.state for layer in self.layers if layer.state is not None]
        return 4 * sum(state.r_values + state.s_values for state in states)

    @property
    def windows(self) -> int:
        """How many layers look back through a window."""
        return sum(layer.window_tokens is not None for layer in self.layers)


def _row_bytes(layer: Layer) -> int:
    """Of a token's K and V, float16."""
    rows = layer.rows
    return 0 if rows is None else 2 * rows.kv_heads * (rows.k_dim + rows.v_dim)


@dataclass(frozen=True, slots=True)
class _Windows:
    """Which layers of an architecture have a window.

    Attributes:
        every: of so many layers one attends fully: the last, or the first where `full_first`; 0: none does,
            unless a list says which.
        tokens: of the window, where the file says nothing; 0: then there is none.
        fixed: the file's own number is not read.
    """

    every: int
    tokens: int = 0
    full_first: bool = False
    fixed: bool = False


_WINDOWS: Final[Mapping[str, _Windows]] = MappingProxyType(
    {
        "gemma2": _Windows(2, 4096), "gemma3": _Windows(6), "gemma3n": _Windows(5), "gemma4": _Windows(0),
        "gpt-oss": _Windows(2), "cohere2": _Windows(4), "cohere2moe": _Windows(4, full_first=True),
        "olmo2": _Windows(4), "llama4": _Windows(4, 8192, fixed=True), "smallthinker": _Windows(4, full_first=True),
        "laguna": _Windows(4, full_first=True), "plamo3": _Windows(8), "afmoe": _Windows(4),
        "exaone-moe": _Windows(4, 128), "granite_swa": _Windows(0), "lfm2": _Windows(0), "mimo2": _Windows(0),
        "step35": _Windows(0),
    }
)  # fmt: skip
_RECURRENT: Final = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_BY_HEADS: Final = {"jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear"}
"""Hybrids whose recurrent layers are those without KV heads."""
_BY_INTERVAL: Final = {"qwen3next", "qwen35", "qwen35moe"}
_NEMOTRON: Final = {"nemotron_h", "nemotron_h_moe"}
_ENCODERS: Final = {
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "llama-embed", "t5encoder", "clip", "wavtokenizer-dec",
}  # fmt: skip
"""They answer nothing: they are for embeddings, or parts of another model."""
_PLAIN: Final = {
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chatglm", "codeshell",
    "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "dots1", "ernie4_5", "ernie4_5-moe", "exaone",
    "exaone4", "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptj", "gptneox", "granite", "granitemoe", "grok",
    "grovemoe", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "internlm2", "jais", "llama", "maincoder", "minicpm",
    "minicpm3", "minimax-m2", "mistral3", "mpt", "nanbeige", "nemotron", "olmo", "olmoe", "openelm", "orion",
    "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "plm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
    "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2",
    "paddleocr", "xverse",
}  # fmt: skip
"""Every layer attends to all tokens."""
UNROTATED: Final = "the model's position encoding is not plain RoPE"
_UNROTATED: Final = {"bloom", "gpt2", "gptj", "jais", "mpt", "refact"}
"""Positions are told in another way than by rotating K."""

Way = Literal["streams", "computed", "unknown", "none"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What preread can do with a model.

    Attributes:
        way: contexts stream; or are computed at the edge; or it cannot be told; or the model answers nothing.
        why: where they do not stream.
        memory: what it keeps; None where no rule is known.
    """

    way: Way
    why: str
    memory: Memory | None


def verdict(header: Header) -> Verdict:
    """Tell from a model's header what can be done with it.

    Raises:
        CorruptData: "gguf": the header lacks what every model has, or has what none has.
    """
    name = header.text("general.architecture")
    if not name:
        raise CorruptData("gguf", "the header names no architecture")
    if name in _ENCODERS or f"{name}.pooling_type" in header.metadata:
        return Verdict("none", "it computes embeddings or is a part of another model: it answers nothing", None)
    memory = memory_of(header)
    if memory is None:
        return Verdict("unknown", f"what {name} keeps of a context is not known here", None)
    why = _obstacle(header, name, memory)
    return Verdict("computed" if why else "streams", why, memory)


def _obstacle(header: Header, name: str, memory: Memory) -> str:
    """Why KV is neither exported nor injected, in the words of `engine/model.py`; "" where it is."""
    if memory.state_bytes:
        return recurrent_obstacle(memory)
    if memory.windows and (why := windowed_obstacle(name, memory)):
        return why
    return UNROTATED if name in _UNROTATED else ""


def recurrent_obstacle(memory: Memory) -> str:
    """Why what a model with recurrent layers keeps is neither exported nor injected; "" where it is."""
    if memory.windows:
        return "the model has both windows and recurrent layers"
    if len({layer.rows for layer in memory.layers if layer.rows is not None}) > 1 or memory.shared_layers:
        return "the model's layers differ in the size of their KV"
    known = all(layer.state.r_values for layer in memory.layers if layer.state is not None)
    return "" if known else "the model's states are of a kind that is not known here"


def windowed_obstacle(name: str, memory: Memory) -> str:
    """Why KV of a model with windows is neither exported nor injected; "" where it is: all are of one size."""
    if _WINDOWS.get(name, _Windows(0)).fixed:
        return "the model's windows lie side by side: only those that move with each token are known here"
    windows = {layer.window_tokens for layer in memory.layers if layer.rows is not None}
    if len(windows) != 2 or None not in windows:
        return "no layer of the model attends to all tokens"
    return ""


def memory_of(header: Header) -> Memory | None:
    """What every layer keeps; None where it is of a kind that no rule here is for.

    Raises:
        CorruptData: "gguf": the header lacks what every model has, or has what none has.
    """
    name = header.text("general.architecture")
    if name not in _PLAIN | _WINDOWS.keys() | _RECURRENT | _BY_HEADS | _BY_INTERVAL | _NEMOTRON | {"falcon-h1"}:
        return None
    layers = header.number(f"{name}.block_count") - header.number(f"{name}.nextn_predict_layers")
    if not 0 < layers <= _MOST_LAYERS:
        raise CorruptData("gguf", f"{name}.block_count leaves {layers} layers")
    recurrent, windows = _recurrent(header, name, layers), _which(header, name, layers)
    own = _own_layers(header, name, layers)
    found = list[Layer]()
    for layer in range(layers):
        has_state = recurrent[layer] or name == "falcon-h1"  # whose layers have both
        has_rows = not recurrent[layer] and layer < own and _attends(header, name, layers, layer)
        rows = _rows(header, name, layers, layer, windows[layer]) if has_rows else None
        window = windows[layer] if rows is not None else None
        found.append(Layer(rows, window, _state(header, name) if has_state else None))
    return Memory(tuple(found), layers - own)


def _windows(header: Header, name: str) -> _Windows | None:
    """None: no layer has one, whatever the file says. So phi3 names a window that llama.cpp does not use."""
    if name == "exaone4":  # the large one has windows, the small one has none
        return _Windows(4, 4096) if header.number(f"{name}.block_count") == 64 else None
    return _WINDOWS.get(name)


def _window_tokens(header: Header, name: str, known: _Windows) -> int:
    """Of the window that some layers have; 0: none has."""
    key = f"{name}.attention.sliding_window"
    if known.fixed:
        return 0 if header.metadata.get(key) == 0 else known.tokens
    return header.number(key, known.tokens)


def _which(header: Header, name: str, layers: int) -> list[int | None]:
    """The window of each layer."""
    known = _windows(header, name)
    if known is None or not (window := _window_tokens(header, name, known)):
        return [None] * layers
    listed = header.metadata.get(f"{name}.attention.sliding_window_pattern")
    if isinstance(listed, Long):
        raise CorruptData("gguf", f"{name} lists windows for {listed.count} layers")
    if isinstance(listed, tuple):
        return [window if one else None for one in header.numbers(f"{name}.attention.sliding_window_pattern", layers)]
    every = known.every if listed is None else header.number(f"{name}.attention.sliding_window_pattern")
    full = 0 if known.full_first else every - 1
    return [window if every == 0 or layer % every != full else None for layer in range(layers)]


def _recurrent(header: Header, name: str, layers: int) -> list[bool]:
    if name in _RECURRENT:
        return [True] * layers
    if name in _BY_HEADS:
        return [not heads for heads in _kv_heads(header, name, layers)]
    if name in _NEMOTRON:
        widths = header.numbers(f"{name}.feed_forward_length", layers)
        return [not heads and not width for heads, width in zip(_kv_heads(header, name, layers), widths, strict=True)]
    if name in _BY_INTERVAL:
        if f"{name}.attention.recurrent_layers" in header.metadata:
            return [bool(one) for one in header.numbers(f"{name}.attention.recurrent_layers", layers)]
        every = header.number(f"{name}.full_attention_interval", 4)
        return [not every or (layer + 1) % every != 0 for layer in range(layers)]
    return [False] * layers


def _attends(header: Header, name: str, layers: int, layer: int) -> bool:
    """Whether a layer that is not recurrent computes attention: some of these have nothing but a feed-forward part."""
    return name not in _NEMOTRON or not header.numbers(f"{name}.feed_forward_length", layers)[layer]


def _own_layers(header: Header, name: str, layers: int) -> int:
    """How many layers, from the first on, have KV of their own; the others read it there."""
    if name == "gemma3n":
        return min(20, layers)
    if name == "gemma4":
        return max(0, layers - header.number(f"{name}.attention.shared_kv_layers"))
    return layers


def _kv_heads(header: Header, name: str, layers: int) -> tuple[int, ...]:
    key = f"{name}.attention.head_count_kv"
    return header.numbers(key if key in header.metadata else f"{name}.attention.head_count", layers)


def _rows(header: Header, name: str, layers: int, layer: int, window: int | None) -> RowShape | None:
    """None: it has no heads."""
    heads = _kv_heads(header, name, layers)[layer]
    query_heads = header.numbers(f"{name}.attention.head_count", layers)[layer]
    usual = header.number(f"{name}.embedding_length") // max(query_heads, 1)
    k, v = (header.number(f"{name}.attention.{half}_length", usual) for half in ("key", "value"))
    if window is not None:
        k = header.number(f"{name}.attention.key_length_swa", k)
        v = header.number(f"{name}.attention.value_length_swa", v)
    latent = header.number(f"{name}.attention.key_length_mla") > 0
    return RowShape(heads, k, 0 if latent else v) if heads and k else None


def _state(header: Header, name: str) -> StateShape:
    """The convolution's last inputs (R) and the state itself (S)."""
    width = header.number(f"{name}.embedding_length")
    if head := header.number(f"{name}.wkv.head_size"):
        return StateShape(header.number(f"{name}.token_shift_count", 2) * width, width, head)
    if steps := header.number(f"{name}.shortconv.l_cache"):
        return StateShape(width * (steps - 1), 0, 0)
    kernel, inner, size, groups, heads, head = (
        header.number(f"{name}.{key}")
        for key in (
            "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "attention.head_count",
            "kda.head_dim",
        )
    )  # fmt: skip
    if head:
        return StateShape(3 * (max(kernel, 1) - 1 if kernel else 3) * heads * head, head * heads, head)
    rows, row_values = (inner, size) if inner and size else (0, 0)
    return StateShape(max(kernel - 1, 0) * (inner + 2 * groups * size), rows, row_values)
