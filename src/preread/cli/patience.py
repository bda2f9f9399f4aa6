"""Asking a cloud again that cannot do something just now: after how long, and when no more.

What was asked may be asked again: what a document makes is named by its content, and what of it is stored is not made
again. When to do so is decided without a clock; `patiently` waits.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from preread.cli.terminal import note
from preread.errors import Overloaded, PrereadError, TransportError, Unavailable

T = TypeVar("T")

AWAY_S: Final = 300.0
"""A cloud that stops, or has lost its store, is waited for so long in all: to be started again, and load its model."""

BUSY_S: Final = 3600.0
"""A cloud that has too much to do is asked for so long in all."""

_FIRST_S: Final = 1.0
_LONGEST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Waited:
    """What one call was waited for so far, in seconds: for a cloud that was away, and for one that was busy.

    `away`: how many times in a row it was away when it was asked.
    """

    away_s: float = 0.0
    busy_s: float = 0.0
    away: int = 0


def pause_s(error: PrereadError, waited: Waited) -> tuple[float, Waited] | None:
    """After how long to ask again, and what was waited then; None: this is the answer.

    Who does not answer at all is asked again only if he had said before that he would be back: the address is right.
    """
    if isinstance(error, Overloaded):
        pause = max(_FIRST_S, error.retry_after_s)
        busy_s = waited.busy_s + pause
        return (pause, replace(waited, busy_s=busy_s, away=0)) if busy_s <= BUSY_S else None
    known = waited.away > 0 or waited.busy_s > 0
    if isinstance(error, Unavailable) or (known and isinstance(error, TransportError)):
        pause = min(_LONGEST_S, _FIRST_S * 2.0 ** min(waited.away, 16))
        away_s = waited.away_s + pause
        return (pause, replace(waited, away_s=away_s, away=waited.away + 1)) if away_s <= AWAY_S else None
    return None


def patiently(call: Callable[[], T]) -> T:
    """What a call gives; it is made again while a cloud is busy or away, and why is told once.

    Raises:
        PrereadError: what the last call raised.
    """
    waited, told = Waited(), ""
    while True:
        try:
            return call()
        except PrereadError as error:
            again = pause_s(error, waited)
            if again is None:
                raise
            pause, waited = again
            if str(error) != told:
                note(f"{error}; again in {pause:.0f} s")
            told = str(error)
        time.sleep(pause)
