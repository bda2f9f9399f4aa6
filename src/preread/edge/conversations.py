"""Conversations that are kept for their next turn: whose they are, and which one a prompt goes on from. Thread-safe.

They are private: matched for one caller alone. Which stay, and for how long, `plan/schedule.py` decides.
"""

import threading
from dataclasses import dataclass, replace

from preread.engine.base import Tokens
from preread.plan.match import shared_tokens


@dataclass(frozen=True, slots=True)
class Conversation:
    """One that is kept.

    Attributes:
        caller: whose it is; None: nobody's any more, it is about to go.
        context: that it is about; None: none.
        position: so many of the context's tokens precede it.
        tokens: its own.
        sequence: that has them in the engine's cache.
    """

    caller: str | None
    context: str | None
    position: int
    tokens: Tokens
    sequence: int

    def is_of(self, caller: str, context: str | None, position: int) -> bool:
        """Whether it is somebody's, and behind these tokens."""
        return (self.caller, self.context, self.position) == (caller, context, position)


class Conversations:
    """All that are kept, by the key that the schedule knows them by."""

    def __init__(self) -> None:
        self._kept: dict[str, Conversation] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __getitem__(self, key: str) -> Conversation:
        return self._kept[key]

    def add(self, key: str, conversation: Conversation) -> None:
        """One more is kept."""
        with self._lock:
            self._kept[key] = conversation

    def pop(self, key: str) -> Conversation | None:
        """One is kept no more; None: there is none of this key."""
        with self._lock:
            return self._kept.pop(key, None)

    def said(self, caller: str, context: str | None, position: int) -> list[Tokens]:
        """The tokens of somebody's, behind so many tokens of a context."""
        with self._lock:
            return [kept.tokens for kept in self._kept.values() if kept.is_of(caller, context, position)]

    def nearest(self, caller: str, context: str | None, position: int, prompt: Tokens) -> tuple[int, str]:
        """How many tokens a prompt has in common with the one that it has most in common with, and its key; 0: none."""
        with self._lock:
            found = [
                (shared_tokens(kept.tokens, prompt), key)
                for key, kept in self._kept.items()
                if kept.is_of(caller, context, position)
            ]
        return max(found, default=(0, ""))

    def disown(self, caller: str) -> list[str]:
        """Match none of somebody's any more; their keys."""
        with self._lock:
            keys = [key for key, kept in self._kept.items() if kept.caller == caller]
            self._kept |= {key: replace(self._kept[key], caller=None) for key in keys}
        return keys
