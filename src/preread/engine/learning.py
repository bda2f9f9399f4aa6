"""What learns: one context's KV, or a guide, which changes any context's KV by a large model's reading of it.

Either learns by the loss of a frozen model on what follows (see `hf`), in units of what a channel of KV varies by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from preread.align.exchanges import CANDIDATES, Exchange, Single, Tokens, batches, targets
from preread.codec.rope import Ropes, alike, angles
from preread.engine.hf import Behind, Frozen, Rows
from preread.values import KVBlock, Span

SINK_TOKENS: Final = 4
"""At the context's start, never changed: every later token leans on them."""

_NORM: Final = 1.0
_DECAYS: Final = (0.9, 0.99)
_MEASURED_ROWS: Final = 512
_BIAS_RATE: Final = 10.0
"""Of a guide's bias against what it reads, of which many channels add up."""

_TINY: Final = 1e-12
"""Of Adam: a loss per token asks little of a single weight."""


class Pupil:
    """A context's KV that learns to answer as a teacher does."""

    def __init__(self, frozen: Frozen, exact: KVBlock) -> None:
        """`exact`: of all layers, from the context's start, as llama.cpp has it."""
        self._frozen, self._exact = frozen, exact
        self._k = frozen.tensor(np.ascontiguousarray(frozen.here(exact.k.astype(np.float32))))
        self._v = frozen.tensor(exact.v.astype(np.float32))
        free = frozen.tensor(np.arange(exact.k.shape[2])[:, None] >= SINK_TOKENS)
        self._scales = [rows[:, :, SINK_TOKENS:].std(dim=2, keepdim=True) * free for rows in (self._k, self._v)]
        self._changes = [torch.zeros_like(rows, requires_grad=True) for rows in (self._k, self._v)]
        self._optimiser = torch.optim.Adam(self._changes, betas=_DECAYS)

    def step(self, exchanges: Sequence[Exchange], rate: float) -> float:
        """One step towards the teacher's distributions (cross-entropy, Adam); nats a token before it."""
        ids, shares = map(self._frozen.tensor, targets(exchanges))
        loss = _cross_entropy(self._logprobs(exchanges), ids.long(), shares).mean()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._changes, _NORM)
        self._optimiser.step()
        return float(loss.detach())

    def losses(self, exchanges: Sequence[Exchange]) -> list[Single]:
        """Nats of each answer's tokens, (A,) for each exchange."""
        found: list[Single] = []
        with torch.no_grad():
            for some in batches(exchanges, _MEASURED_ROWS):
                nats = _nats(self._logprobs(some), self._frozen.tensor(_answers(some)))
                found += np.split(nats, np.cumsum([len(one.answer) for one in some])[:-1])
        return found

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

    def _logprobs(self, exchanges: Sequence[Exchange]) -> torch.Tensor:
        k, v = self._rows()
        return self._frozen.logprobs(k[:, None], v[:, None], self._frozen.behind([exchanges], [k.shape[2]]))

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        (k_scale, v_scale), (k_change, v_change) = self._scales, self._changes
        return self._k + k_scale * k_change, self._v + v_scale * v_change


