"""A model that can be differentiated: what it predicts after a context, as a function of that context's KV.

transformers reads the same GGUF file and PyTorch differentiates: this is their only home, and only who teaches contexts
or fits guides installs them (`pip install 'preread[cloud]'`). The model is frozen; what learns is one context's KV, as
a change of each channel in units of how much that channel varies over the context, or what makes such a change out of
a large model's reading of any context.
"""

import io
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preread.align.exchanges import Exchange, batches, packed, targets
from preread.errors import UsageError
from preread.values import KVBlock

try:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig
except ImportError as error:  # both or one of them
    raise UsageError("this needs PyTorch and transformers: pip install 'preread[cloud]'") from error

Single = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]
Rows = Sequence["torch.Tensor"]

SINK_TOKENS = 4
"""At the context's start, never changed: every later token leans on them."""

_NORM = 1.0
_DECAYS = (0.9, 0.99)
_MEASURED_ROWS = 512


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


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Frozen:
    """A model whose weights stay as they are."""

    def __init__(self, model: Any, near: bool) -> None:
        self.near = near
        self._model = model.eval().requires_grad_(False)

    def tensor(self, values: npt.NDArray[Any]) -> "torch.Tensor":
        """Where the model computes; on a CPU it is the very same memory."""
        return torch.from_numpy(values).to(self._model.device)

    def logprobs(self, k: Rows, v: Rows, lesson: Sequence[Exchange]) -> torch.Tensor:
        """Log-probabilities (sum of A, vocab) at the answers' positions, behind a context of this KV.

        `k`, `v`: of each layer (kv_heads, tokens, head_dim), K rotated, its channels in the order of `here`.
        """
        cache, kind = DynamicCache(), self._model.dtype
        for layer, (keys, values) in enumerate(zip(k, v, strict=True)):
            cache.update(keys[None].to(kind), values[None].to(kind), layer)
        batch = packed(lesson, k[0].shape[1])
        hidden = torch.finfo(kind).min
        mask = np.where(batch.sees, np.float32(0), np.float32(hidden))
        read = self._model.model(
            input_ids=self.tensor(batch.tokens.astype(np.int64))[None],
            position_ids=self.tensor(batch.positions)[None],
            attention_mask=self.tensor(mask).to(kind)[None, None],
            cache=cache,
            use_cache=True,
        ).last_hidden_state[0]
        return self._model.lm_head(read[self.tensor(batch.predicts)]).float().log_softmax(-1)

    def loss(self, k: Rows, v: Rows, lesson: Sequence[Exchange]) -> "torch.Tensor":
        """Cross-entropy to the teacher's distributions, nats a token of the answers, where `logprobs` finds them."""
        ids, shares = targets(lesson)
        likely = self.logprobs(k, v, lesson).gather(1, self.tensor(ids.astype(np.int64)))
        return -(self.tensor(shares) * likely).sum(-1).mean()

    def losses(self, k: Rows, v: Rows, lesson: Sequence[Exchange]) -> list[Single]:
        """Nats of each answer's own tokens, (A,) for each exchange."""
        found: list[Single] = []
        with torch.no_grad():
            for batch in batches(lesson, _MEASURED_ROWS):
                answers = self.tensor(np.concatenate([one.answer for one in batch]).astype(np.int64))
                nats = -self.logprobs(k, v, batch).gather(1, answers[:, None])[:, 0].cpu().numpy()
                found += np.split(nats, np.cumsum([len(one.answer) for one in batch])[:-1])
        return found

    def gradients(self, k: Single, v: Single, lesson: Sequence[Exchange]) -> tuple[Single, Single]:
        """How `loss`, summed over the answers' tokens, changes with a context's K and V, as llama.cpp has them."""
        keys, values = (part.requires_grad_() for part in self.rows(k, v))
        (self.loss(keys, values, lesson) * sum(len(one.answer) for one in lesson)).backward()
        return self.there(keys.grad.cpu().numpy()), values.grad.cpu().numpy()

    def read(self, tokens: Tokens) -> tuple[Single, Single]:
        """Exact KV of a context as llama.cpp has it, each (layers, kv_heads, tokens, head_dim)."""
        with torch.no_grad():
            cache = self._model.model(input_ids=self._ids(tokens), use_cache=True).cache
        k, v = (
            torch.stack([getattr(layer, rows)[0] for layer in cache.layers]).float().cpu().numpy()
            for rows in ("keys", "values")
        )
        return self.there(k), v

    def rows(self, k: Single, v: Single) -> "tuple[torch.Tensor, torch.Tensor]":
        """KV as llama.cpp has it, as `logprobs` takes it."""
        return self.tensor(np.ascontiguousarray(self.here(k))), self.tensor(v)

    def inputs(self, tokens: Tokens, layers: Sequence[int], told: Indices) -> tuple[list[Single], Single]:
        """What a text's layers read, and what this model says of it.

        The residual stream (tokens, width) that each of these layers reads, as `LlamaCpp.inputs` has it, and
        log-probabilities (told, vocab) of what follows each of the tokens `told`.
        """
        with torch.no_grad():
            read = self._model.model(input_ids=self._ids(tokens), output_hidden_states=True)
            follows = self._model.lm_head(read.last_hidden_state[0, self.tensor(told)]).float().log_softmax(-1)
        return [read.hidden_states[layer][0].float().cpu().numpy() for layer in layers], follows.cpu().numpy()

    def _ids(self, tokens: Tokens) -> "torch.Tensor":
        return self.tensor(tokens.astype(np.int64))[None]

    def pupil(self, exact: KVBlock) -> "Pupil":
        """A context of this model, to be taught; `exact` is its KV, of all layers, as llama.cpp has it."""
        return Pupil(self, exact)

    def here(self, k: Single) -> Single:
        """K's channels in transformers' order, which rotates channels half a head apart."""
        return np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1) if self.near else k

    def there(self, k: Single) -> Single:
        """What `here` was given, as llama.cpp has it."""
        return np.stack(np.split(k, 2, axis=-1), axis=-1).reshape(k.shape) if self.near else k


