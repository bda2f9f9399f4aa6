"""How a step is shared between answers under way and prompts that are read beside them. Pure.

A token of every answer goes into each step, so how much else goes in says how long all of them stand still.
"""

from collections.abc import Mapping
from typing import Final

from preread.plan.step_cost import StepCost

STEP_TOKENS: Final = 512
"""Tokens of the largest step: of one prompt or context, with nobody beside it."""
SHARED_TOKENS: Final = 128
"""Tokens of a step in which several prompts or contexts are computed, and no answer is under way."""
LEAST_TOKENS: Final = 4
"""So many of a step are for prompts and contexts in any case."""
MANY_ANSWERS: Final = 4
"""A caller who has so many under way comes after one who has not, and may be passed over for a step."""

_GAP, _GAP_S, _MOST_GAP_S = 1.5, 0.03, 1.0
"""A step with prompts takes so many times as long as one without, and so many seconds more; where several wait for
their first token, so many times longer again, but never more than the last of these."""
_DEAR: Final = 2.0
"""A token of a small step may take so many times as long as one of a large step, and more while contexts load."""


def tokens_beside(cost: StepCost, decoded: int, prompts: int, waiting: int) -> int:
    """How many tokens of prompts and contexts a step may have.

    Args:
        cost: what steps take.
        decoded: tokens of answers in it.
        prompts: how many prompts and contexts there are to compute.
        waiting: requests that have no token yet.
    """
    if not decoded:
        return STEP_TOKENS if prompts < 2 else SHARED_TOKENS
    plain_s = cost.seconds(decoded)
    within_s = min((_GAP * plain_s + _GAP_S) * max(1, waiting), max(_MOST_GAP_S, plain_s))
    spare = cost.tokens_within(within_s) - decoded
    return min(max(LEAST_TOKENS, int(spare / _DEAR)), STEP_TOKENS - decoded)


def pause_for(caller: str, answers: Mapping[str, int]) -> bool:
    """Whether all `answers` under way, by caller, are to pause now and then for this caller's prompt.

    So they are if all are of callers who have many, and this one has not: who streams much at once has no more of the
    engine for that than who asks one thing.
    """
    return bool(answers) and answers.get(caller, 0) < MANY_ANSWERS <= min(answers.values())
