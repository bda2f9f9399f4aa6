"""A model that can be differentiated: what it predicts after contexts, as a function of their KV.

transformers reads the same GGUF file and PyTorch differentiates: this and `learning` are their only home, and only who
teaches contexts or fits guides installs them (`pip install 'preread[cloud]'`). The model is frozen.
"""

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from preread.align.exchanges import Exchange, packed
from preread.errors import UsageError
from preread.values import KVBlock, Span

try:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig
except ImportError as error:  # both or one of them
    raise UsageError("this needs PyTorch and transformers: pip install 'preread[cloud]'") from error

Single = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
Rows = Sequence["torch.Tensor"]

_AT_ONCE: Final = {"cuda": 16, "cpu": 1}
"""Contexts in one batch: a GPU is idle with fewer, a CPU is busy with one."""


@dataclass(frozen=True, slots=True)
class Behind:
    """What follows B contexts that are filled up to T tokens: R rows each, filled up too.

    Attributes:
        tokens, positions: (B, R).
        mask: (B, 1, R, T + R), added to attention scores.
        predicts: rows of all B · R after which the answers' tokens follow, of each context's exchanges in turn.
    """

    tokens: "torch.Tensor"
    positions: "torch.Tensor"
    mask: "torch.Tensor"
    predicts: "torch.Tensor"


def use_threads(count: int) -> None:
    """PyTorch computes with so many threads from now on, in this process."""
    torch.set_num_threads(count)


def faster() -> torch.dtype:
    """bfloat16 where this machine multiplies matrices of it faster, as with AMX or on a GPU, and float32 elsewhere.

    The median of three products each, of matrices such as models have; half a second on one core.
    """
    device = _device()
    took = {}
    for kind in (torch.float32, torch.bfloat16):
        rows, weights = (torch.ones(size, 1024, dtype=kind, device=device) for size in (256, 4096))
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            float((rows @ weights.T)[0, 0])  # a GPU answers when it is done
            times.append(time.perf_counter() - begun)
        took[kind] = sorted(times[1:])[1]
    return torch.bfloat16 if took[torch.bfloat16] < took[torch.float32] else torch.float32


def load(path: Path, near: bool, kind: torch.dtype = torch.float32) -> "Frozen":
    """Load a GGUF file, its weights as `kind`. `near`: llama.cpp rotates this model's channels in neighbouring pairs.

    Raises:
        UsageError: transformers cannot read it.
    """
    dense = GgufConfig(dequantize=True)  # packed weights cannot be differentiated
    try:
        with redirect_stderr(io.StringIO()):  # two progress bars, which nothing else turns off
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=kind, quantization_config=dense
            )
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise UsageError(f"transformers cannot read {path.name}: {error}") from error
    return Frozen(model.to(_device()), near)


