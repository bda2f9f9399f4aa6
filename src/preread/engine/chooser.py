"""How one answer's tokens are chosen, one after the other, from the logits of a step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine.grammar import MOST_NEEDED, Constraint
from preread.engine.sampling import Sampled, Sampler, Sampling, is_plain, log_probabilities, reported_probabilities

Tokens = npt.NDArray[np.int32]
Row = npt.NDArray[np.float32]

_LOOK_TOKENS: Final = 8
"""How far it is to the end of JSON is looked at anew after so many tokens."""
_SPARE_TOKENS: Final = 4
"""JSON that has so few tokens left beyond those is brought to its end: cut off it would be of no use."""


class Chooser:
    """Belongs to the engine's thread.

    Args:
        sampling: how tokens are chosen.
        prompt: the tokens before the first.
        vocab: llama.cpp's; `size`: its tokens; `ends`: those that end an answer.
        piece: a token's bytes; `special`: control tokens have some too.
        constraint: says which tokens may come; None: any.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Tokens,
        vocab: object,
        size: int,
        ends: npt.NDArray[np.int64],
        piece: Callable[..., bytes],
        constraint: Constraint | None = None,
    ) -> None:
        self._sampling, self._vocab, self._size, self._ends, self._piece = sampling, vocab, size, ends, piece
        self._sampler = None if is_plain(sampling) else Sampler(sampling, size, prompt)
        self._count, self._top, self._constraint = 0, sampling.top_logprobs, constraint
        self._given = 0
        self._needed_tokens, self._looked = 0, -_LOOK_TOKENS

    @property
    def ended(self) -> bool:
        """Whether as many tokens were chosen as were wanted at most."""
        return self._count >= self._sampling.max_tokens

    def choose(self, context: object, index: int) -> Sampled:
        """Choose the token after the batch's token number `index`."""
        row, constraint = self._row(context, index), self._constraint
        if constraint is None:
            return self._sampled(row, self._free(context, index, row))
        ids = constraint.allowed()
        if not len(ids):
            return Sampled(-1, b"", end=True, failure=constraint.failure or "its grammar lets nothing follow")
        token = self._bound(row, constraint.closing(ids) if self._must_close(constraint) else ids)
        if not self._leaves_room(constraint, token):
            token = self._bound(row, constraint.closing(ids))
        constraint.take(token)
        sampled = self._sampled(row, token)
        return sampled if sampled.end else replace(sampled, last=constraint.complete, forced=constraint.forced())

    @property
    def _left(self) -> int:
        """How many tokens may come, the next one included."""
        return self._sampling.max_tokens - self._count

    def _may_run_out(self, constraint: Constraint) -> bool:
        """Whether so few tokens are left that JSON may not come to its end."""
        return constraint.closes and self._left <= MOST_NEEDED + _SPARE_TOKENS

    def _must_close(self, constraint: Constraint) -> bool:
        """Whether the answer has to come to its end now, if it is to come to one."""
        if not self._may_run_out(constraint):
            return False
        near = self._left <= self._needed_tokens + _SPARE_TOKENS
        if self._count - self._looked >= _LOOK_TOKENS or (near and self._looked < self._count):
            self._needed_tokens, self._looked = constraint.needed_tokens(), self._count
        return self._left <= self._needed_tokens + _SPARE_TOKENS

    def _leaves_room(self, constraint: Constraint, token: int) -> bool:
        """Whether JSON can come to its end after a token: one that begins an object may want many more."""
        if not (self._may_run_out(constraint) and constraint.opens(token)):
            return True
        return constraint.needed_tokens(token) < self._left

    def _free(self, context: object, index: int, row: Row) -> int:
        """Any token."""
        if self._count < self._sampling.min_tokens:
            row[self._ends] = -np.inf
        return int(row.argmax()) if self._sampler is None else self._sampler.sample(context, index)

    def _bound(self, row: Row, ids: npt.NDArray[np.intp]) -> int:
        """One of these tokens. Where only an end may come, it comes, however few tokens there were."""
        if self._count < self._sampling.min_tokens:
            going_on = np.setdiff1d(ids, self._ends, assume_unique=True)
            ids = going_on if len(going_on) else ids
        return int(ids[row[ids].argmax()]) if self._sampler is None else self._sampler.sample_among(row, ids)

    def _sampled(self, row: Row, token: int) -> Sampled:
        self._count += 1
        end = bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))
        odds: tuple[float | None, tuple[tuple[int, float], ...]] = (None, ())
        if self._sampling.reported:
            odds = reported_probabilities(row, token, self._sampling.reported)
        elif self._top is not None:
            odds = log_probabilities(row, token, self._top)
        return Sampled(token, b"" if end else self._piece(token), end, *odds)

    def given(self, context: object, first: int, tokens: Tokens, after: int | None, number: int) -> list[Sampled]:
        """The prompt's own tokens, each but its first with how likely it was. What was told before is not told again.

        Args:
            context: llama.cpp's.
            first: number of `tokens`' first in the batch.
            tokens: of the prompt, of which the first is number `number`.
            after: the one that follows them; None: they are the last.
        """
        steps = []
        if number == 0 and not self._given:
            steps.append(Sampled(int(tokens[0]), self._piece(int(tokens[0]), special=True), end=False, given=True))
        for i, token in enumerate([*tokens[1:].tolist(), *([] if after is None else [after])]):
            if number + i + 1 >= self._given:
                odds = log_probabilities(self._row(context, first + i), token, self._top or 0)
                steps.append(Sampled(token, self._piece(token, special=True), False, *odds, given=True))
        self._given += len(steps)
        return steps

    def close(self) -> None:
        """Free what llama.cpp keeps for it."""
        if self._sampler is not None:
            self._sampler.close()
        self._sampler = None

    def _row(self, context: object, index: int) -> Row:
        """Logits (vocab,) in llama.cpp's own memory, until the next step."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), (self._size,))