@dataclass(frozen=True, slots=True)
class Document:
    """A context, and what follows it.

    Attributes:
        tokens: as the small model reads it.
        theirs: as the large one does; `at`: of each of the small one's tokens the matching one of these.
        exchanges: what is to be predicted behind it.
        said: their answers are the document's own text and both models' tokens are the same, so that the large model's
            distributions are learnt, which say more than the one token that follows (Hinton et al., arXiv 1503.02531).
    """

    tokens: Tokens
    theirs: Tokens
    at: npt.NDArray[np.intp]
    exchanges: tuple[Exchange, ...]
    said: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What both models make of B documents, filled up to T tokens.

    Attributes:
        k, v: the small model's exact KV, of each layer (B, kv_heads, T, head_dim).
        read: what the large one reads, projected, (tokens, R) for each.
        behind, ids, shares: what is to be predicted, by (A, C) token ids and their shares of 1.
        answers: the answers' own tokens, (A,); `counts`: how many of them each document has.
        weighs: (A,) what each counts: a document the root of what it has, so that a few short answers are heard beside
            a page.
    """

    k: Rows
    v: Rows
    read: tuple[torch.Tensor, ...]
    behind: Behind
    ids: torch.Tensor
    shares: torch.Tensor
    answers: torch.Tensor
    counts: tuple[int, ...]
    weighs: torch.Tensor


class Readers:
    """A small model and a large one that read the same documents."""

    def __init__(self, small: Frozen, large: Frozen, reads: Sequence[int], mean: Single, inward: Single) -> None:
        """`reads`: layers of the large one; `mean` (X,), `inward` (X, R): what is read is projected by."""
        self._small, self._large, self._reads = small, large, reads
        self._mean, self._inward = large.tensor(mean), large.tensor(inward)

    def read(self, documents: Sequence[Document]) -> Reading:
        """What both make of some documents."""
        small = self._small
        streams, ids, shares = told(self._large, self._reads, documents)
        read = tuple((rows - self._mean) @ self._inward for rows in streams)
        answers = [_answers(one.exchanges) for one in documents]
        return Reading(
            *small.read([one.tokens for one in documents]),
            read,
            small.behind([one.exchanges for one in documents], [len(one.tokens) for one in documents]),
            ids,
            shares,
            small.tensor(np.concatenate(answers)),
            tuple(map(len, answers)),
            small.tensor(np.concatenate([np.full(len(its), len(its) ** -0.5, np.float32) for its in answers])),
        )


def told(
    large: Frozen, reads: Sequence[int], documents: Sequence[Document]
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """What layers of a large model read of documents, normalised and side by side, (tokens, X) for each.

    And what is to be predicted: (A, C) token ids, and their shares of 1.
    """
    rows = [
        np.concatenate([np.arange(len(one.answer)) + (one.behind or 0) for one in document.exchanges])
        if document.said
        else np.zeros(0, np.int64)
        for document in documents
    ]
    streams, ids, logprobs = large.inputs([one.theirs for one in documents], reads, rows, CANDIDATES)
    found = [
        torch.cat([_normalised(stream[number, large.tensor(one.at)]) for stream in streams], dim=1)
        for number, one in enumerate(documents)
    ]
    said = iter(zip(ids.split([len(its) for its in rows]), logprobs.split([len(its) for its in rows]), strict=True))
    likely, shares = [], []
    for document, (its, nats) in zip(documents, said, strict=True):
        if document.said:
            likely.append(its)
            shares.append(nats.softmax(-1))
        else:
            given, parts = map(large.tensor, targets(document.exchanges))
            likely.append(torch.nn.functional.pad(given.long(), (0, CANDIDATES - given.shape[1])))
            shares.append(torch.nn.functional.pad(parts, (0, CANDIDATES - parts.shape[1])))
    return found, torch.cat(likely), torch.cat(shares)


class Learner:
    """A guide that learns: a linear function of what a large model reads, added to a small one's KV.

    With weights of zero, as it begins, it changes nothing.
    """

    def __init__(self, small: Frozen, ropes: Ropes, first: int, units: Single, width: int) -> None:
        """`units` (layers from `first` on, 2 · kv_heads, head_dim): what K before rotation and V vary by, as llama.cpp
        has them; `width`: R, of what is read."""
        layers, heads, dim = units.shape
        self._small, self._ropes, self._first = small, ropes[first:], first
        self._units = small.tensor(np.ascontiguousarray(self._here(units))).reshape(layers, 1, 1, heads, dim)
        device = self._units.device
        self._added = torch.zeros(layers, width, heads * dim, device=device, requires_grad=True)
        self._bias = torch.zeros(layers, heads * dim, device=device, requires_grad=True)
        groups = [{"params": [self._added]}, {"params": [self._bias]}]
        self._optimiser = torch.optim.Adam(groups, betas=_DECAYS, eps=_TINY)

    def ask(self, reading: Reading, read: Sequence[torch.Tensor]) -> None:
        """Add to what the next step does: the cross-entropy of all that is to be predicted.

        `read`: what the large model makes of each document, or for a control of others.
        """
        logprobs = self._small.logprobs(*self._changed(reading, read, 1.0), reading.behind)
        (_cross_entropy(logprobs, reading.ids, reading.shares) * reading.weighs).sum().backward()

    def step(self, rate: float) -> None:
        """One step of Adam by what was asked since the last one."""
        for group, times in zip(self._optimiser.param_groups, (1.0, _BIAS_RATE), strict=True):
            group["lr"] = rate * times
        self._optimiser.step()
        self._optimiser.zero_grad()

    def losses(self, reading: Reading, read: Sequence[torch.Tensor], strength: float) -> list[Single]:
        """Nats of the answers' own tokens, (A,) for each document; all that is added counts `strength` times."""
        with torch.no_grad():
            logprobs = self._small.logprobs(*self._changed(reading, read, strength), reading.behind)
            return np.split(_nats(logprobs, reading.answers), np.cumsum(reading.counts)[:-1])

    def weights(self) -> tuple[Single, Single]:
        """What is added per channel read (layers, R, C), and anyway (layers, C), as llama.cpp has K before rotation."""
        shape = self._units.shape[0], -1, *self._units.shape[3:]
        added, bias = (
            self._there((part.detach().reshape(shape) * self._units[:, 0]).cpu().numpy()).reshape(part.shape)
            for part in (self._added, self._bias)
        )
        return np.ascontiguousarray(added), np.ascontiguousarray(bias)

    def state(self) -> dict[str, Single]:
        """All that `resume` needs to go on."""
        return _state(self._optimiser, [self._added, self._bias])

    def resume(self, state: Mapping[str, Single]) -> None:
        """Go on from where `state` was taken."""
        _resume(self._optimiser, [self._added, self._bias], state)

    def _changed(self, reading: Reading, read: Sequence[torch.Tensor], strength: float) -> tuple[Rows, Rows]:
        k, v = list(reading.k), list(reading.v)
        count = k[0].shape[2]
        rows = torch.stack([torch.nn.functional.pad(one, (0, 0, 0, count - len(one))) for one in read])
        free = (torch.arange(count, device=rows.device) >= SINK_TOKENS) * strength
        added = torch.einsum("btr,lrc->lbtc", rows, self._added) + self._bias[:, None, None]
        changes = (added.unflatten(-1, self._units.shape[3:]) * (self._units * free[:, None, None])).transpose(2, 3)
        keys, values = changes.chunk(2, dim=2)  # (layers, B, kv_heads, T, head_dim)
        for layer, (key, value) in enumerate(zip(self._rotated(keys), values, strict=True), self._first):
            k[layer], v[layer] = k[layer] + key, v[layer] + value
        return k, v

    def _rotated(self, keys: torch.Tensor) -> torch.Tensor:
        turned = []
        for rope, layers in alike(self._ropes):
            pairs = len(rope.frequencies)
            cosines, sines = map(self._small.tensor, angles(rope, Span(0, keys.shape[-2])))
            part = keys[layers.start : layers.stop]
            a, b, rest = part.split([pairs, pairs, keys.shape[-1] - 2 * pairs], dim=-1)
            turned.append(torch.cat([a * cosines - b * sines, a * sines + b * cosines, rest], dim=-1))
        return torch.cat(turned)

    def _here(self, rows: Single) -> Single:
        """K's heads, the first half of (…, 2 · kv_heads, head_dim), in transformers' order."""
        k, v = np.split(rows, 2, axis=-2)
        return np.concatenate([self._small.here(k), v], axis=-2)

    def _there(self, rows: Single) -> Single:
        k, v = np.split(rows, 2, axis=-2)
        return np.concatenate([self._small.there(k), v], axis=-2)