def load_checkpoint(folder: Path, near: bool, kind: str) -> "Frozen":
    """Load a folder as `save_pretrained` writes it; `kind`: "bfloat16", "float16" or "float32". `near`: as for `load`.

    Raises:
        UsageError: transformers cannot read it.
    """
    try:
        with redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, kind))
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise UsageError(f"transformers cannot read {folder.name}: {error}") from error
    return Frozen(model.to(_device()), near)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Frozen:
    """A model whose weights stay as they are. Its channels of K lie half a head apart from those they rotate with."""

    def __init__(self, model: Any, near: bool) -> None:
        self.near = near
        self._model = model.eval().requires_grad_(False)

    @property
    def at_once(self) -> int:
        """How many contexts are best read at once."""
        return _AT_ONCE[self._model.device.type]

    def tensor(self, values: npt.NDArray[Any]) -> "torch.Tensor":
        """Where the model computes; on a CPU it is the very same memory."""
        return torch.from_numpy(values).to(self._model.device)

    def behind(self, followed: Sequence[Sequence[Exchange]], contexts: Sequence[int]) -> Behind:
        """What follows contexts of so many tokens each, one exchange at least behind each."""
        room = max(contexts)
        each = [
            packed([replace(one, behind=count if one.behind is None else one.behind) for one in its], room)
            for its, count in zip(followed, contexts, strict=True)
        ]
        rows = max(len(one.tokens) for one in each)
        tokens, positions = (np.zeros((len(each), rows), np.int64) for _ in range(2))
        sees = np.zeros((len(each), 1, rows, room + rows), np.bool_)
        for number, one in enumerate(each):
            count = len(one.tokens)
            tokens[number, :count], positions[number, :count] = one.tokens, one.positions
            sees[number, 0, :count, : room + count] = one.sees
        kind = self._model.dtype
        mask = torch.zeros(sees.shape, dtype=kind, device=self._model.device)
        mask.masked_fill_(~self.tensor(sees), torch.finfo(kind).min)
        predicts = np.concatenate([number * rows + one.predicts for number, one in enumerate(each)])
        return Behind(self.tensor(tokens), self.tensor(positions), mask, self.tensor(predicts))

    def logprobs(self, k: Rows, v: Rows, behind: Behind) -> "torch.Tensor":
        """Log-probabilities (sum of A, vocab) at the answers' positions, behind contexts of this KV.

        `k`, `v`: of each layer (B, kv_heads, T, head_dim), K rotated, its channels in the order of `here`.
        """
        cache, kind = DynamicCache(), self._model.dtype
        for layer, (keys, values) in enumerate(zip(k, v, strict=True)):
            cache.update(keys.to(kind), values.to(kind), layer)
        read = self._model.model(
            input_ids=behind.tokens,
            position_ids=behind.positions,
            attention_mask=behind.mask,
            cache=cache,
            use_cache=True,
        ).last_hidden_state
        return self._said(read.flatten(0, 1)[behind.predicts])

    def read(self, texts: Sequence[Tokens]) -> "tuple[list[torch.Tensor], list[torch.Tensor]]":
        """Exact K and V of contexts, of each layer (B, kv_heads, T, head_dim), as `logprobs` takes them.

        Shorter ones are filled up with what nothing may attend to.
        """
        with torch.no_grad():
            cache = self._model.model(input_ids=self._ids(texts), use_cache=True).cache
        return [layer.keys.float() for layer in cache.layers], [layer.values.float() for layer in cache.layers]

    def block(self, tokens: Tokens) -> KVBlock:
        """Exact KV of a context, as llama.cpp has it."""
        k, v = (np.stack([layer[0].cpu().numpy() for layer in rows]) for rows in self.read([tokens]))
        halves = (rows.astype(np.float16) for rows in (self.there(k), v))
        return KVBlock(Span(0, len(tokens)), Span(0, len(k)), *halves)

    def loss(self, tokens: Tokens, tail: Tokens) -> float:
        """Nats a token on what follows a context, but for its first token."""
        with torch.no_grad():
            whole = self._model.model(input_ids=self._ids([np.concatenate([tokens, tail])])).last_hidden_state
            said = self._said(whole[0, len(tokens) : -1])
            return -float(said[torch.arange(len(tail) - 1), self.tensor(tail[1:].astype(np.int64))].mean())

    def inputs(
        self, texts: Sequence[Tokens], layers: Sequence[int], told: Sequence[npt.NDArray[np.int64]], likeliest: int
    ) -> "tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]":
        """What layers read of texts, and what this model says of them.

        The residual stream (B, T, width) that each of these layers reads, as `LlamaCpp.inputs` has it; and of what
        follows each of the tokens `told` of each text, all in turn, so many likeliest tokens and log-probabilities.
        """
        with torch.no_grad():
            read = self._model.model(input_ids=self._ids(texts), output_hidden_states=True)
            last = [read.last_hidden_state[number, self.tensor(rows)] for number, rows in enumerate(told)]
            logprobs, ids = self._said(torch.cat(last)).topk(likeliest, dim=1)
        return [read.hidden_states[layer].float() for layer in layers], ids, logprobs

    def here(self, k: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """K's channels in transformers' order, which rotates channels half a head apart."""
        return np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1) if self.near else k

    def there(self, k: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `here` was given, as llama.cpp has it."""
        return np.stack(np.split(k, 2, axis=-1), axis=-1).reshape(k.shape) if self.near else k

    def _said(self, rows: "torch.Tensor") -> "torch.Tensor":
        return self._model.lm_head(rows).float().log_softmax(-1)

    def _ids(self, texts: Sequence[Tokens]) -> "torch.Tensor":
        ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, tokens in zip(ids, texts, strict=True):
            row[: len(tokens)] = tokens
        return self.tensor(ids)
