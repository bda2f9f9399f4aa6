"""A model that can be differentiated: what it predicts after a context, as a function of that context's KV.

transformers reads the same GGUF file, its weights as float32, and PyTorch differentiates: this is their only home, and
only who teaches contexts installs them (`pip install 'preread[cloud]'`). The model is frozen; what learns is one
context's KV, as a change of each channel in units of how much that channel varies over the context.
"""

import io
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
    from transformers import AutoModelForCausalLM, DynamicCache
except ImportError as error:  # both or one of them
    raise UsageError("teaching needs PyTorch and transformers: pip install 'preread[cloud]'") from error

Single = npt.NDArray[np.float32]

_SINK_TOKENS = 4
"""At the context's start, never changed: every later token leans on them."""

_NORM = 1.0
_DECAYS = (0.9, 0.99)
_MEASURED_ROWS = 512


def use_threads(count: int) -> None:
    """PyTorch computes with so many threads from now on, in this process."""
    torch.set_num_threads(count)


def load(path: Path, near: bool) -> "Frozen":
    """Load a GGUF file. `near`: llama.cpp rotates this model's channels in neighbouring pairs.

    Raises:
        UsageError: transformers cannot read it.
    """
    try:
        with redirect_stderr(io.StringIO()):  # two progress bars, which nothing else turns off
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise UsageError(f"transformers cannot read {path.name}: {error}") from error
    return Frozen(model.to("cuda" if torch.cuda.is_available() else "cpu"), near)


class Frozen:
    """A model whose weights stay as they are."""

    def __init__(self, model: Any, near: bool) -> None:
        self.near = near
        self._model = model.eval().requires_grad_(False)

    def tensor(self, values: npt.NDArray[Any]) -> "torch.Tensor":
        """Where the model computes; on a CPU it is the very same memory."""
        return torch.from_numpy(values).to(self._model.device)

    def logprobs(self, k: torch.Tensor, v: torch.Tensor, exchanges: Sequence[Exchange]) -> torch.Tensor:
        """Log-probabilities (sum of A, vocab) at the answers' positions, behind a context of this KV.

        `k`, `v`: (layers, kv_heads, tokens, head_dim), K rotated, its channels in the order of `here`.
        """
        cache = DynamicCache()
        for layer in range(len(k)):
            cache.update(k[layer][None], v[layer][None], layer)
        batch = packed(exchanges, k.shape[2])
        hidden = torch.finfo(torch.float32).min
        mask = np.where(batch.sees, np.float32(0), np.float32(hidden))
        read = self._model.model(
            input_ids=self.tensor(batch.tokens.astype(np.int64))[None],
            position_ids=self.tensor(batch.positions)[None],
            attention_mask=self.tensor(mask)[None, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        return self._model.lm_head(read[self.tensor(batch.predicts)]).log_softmax(-1)

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
        free = frozen.tensor(np.arange(exact.k.shape[2])[:, None] >= _SINK_TOKENS)
        self._scales = [rows[:, :, _SINK_TOKENS:].std(dim=2, keepdim=True) * free for rows in (self._k, self._v)]
        self._changes = [torch.zeros_like(rows, requires_grad=True) for rows in (self._k, self._v)]
        self._optimiser = torch.optim.Adam(self._changes, betas=_DECAYS)

    def step(self, exchanges: Sequence[Exchange], rate: float) -> float:
        """One step towards the teacher's distributions (cross-entropy, Adam); nats a token before it."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        found = self._frozen.logprobs(*self._rows(), exchanges)
        ids, shares = targets(exchanges)
        likely = found.gather(1, self._frozen.tensor(ids.astype(np.int64)))
        loss = -(self._frozen.tensor(shares) * likely).sum(-1).mean()
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._changes, _NORM)
        self._optimiser.step()
        return float(loss.detach())

    def losses(self, exchanges: Sequence[Exchange]) -> list[Single]:
        """Nats of each answer's tokens, (A,) for each exchange."""
        found: list[Single] = []
        with torch.no_grad():
            for batch in batches(exchanges, _MEASURED_ROWS):
                answers = self._frozen.tensor(np.concatenate([one.answer for one in batch]).astype(np.int64))
                nats = -self._frozen.logprobs(*self._rows(), batch).gather(1, answers[:, None])[:, 0].cpu().numpy()
                found += np.split(nats, np.cumsum([len(one.answer) for one in batch])[:-1])
        return found

    def block(self) -> KVBlock:
        """The KV as it is now, as llama.cpp would cache it."""
        k, v = (rows.detach().cpu().numpy() for rows in self._rows())
        half = [np.clip(rows, -65504, 65504).astype(np.float16) for rows in (self._frozen.there(k), v)]
        return KVBlock(self._exact.tokens, self._exact.layers, *half)

    def state(self) -> dict[str, Single]:
        """All that `resume` needs to go on."""
        held = self._optimiser.state_dict()["state"]
        found = {f"change-{n}": rows.detach().cpu().numpy() for n, rows in enumerate(self._changes)}
        return found | {f"{key}-{n}": value.cpu().numpy() for n in held for key, value in held[n].items()}

    def resume(self, state: Mapping[str, Single]) -> None:
        """Go on from where `state` was taken, with a pupil of the same context."""
        with torch.no_grad():
            for n, rows in enumerate(self._changes):
                rows.copy_(self._frozen.tensor(state[f"change-{n}"]))
        held = {
            n: {key: torch.from_numpy(np.asarray(state[f"{key}-{n}"])) for key in ("step", "exp_avg", "exp_avg_sq")}
            for n in range(len(self._changes))
            if f"step-{n}" in state
        }
        self._optimiser.load_state_dict(self._optimiser.state_dict() | {"state": held})

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        (k_scale, v_scale), (k_change, v_change) = self._scales, self._changes
        return self._k + k_scale * k_change, self._v + v_scale * v_change
