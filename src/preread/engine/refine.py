"""Better rows for the context that the engine holds, waiting for a moment when nobody computes with the old ones.

Rows are written by the engine's own thread: one block between two decode steps, or all of them when it is idle. So an
answer that is under way sees the better context from its next token on, and waits for one block's copy at most. A
block belongs to the *epoch* in which it was made; emptying the cache begins a new one, so that no block can reach the
rows of another context.

It knows nothing of where blocks come from.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from preread.errors import EngineError
from preread.values import KVBlock

MOST_WAITING = 4
"""Blocks that may wait at once: whoever adds them waits for earlier ones, so that they take little memory."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    block: KVBlock
    written: Future[bool]


class Refinements:
    """The blocks that wait. `add` and `epoch` are thread-safe; the rest is called by the engine's thread."""

    def __init__(self, write: Callable[[KVBlock], None]) -> None:
        """`write` writes a block's rows, or raises EngineError where they do not fit the context that is held."""
        self._write, self._lock = write, threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Grows whenever the cache is emptied: as long as it is the same, the same context is held."""
        return self._epoch

    def add(self, block: KVBlock, epoch: int) -> Future[bool]:
        """Queue a block for the context that was held in `epoch`.

        Returns:
            Whether it was written (False: that context has gone), once that is known; EngineError if it did not fit.
            Cancelling the future takes the block back, unless it is being written.

        Raises:
            EngineError: `MOST_WAITING` blocks wait already.
        """
        written: Future[bool] = Future()
        with self._lock:
            if epoch != self._epoch:
                written.set_result(False)
                return written
            if len(self._waiting) >= MOST_WAITING:
                raise EngineError(f"{MOST_WAITING} better blocks wait already: wait until one of them is written")
            self._waiting.append(_Waiting(block, written))
        return written

    def apply_one(self) -> bool:
        """Write the block that has waited longest; False when there is none. Never raises: see `add`."""
        while (waiting := self._next()) is not None:
            if not waiting.written.set_running_or_notify_cancel():
                continue
            try:
                self._write(waiting.block)
            except EngineError as error:
                waiting.written.set_exception(error)
            else:
                waiting.written.set_result(True)
            return True
        return False

    def apply_all(self) -> None:
        """Write all blocks that wait."""
        while self.apply_one():
            pass

    def drop(self) -> None:
        """The cache is being emptied: throw away what waits, and take nothing more for the old context."""
        with self._lock:
            dropped, self._waiting = self._waiting, deque()
            self._epoch += 1
        for waiting in dropped:
            if waiting.written.set_running_or_notify_cancel():
                waiting.written.set_result(False)

    def _next(self) -> _Waiting | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None
