"""A request under way: which of its tokens are known, which are in the cache, and what may come next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from preread.engine.base import Chooser, Slice, Tokens
from preread.engine.sampling import Sampled, Sampling
from preread.plan.drafts import MOST_DRAFTS, RUN, Drafts, Runs
from preread.plan.step import Part, Request
from preread.plan.step_cost import StepCost


@dataclass(slots=True)
class Live:
    """A request under way.

    Attributes:
        request: as the schedule knows it.
        tokens: all that are known, behind the context: the prompt, and what was chosen since.
        context_tokens: those that it begins with.
        prompt_tokens: of `tokens`, how many are the prompt's; `done`: how many are in the cache.
        sequence: that it has; None: it has none at present.
        chooser: chooses its tokens, once it has begun.
        drafts: guesses of its next tokens; `proposed`: those that may go into its next step.
    """

    request: Request
    tokens: Tokens
    context_tokens: Tokens
    sampling: Sampling
    prompt_tokens: int
    done: int = 0
    sequence: int | None = None
    chooser: Chooser | None = None
    drafts: Drafts | None = None
    proposed: Sequence[int] = ()

    @property
    def unanswered(self) -> bool:
        """Whether no token was chosen yet."""
        return len(self.tokens) == self.prompt_tokens

    def slice(self, part: Part) -> Slice:
        """The tokens of a part, the guesses behind the last known one included."""
        assert self.sequence is not None
        done, stop, position = self.done, self.done + part.tokens, len(self.context_tokens) + self.done
        if (drafts := stop - len(self.tokens)) > 0:
            tokens = np.concatenate([self.tokens[done:], np.array(self.proposed[:drafts], np.int32)])
            return Slice(self.sequence, tokens, position, self.chooser, drafts)
        after = None if part.chooses else int(self.tokens[stop])
        telling = self.request.echo and self.unanswered  # or it made way, and has told all
        echoed = done if telling else None
        return Slice(self.sequence, self.tokens[done:stop], position, self.chooser, after=after, echoed=echoed)

    def computed(self, part: Part, chosen: Sequence[int]) -> None:
        """A part was computed, and these tokens chosen after it."""
        if chosen:
            self.done = len(self.tokens) + len(chosen) - 1
            self.tokens = np.concatenate([self.tokens, np.array(chosen, np.int32)])
        else:
            self.done += part.tokens

    def is_over(self, steps: Sequence[Sampled], window_tokens: int) -> bool:
        """Whether no token comes after those of a step."""
        assert self.chooser is not None
        full = len(self.context_tokens) + len(self.tokens) >= window_tokens
        return steps[-1].end or steps[-1].last or self.chooser.ended or full

    def propose(self, runs: Runs, steps: Sequence[Sampled], beside: int, cost: StepCost, window_tokens: int) -> int:
        """Guess what comes after the tokens that were chosen; how many guesses may go into the next step.

        What the answer's grammar forces needs no guess.

        Args:
            runs: of the context's tokens.
            steps: the tokens that have just come.
            beside: tokens of the next step that are others'.
            cost: what steps take.
            window_tokens: the most that there may be.
        """
        if self.drafts is None:
            prompt = self.tokens[: self.prompt_tokens].tolist()
            self.drafts = Drafts(runs, self.context_tokens.tolist()[-RUN:], prompt)
        for step in steps:
            self.drafts.chosen(step.token)
        room = window_tokens - len(self.context_tokens) - len(self.tokens)
        left = self.request.most_tokens - (len(self.tokens) - self.prompt_tokens)
        proposed = steps[-1].forced[:MOST_DRAFTS] if steps and steps[-1].forced else self.drafts.proposed(beside, cost)
        self.proposed = proposed[: max(0, min(room, left) - 1)]
        return len(self.proposed)

    def go_alone(self) -> None:
        """Go on without the context: what it began with is its own now."""
        self.tokens = np.concatenate([self.context_tokens, self.tokens])
        self.prompt_tokens, self.context_tokens = len(self.tokens), self.context_tokens[:0]
        self.request = replace(self.request, context=None)
