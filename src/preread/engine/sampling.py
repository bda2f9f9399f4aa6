"""How the next token is chosen: OpenAI's and llama.cpp's usual parameters, done by llama.cpp's own samplers."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypedDict

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine.grammar import Grammar

_MIROSTAT_M: Final = 100  # tokens that its first version estimates from, as in llama.cpp
_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters of one generation; the defaults are greedy, without an end other than the model's own.

    Attributes:
        max_tokens: at most so many tokens are generated.
        temperature: 0 is greedy.
        top_k: only the k most likely tokens; 0 is off.
        top_p: only the most likely tokens whose probabilities sum to this; 1 is off.
        min_p: only tokens at least this times as likely as the likeliest; 0 is off.
        seed: same seed, same tokens, on the same machine.
        frequency_penalty, presence_penalty: OpenAI's, over the generated tokens; 0 is off.
        logit_bias: (token id, bias) pairs added to the logits.
        top_logprobs: how many alternatives to report with each token; None: report no log-probabilities at all.
        prompt_logprobs: report those of the prompt's tokens as well, if of any.
        reported: ids of tokens whose log-probabilities are reported with each token instead of the likeliest ones'.
        min_tokens: the model does not end its answer before so many tokens.
        repeat_penalty: logits of tokens among the last `repeat_last_n` of prompt and answer are divided by it where
            they are positive, multiplied where not; 1 is off. A context's tokens do not count.
        typical_p: locally typical sampling (Meister et al. 2022); 1 is off.
        top_n_sigma: only tokens whose logits are within so many standard deviations of the highest; 0 is off.
        xtc_probability, xtc_threshold: how often all but the least likely of those above the threshold are excluded.
        dynatemp_range, dynatemp_exponent: the temperature varies by so much with the distribution's entropy; 0 is off.
        mirostat: 1 or 2: that version of Mirostat (Basu et al. 2020) instead of all that cuts tokens off; 0 is off.
        mirostat_tau, mirostat_eta: its target surprise and its learning rate.
        grammar: what the answer has to look like; None: anything.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    reported: tuple[int, ...] = ()
    min_tokens: int = 0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    grammar: Grammar | None = None


class SamplingFields(TypedDict, total=False):
    """Fields of `Sampling` as keyword arguments."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    frequency_penalty: float
    presence_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    top_logprobs: int | None
    prompt_logprobs: bool
    reported: tuple[int, ...]
    min_tokens: int
    repeat_penalty: float
    repeat_last_n: int
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    grammar: Grammar | None


USUAL: Final = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
"""What is used where neither a request nor a model says anything else: llama-server's."""

_OF_MODEL: Final[dict[str, tuple[str, type[int] | type[float], float, float]]] = {
    "temp": ("temperature", float, 0, 5),
    "top_k": ("top_k", int, 0, 1 << 20),
    "top_p": ("top_p", float, 0, 1),
    "min_p": ("min_p", float, 0, 1),
    "xtc_probability": ("xtc_probability", float, 0, 1),
    "xtc_threshold": ("xtc_threshold", float, 0, 1),
    "penalty_last_n": ("repeat_last_n", int, 0, 1 << 20),
    "penalty_repeat": ("repeat_penalty", float, 0.1, 10),
    "mirostat": ("mirostat", int, 0, 2),
    "mirostat_tau": ("mirostat_tau", float, 0, 100),
    "mirostat_eta": ("mirostat_eta", float, 0, 10),
}
"""Keys of a GGUF's `general.sampling`: the field, its type, and from where to where it makes sense."""


def usual(metadata: Callable[[str], str | None]) -> Sampling:
    """What a model's makers recommend in its file, as far as it makes sense, and `USUAL` for the rest.

    Args:
        metadata: the value of a key of the file as text, None where it has none.
    """
    found: dict[str, Any] = {}
    for key, (field, kind, least, most) in _OF_MODEL.items():
        try:
            value = kind(metadata(f"general.sampling.{key}") or "")
        except ValueError:
            continue
        if least <= value <= most:
            found[field] = value
    return replace(USUAL, **found)


def is_plain(sampling: Sampling) -> bool:
    """Whether the likeliest token is chosen, whatever came before it."""
    penalised = sampling.frequency_penalty or sampling.presence_penalty or sampling.repeat_penalty != 1
    return sampling.temperature <= 0 and not sampling.logit_bias and not penalised