def others(read: Sequence[torch.Tensor], before: torch.Tensor) -> list[torch.Tensor]:
    """For each document what the large model makes of the one before it, from the start again if that is shorter."""
    return [
        other[torch.arange(len(one), device=one.device) % len(other)]
        for one, other in zip(read, [before, *read[:-1]], strict=True)
    ]


def _normalised(rows: torch.Tensor) -> torch.Tensor:
    """Rows brought to a root mean square of 1, as `codec.profile.normalised` does."""
    return rows * (rows.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt()


def _cross_entropy(logprobs: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Nats of each row of `logprobs` (A, vocab) against shares (A, C) of some token ids."""
    return -(shares * logprobs.gather(1, ids)).sum(-1)


def _nats(logprobs: torch.Tensor, answers: torch.Tensor) -> Single:
    found: Single = -logprobs.gather(1, answers[:, None])[:, 0].cpu().numpy()
    return found


def _answers(exchanges: Sequence[Exchange]) -> npt.NDArray[np.int64]:
    return np.concatenate([one.answer for one in exchanges]).astype(np.int64)


def _state(optimiser: Any, learning: "list[torch.Tensor]") -> dict[str, Single]:
    held = optimiser.state_dict()["state"]
    found = {f"change-{n}": rows.detach().cpu().numpy().copy() for n, rows in enumerate(learning)}
    return found | {f"{key}-{n}": value.cpu().numpy().copy() for n in held for key, value in held[n].items()}


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
