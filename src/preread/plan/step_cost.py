"""How long a step takes, by its tokens: learnt from the steps that were."""

from dataclasses import dataclass
from typing import Final, Self

_DRIFT: Final = 0.02
_SCATTER: Final = 0.15
_LEAST_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds: `base_s` for any step, and `token_s` for each of its tokens; how sure either is.

    A Kalman filter over the two numbers, as for `beliefs.Pace`: steps of several sizes tell them apart.
    """

    base_s: float
    token_s: float
    base_var: float
    token_var: float
    both_var: float = 0.0

    @classmethod
    def guessed(cls, prefill_tokens_s: float) -> Self:
        """Nothing is known but the rate of prefill: weights are read once for a step, however few its tokens."""
        token_s = 1 / prefill_tokens_s
        base_s = 3 * token_s
        return cls(base_s, token_s, base_s**2, token_s**2)

    def took(self, tokens: int, seconds: float) -> "StepCost":
        """A step of so many tokens took so long."""
        base_var, token_var = self.base_var + (_DRIFT * self.base_s) ** 2, self.token_var + (_DRIFT * self.token_s) ** 2
        of_base, of_token = base_var + tokens * self.both_var, self.both_var + tokens * token_var
        spread = of_base + tokens * of_token + (_SCATTER * seconds) ** 2
        if spread <= 0:
            return self
        off_s = seconds - self.seconds(tokens)
        return StepCost(
            max(self.base_s + of_base / spread * off_s, _LEAST_S),
            max(self.token_s + of_token / spread * off_s, _LEAST_S),
            base_var - of_base * of_base / spread,
            token_var - of_token * of_token / spread,
            self.both_var - of_base * of_token / spread,
        )

    def seconds(self, tokens: int) -> float:
        """What a step of so many tokens takes."""
        return self.base_s + tokens * self.token_s

    def tokens_within(self, seconds: float) -> int:
        """How many tokens a step may have that is to take no longer."""
        return max(0, int((seconds - self.base_s) / self.token_s))
