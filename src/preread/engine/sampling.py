"""How the next token is chosen: OpenAI's and llama.cpp's usual parameters, done by llama.cpp's own samplers."""

from dataclasses import dataclass

import llama_cpp
import numpy as np
import numpy.typing as npt


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


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token.

    Attributes:
        token: its id.
        piece: its bytes; may end in the middle of a UTF-8 character.
        end: the model says that the answer ends here (the token itself is not part of the answer).
        logprob: its log-probability (nats), when asked for.
        top: the likeliest tokens with theirs, when asked for.
    """

    token: int
    piece: bytes
    end: bool
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """llama.cpp's sampler chain for one generation."""

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
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
        if sampling.temperature <= 0:
            add(llama_cpp.llama_sampler_init_greedy())
            return
        if sampling.top_k > 0:
            add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
        add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
        add(llama_cpp.llama_sampler_init_dist(sampling.seed))

    def _add(self, sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: object) -> int:
        """Choose a token from the logits of the last decoded position."""
        return int(llama_cpp.llama_sampler_sample(self._chain, context, -1))

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
