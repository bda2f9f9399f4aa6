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
from preread.values import Layer, RowShape, StateShape

_MOST_LAYERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """Attention's K and V, float16: a row for each token.

    Attributes:
        k_values, v_values: of a row; no V where K's latent rows stand for both (MLA).
        window_tokens: only so many tokens before the next one are looked at; None: all.
        heads: that either is of.
    """

    k_values: int
    v_values: int
    window_tokens: int | None = None
    heads: int = 1

    def bytes_of(self, tokens: int) -> int:
        """What has to be there to go on behind so many tokens: of a window its last W - 1 rows."""
        seen = tokens if self.window_tokens is None else min(tokens, max(0, self.window_tokens - 1))
        return 2 * (self.k_values + self.v_values) * seen


@dataclass(frozen=True, slots=True)
class State:
    """What a recurrent layer keeps, float32: the convolution's last inputs (R) and the state itself (S).

    `s_row_values`: of one of the state's rows, which lie one behind the other.
    """

    r_values: int
    s_values: int
    s_row_values: int = 1

    def bytes_of(self, tokens: int) -> int:
        """The same behind any number of tokens."""
        return 4 * (self.r_values + self.s_values) if tokens else 0


Part = Rows | State


@dataclass(frozen=True, slots=True)
class Memory:
    """What every layer keeps: nothing where it computes no attention, or reads another layer's.

    Attributes:
        layers: the parts of each.
        shared_layers: how many of them read another layer's.
    """

    layers: tuple[tuple[Part, ...], ...]
    shared_layers: int = 0

    def bytes_of(self, tokens: int) -> int:
        """What a context of so many tokens takes, as llama.cpp has it."""
        return sum(part.bytes_of(tokens) for layer in self.layers for part in layer)

    @property
    def token_bytes(self) -> int:
        """What one more token adds once every window is full."""
        return sum(
            2 * (part.k_values + part.v_values)
            for layer in self.layers
            for part in layer
            if isinstance(part, Rows) and part.window_tokens is None
        )

    @property
    def state_bytes(self) -> int:
        """What recurrent layers keep, however long a context is."""
        return sum(part.bytes_of(1) for layer in self.layers for part in layer if isinstance(part, State))

    @property
    def windows(self) -> int:
        """How many layers look back through a window."""
        return sum(isinstance(part, Rows) and part.window_tokens is not None for layer in self.layers for part in layer)


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
    rows = {(part.k_values, part.v_values) for layer in memory.layers for part in layer if isinstance(part, Rows)}
    if len(rows) > 1 or memory.shared_layers:
        return "the model's layers differ in the size of their KV"
    states = [part for layer in memory.layers for part in layer if isinstance(part, State)]
    return "" if all(state.r_values for state in states) else "the model's states are of a kind that is not known here"


def windowed_obstacle(name: str, memory: Memory) -> str:
    """Why KV of a model with windows is neither exported nor injected; "" where it is: all are of one size."""
    rows = [part for layer in memory.layers for part in layer if isinstance(part, Rows)]
    if _WINDOWS.get(name, _Windows(0)).fixed:
        return "the model's windows lie side by side: only those that move with each token are known here"
    if len({row.window_tokens for row in rows}) != 2 or all(row.window_tokens is not None for row in rows):
        return "no layer of the model attends to all tokens"
    return ""


def layers_of(memory: Memory) -> tuple[Layer, ...]:
    """The same, as everybody else says it."""
    return tuple(_layer(parts) for parts in memory.layers)


def _layer(parts: tuple[Part, ...]) -> Layer:
    rows = next((part for part in parts if isinstance(part, Rows)), None)
    state = next((part for part in parts if isinstance(part, State)), None)
    return Layer(
        None if rows is None else RowShape(rows.heads, rows.k_values // rows.heads, rows.v_values // rows.heads),
        None if rows is None else rows.window_tokens,
        None if state is None else _state_shape(state),
    )


def _state_shape(state: State) -> StateShape:
    """A layer that has no S has no row of it."""
    rows, row_values = state.s_values // state.s_row_values, state.s_row_values
    return StateShape(state.r_values, rows, row_values if rows else 0)


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
    parts: list[tuple[Part, ...]] = []
    for layer in range(layers):
        rows, state = _rows(header, name, layers, layer, windows[layer]), _state(header, name)
        if name == "falcon-h1":
            parts.append((rows, state))
        elif recurrent[layer]:
            parts.append((state,))
        else:
            parts.append((rows,) if layer < own and rows.k_values and _attends(header, name, layers, layer) else ())
    return Memory(tuple(parts), layers - own)


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


def _rows(header: Header, name: str, layers: int, layer: int, window: int | None) -> Rows:
    heads = _kv_heads(header, name, layers)[layer]
    query_heads = header.numbers(f"{name}.attention.head_count", layers)[layer]
    usual = header.number(f"{name}.embedding_length") // max(query_heads, 1)
    k, v = (header.number(f"{name}.attention.{half}_length", usual) for half in ("key", "value"))
    if window is not None:
        k = header.number(f"{name}.attention.key_length_swa", k)
        v = header.number(f"{name}.attention.value_length_swa", v)
    latent = header.number(f"{name}.attention.key_length_mla") > 0
    return Rows(k * heads, 0 if latent else v * heads, window, heads)


def _state(header: Header, name: str) -> State:
    width = header.number(f"{name}.embedding_length")
    if head := header.number(f"{name}.wkv.head_size"):
        return State(header.number(f"{name}.token_shift_count", 2) * width, width * head, head)
    if steps := header.number(f"{name}.shortconv.l_cache"):
        return State(width * (steps - 1), 0)
    kernel, inner, size, groups, heads, head = (
        header.number(f"{name}.{key}")
        for key in (
            "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "attention.head_count",
            "kda.head_dim",
        )
    )  # fmt: skip
    if head:
        return State(3 * (max(kernel, 1) - 1 if kernel else 3) * heads * head, head * head * heads, head)
    return State(max(kernel - 1, 0) * (inner + 2 * groups * size), size * inner, max(size, 1))
