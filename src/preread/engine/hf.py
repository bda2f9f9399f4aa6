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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preread.align.exchanges import Exchange, batches, packed, targets
from preread.codec.rope import Rope, angles
from preread.errors import UsageError
from preread.values import Half, KVBlock, Span

try:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig
except ImportError as error:  # both or one of them
    raise UsageError("this needs PyTorch and transformers: pip install 'preread[cloud]'") from error

Single = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
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

    def read(self, tokens: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
        """Exact KV of a context, each (layers, kv_heads, tokens, head_dim), as `logprobs` takes it."""
        with torch.no_grad():
            cache = self._model.model(input_ids=self._ids(tokens), use_cache=True).cache
        k, v = (torch.stack([getattr(layer, rows)[0] for layer in cache.layers]) for rows in ("keys", "values"))
        return k, v

    def inputs(self, tokens: Tokens, layers: Sequence[int]) -> list[Single]:
        """The residual stream (tokens, width) that each of these layers reads, as `LlamaCpp.inputs` has it."""
        with torch.no_grad():
            hidden = self._model.model(input_ids=self._ids(tokens), output_hidden_states=True).hidden_states
        return [hidden[layer][0].float().cpu().numpy() for layer in layers]

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
        self._k = frozen.tensor(frozen.here(exact.k.astype(np.float32)))
        self._v = frozen.tensor(exact.v.astype(np.float32))
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


@dataclass(frozen=True, slots=True)
class Seen:
    """A document that a guide learns from.

    Attributes:
        read: (tokens, R) what the large model makes of it, projected as `Weights.inward` says.
        k, v: the small model's exact KV, as `Frozen.read` gives it.
        exchanges: what is to be predicted behind it.
    """

    read: Half
    k: "torch.Tensor"
    v: "torch.Tensor"
    exchanges: tuple[Exchange, ...]


class Learner:
    """What a guide adds to any context's KV, learning; at first it adds nothing."""

    def __init__(self, frozen: Frozen, first: int, scales: tuple[Single, Single], read: int, rank: int, rope: Rope):
        """
        Args:
            first: the first layer that is changed.
            scales: what each channel of K before rotation and of V varies by, as llama.cpp has them, each
                (layers, kv_heads, head_dim) of the layers from `first` on.
            read: how many channels of the large model's reading there are; `rank`: how many a layer makes of them.
            rope: how llama.cpp rotates the model's K.
        """
        layers, heads, dim = scales[0].shape
        self._frozen, self._first, self._heads, self._rope = frozen, first, heads, replace(rope, near=False)
        self._scales = np.concatenate([frozen.here(scales[0]), scales[1]], axis=1)
        self._units = frozen.tensor(self._scales[:, :, None])
        channels, source = 2 * heads * dim, np.random.default_rng(0)
        start = {
            "down": source.normal(size=(layers, read, rank)) / np.sqrt(read), "up": np.zeros((layers, rank, channels)),
            "bias": np.zeros((layers, channels)), "gates": np.zeros((layers, read, 2 * heads)),
            "gate_bias": np.zeros((layers, 2 * heads)),
        }  # fmt: skip
        self._weights = {
            name: frozen.tensor(value.astype(np.float32)).requires_grad_() for name, value in start.items()
        }
        self._learning = list(self._weights.values())
        self._optimiser = torch.optim.Adam(self._learning, betas=_DECAYS)

    def step(self, seen: Seen, read: Half, rate: float) -> float:
        """One step towards what follows a document (cross-entropy, Adam); nats a token before it.

        `read`: the document's own, or another's for a control, (any number of tokens, R).
        """
        loss = self._frozen.loss(*self._rows(seen, read), seen.exchanges)
        return _descend(self._optimiser, self._learning, loss, rate)

    def losses(self, seen: Seen, read: Half) -> list[Single]:
        """Nats of what follows a document, for each exchange."""
        with torch.no_grad():
            return self._frozen.losses(*self._rows(seen, read), seen.exchanges)

    def weights(self) -> dict[str, Single]:
        """By their names in `align.guide.Weights`, for channels as llama.cpp has them; without the projection."""
        found = {name: value.detach().cpu().numpy().copy() for name, value in self._weights.items()}
        layers, heads, dim = self._scales.shape
        for name in ("up", "bias"):
            value = found[name].reshape(layers, -1, heads, dim) * self._scales[:, None]
            value[:, :, : heads // 2] = self._frozen.there(value[:, :, : heads // 2])
            found[name] = np.ascontiguousarray(value.reshape(found[name].shape))
        return found

    def state(self) -> dict[str, Single]:
        """All that `resume` needs to go on."""
        return _state(self._optimiser, self._learning)

    def resume(self, state: Mapping[str, Single]) -> None:
        """Go on from where `state` was taken, with a learner of the same shapes."""
        _resume(self._optimiser, self._learning, state)

    def _rows(self, seen: Seen, read: Half) -> tuple[list["torch.Tensor"], list["torch.Tensor"]]:
        """The document's KV, changed. `align.guide.Guide.changes` computes the same change."""
        w, count, first = self._weights, seen.k.shape[2], self._first
        rows = self._frozen.tensor(np.resize(read, (count, read.shape[1])).astype(np.float32))
        added = torch.nn.functional.gelu(rows @ w["down"], approximate="tanh") @ w["up"] + w["bias"][:, None]
        added = added.view(len(added), count, 2 * self._heads, -1).transpose(1, 2) * self._units
        gates = torch.sigmoid(rows @ w["gates"] + w["gate_bias"][:, None]).transpose(1, 2)
        free = self._frozen.tensor(np.arange(count) >= SINK_TOKENS)
        added = added * (gates * free)[..., None]
        k, v = seen.k.float(), seen.v.float()
        k_added, v_added = self._rotated(added[:, : self._heads]), added[:, self._heads :]
        return [*k[:first], *(k[first:] + k_added)], [*v[:first], *(v[first:] + v_added)]

    def _rotated(self, k: "torch.Tensor") -> "torch.Tensor":
        cosines, sines = (self._frozen.tensor(each) for each in angles(self._rope, Span(0, k.shape[2])))
        pairs = cosines.shape[1]
        a, b, rest = k[..., :pairs], k[..., pairs : 2 * pairs], k[..., 2 * pairs :]
        return torch.cat([a * cosines - b * sines, a * sines + b * cosines, rest], dim=-1)


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
