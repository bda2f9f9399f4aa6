"""What becomes of a publication when a replica did not end it: again, when, or not at all. No I/O, no clock.

A document is given up when replica after replica ends while it is being published and none stores a chunk more: then
it is the document that ends them. As long as it gets on, it is tried again.
"""

from dataclasses import dataclass, replace
from typing import Final

from preread.errors import EngineError, Overloaded, PrereadError

MOST_ENDED: Final = 5
"""Replicas in a row that may end, or be lost, without a chunk more."""

MOST_BUSY: Final = 20
_BUSY_S: Final = 0.25
_MOST_BUSY_S: Final = 5.0
_LOST_S: Final = 1.0
_TAKEN_S: Final = 0.5
_LATER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The replica's process ended. `owner`: the attempt; `done`: tokens of the document that were stored by then."""

    owner: str
    done: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The replica does not answer, and may live: what it claimed is its own until that runs out. `done`: as above."""

    done: int


@dataclass(frozen=True, slots=True)
class Busy:
    """All replicas have as much to do as they may have."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else makes the same just now."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The name could not be put: something of what was made was removed meanwhile, or the store is not to be had."""

    error: PrereadError


Outcome = Ended | Lost | Busy | Taken | Removed


@dataclass(frozen=True, slots=True)
class Course:
    """How a publication has gone so far.

    Attributes:
        gone: attempts whose replica is known to have ended.
        done: tokens that were stored.
        ended: attempts in a row that came no further.
        busy: attempts in a row that found no replica.
    """

    gone: frozenset[str] = frozenset()
    done: int = 0
    ended: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after so many seconds."""

    after_s: float
    course: Course


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the caller."""

    error: PrereadError


def decide(course: Course, outcome: Outcome) -> Again | GiveUp:
    """What to do after an attempt that did not end in a publication."""
    match outcome:
        case Ended(owner, done):
            return _on(replace(course, gone=course.gone | {owner}), done, 0.0)
        case Lost(done):
            return _on(course, done, _LOST_S)
        case Removed(error):
            if course.ended + 1 >= MOST_ENDED:
                return GiveUp(error)
            return Again(0.0, replace(course, done=0, ended=course.ended + 1))
        case Taken():
            return Again(_TAKEN_S, replace(course, busy=0))
        case Busy():
            if course.busy >= MOST_BUSY:
                return GiveUp(
                    Overloaded("all replicas of this model are busy: try again later", retry_after_s=_LATER_S)
                )
            return Again(min(_BUSY_S * 2**course.busy, _MOST_BUSY_S), replace(course, busy=course.busy + 1))


def _on(course: Course, done: int, after_s: float) -> Again | GiveUp:
    """After an attempt that stored so many tokens."""
    further = done > course.done
    ended = 1 if further else course.ended + 1
    if ended >= MOST_ENDED:
        return GiveUp(
            EngineError(
                f"{ended} replicas in a row ended or were lost while they published this document, and stored nothing "
                "more of it: look at their logs, and at the memory that they have"
            )
        )
    return Again(after_s, replace(course, done=max(done, course.done), ended=ended, busy=0))