@dataclass(frozen=True, slots=True)
class Sampled:
    """One generated token.

    Attributes:
        token: its id.
        piece: its bytes; may end in the middle of a UTF-8 character.
        end: the model says that the answer ends here (the token itself is not part of the answer).
        logprob: its log-probability (nats), when asked for.
        top: the likeliest tokens with theirs, or those that were to be reported, when asked for.
        given: it is one of the prompt's own, not a generated one.
        last: the answer has the form that it has to have, and ends with this token.
        forced: tokens that have to come next, as far as nothing else may.
        failure: why the answer cannot go on, where it cannot; there is no token then.
    """

    token: int
    piece: bytes
    end: bool
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    given: bool = False
    last: bool = False
    forced: tuple[int, ...] = ()
    failure: str | None = None


class Sampler:
    """llama.cpp's sampler chain for one generation, in llama-server's order. `prompt`: the tokens before it."""

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: npt.NDArray[np.int32]) -> None:
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        add = self._add
        if sampling.logit_bias:
            biases = (llama_cpp.llama_logit_bias * len(sampling.logit_bias))(
                *[llama_cpp.llama_logit_bias(*bias) for bias in sampling.logit_bias]
            )
            add(llama_cpp.llama_sampler_init_logit_bias(vocab_size, len(sampling.logit_bias), biases))
        if sampling.frequency_penalty or sampling.presence_penalty:
            penalties = 1.0, sampling.frequency_penalty, sampling.presence_penalty
            add(llama_cpp.llama_sampler_init_penalties(vocab_size, sampling.max_tokens, *penalties))
        if sampling.repeat_penalty != 1 and sampling.repeat_last_n > 0:
            of_repeats = llama_cpp.llama_sampler_init_penalties(
                vocab_size, sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0
            )
            for token in prompt[-sampling.repeat_last_n :]:
                llama_cpp.llama_sampler_accept(of_repeats, int(token))
            add(of_repeats)
        if sampling.temperature <= 0:
            add(llama_cpp.llama_sampler_init_greedy())
        elif sampling.mirostat:
            self._add_mirostat(sampling, vocab_size)
        else:
            self._add_cuts(sampling)
            self._add_temperature(sampling)
            add(llama_cpp.llama_sampler_init_dist(sampling.seed))

    def _add_cuts(self, sampling: Sampling) -> None:
        if sampling.top_n_sigma > 0:
            self._add(llama_cpp.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
        if sampling.top_k > 0:
            self._add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(llama_cpp.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            self._add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.xtc_probability > 0:
            cuts = sampling.xtc_probability, sampling.xtc_threshold
            self._add(llama_cpp.llama_sampler_init_xtc(*cuts, 1, sampling.seed))

    def _add_temperature(self, sampling: Sampling) -> None:
        if sampling.dynatemp_range > 0:
            varied = sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
            self._add(llama_cpp.llama_sampler_init_temp_ext(*varied))
        else:
            self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))

    def _add_mirostat(self, sampling: Sampling, vocab_size: int) -> None:
        aims = sampling.seed, sampling.mirostat_tau, sampling.mirostat_eta
        self._add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
        if sampling.mirostat == 1:
            self._add(llama_cpp.llama_sampler_init_mirostat(vocab_size, *aims, _MIROSTAT_M))
        else:
            self._add(llama_cpp.llama_sampler_init_mirostat_v2(*aims))

    def _add(self, sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: object, index: int = -1) -> int:
        """Choose a token from the logits after the batch's token number `index`; -1: the last that were wanted."""
        return int(llama_cpp.llama_sampler_sample(self._chain, context, index))

    def sample_among(self, logits: npt.NDArray[np.float32], ids: npt.NDArray[np.intp]) -> int:
        """Choose one of these tokens, at least one; logits (vocab,)."""
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits[ids]
        data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data, len(ids), -1, False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
        self._chain = None


def log_probabilities(
    logits: npt.NDArray[np.float32], token: int, top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log-probability of `token`, and the `top` likeliest tokens with theirs; logits (vocab,)."""
    wide = logits.astype(np.float64)
    peak = wide.max()
    normaliser = peak + np.log(np.exp(wide - peak).sum())
    best = np.argsort(-wide)[:top] if top else np.empty(0, np.int64)
    return float(wide[token] - normaliser), tuple((int(i), float(wide[i] - normaliser)) for i in best)


def reported_probabilities(
    logits: npt.NDArray[np.float32], token: int, reported: tuple[int, ...]
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log-probability of `token`, and those of given tokens in the order in which they are given; logits (vocab,).

    Nothing is sorted: the likeliest of a large vocabulary take ten times as long to find.
    """
    peak = logits.max()
    normaliser = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    return float(logits[token]) - normaliser, tuple((id, float(logits[id]) - normaliser) for id in reported)