class Pupil:
    """A context's KV that learns to answer as a teacher does."""

    def __init__(self, frozen: Frozen, exact: KVBlock) -> None:
        """`exact`: of all layers, from the context's start, as llama.cpp has it."""
        self._frozen, self._exact = frozen, exact
        self._k, self._v = frozen.rows(exact.k.astype(np.float32), exact.v.astype(np.float32))
        free = frozen.tensor(np.arange(exact.k.shape[2])[:, None] >= SINK_TOKENS)
        self._scales = [rows[:, :, SINK_TOKENS:].std(dim=2, keepdim=True) * free for rows in (self._k, self._v)]
        self._changes = [torch.zeros_like(rows, requires_grad=True) for rows in (self._k, self._v)]
        self._optimiser = torch.optim.Adam(self._changes, betas=_DECAYS)

    def step(self, exchanges: Sequence[Exchange], rate: float) -> float:
        """One step towards the teacher's distributions (cross-entropy, Adam); nats a token before it."""
        return _descend(self._optimiser, self._changes, self._frozen.loss(*self._rows(), exchanges), rate)

    def losses(self, exchanges: Sequence[Exchange]) -> list[Single]:
        """Nats of each answer's tokens, (A,) for each exchange."""
        with torch.no_grad():
            return self._frozen.losses(*self._rows(), exchanges)

    def block(self) -> KVBlock:
        """The KV as it is now, as llama.cpp would cache it."""
        k, v = (rows.detach().cpu().numpy() for rows in self._rows())
        half = [np.clip(rows, -65504, 65504).astype(np.float16) for rows in (self._frozen.there(k), v)]
        return KVBlock(self._exact.tokens, self._exact.layers, *half)

    def state(self) -> dict[str, Single]:
        """All that `resume` needs to go on."""
        return _state(self._optimiser, self._changes)

    def resume(self, state: Mapping[str, Single]) -> None:
        """Go on from where `state` was taken, with a pupil of the same context."""
        _resume(self._optimiser, self._changes, state)

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        (k_scale, v_scale), (k_change, v_change) = self._scales, self._changes
        return self._k + k_scale * k_change, self._v + v_scale * v_change


def _descend(optimiser: Any, learning: "list[torch.Tensor]", loss: "torch.Tensor", rate: float) -> float:
    """One step of Adam at this rate; the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learning, _NORM)
    optimiser.step()
    return float(loss.detach())


def _state(optimiser: Any, learning: "list[torch.Tensor]") -> dict[str, Single]:
    held = optimiser.state_dict()["state"]
    found = {f"change-{n}": rows.detach().cpu().numpy() for n, rows in enumerate(learning)}
    return found | {f"{key}-{n}": value.cpu().numpy() for n in held for key, value in held[n].items()}


def _resume(optimiser: Any, learning: "list[torch.Tensor]", state: Mapping[str, Single]) -> None:
    with torch.no_grad():
        for n, rows in enumerate(learning):
            rows.copy_(torch.from_numpy(state[f"change-{n}"]))
    held = {
        n: {key: torch.from_numpy(np.asarray(state[f"{key}-{n}"])) for key in ("step", "exp_avg", "exp_avg_sq")}
        for n in range(len(learning))
        if f"step-{n}" in state
    }
    optimiser.load_state_dict(optimiser.state_dict() | {"state": held})
