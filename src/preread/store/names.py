"""The names of a store, which many processes may change at once: a log of changes, each of which exists once.

    log/000000000/000000000012.json       changes, by number: the numbers have no gaps
    bases/000000000012-abcd….json         all names after some change, which later changes begin with

Whoever changes names makes the next change and creates it under the next number. Of two who do so, one is told that
the number is taken: he reads what the other did, decides anew, and tries again. So changes are in one order, which all
agree on; each was decided with all that came before it. `wire/log.py` says what is in them.

Who publishes relies on objects, some of which may have been there before, just when another deletes what no name leads
to any more. So deleting is a part of that order, too. It begins with a change (`sweeps` becomes odd), after which
nobody but its maker makes the next one, which ends it: while objects are deleted, no name is put. What may be deleted
follows from the names at that change. And a name is put only when all that it leads to was seen to be there after the
last deleting had ended. So what is deleted is needed by no name before, and what a name leads to is not deleted after.

A process that dies while it deletes must not keep all others from publishing. In a folder it has a lock (flock) as long
as it lives. In a bucket another goes on when it has itself seen, for `TAKEOVER_S` by its own clock, that nothing comes
after that change; and who deletes stops `SWEEP_S` after the change, by a clock that counts the time in which a machine
sleeps. What is assumed is that a request which was sent takes effect within the difference, or never.

Changes are removed from the log `KEPT_S` after others have come, so that the store does not grow. The next number is
therefore free for certain only to who has looked not long ago: after `STALE_S` a process first looks for the last one.
"""

import asyncio
import fcntl
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from preread.errors import CorruptData, RemoteError
from preread.store.blobs import Blobs
from preread.store.lease import CANNOT_LOCK
from preread.wire import log
from preread.wire.digest import object_id
from preread.wire.log import Base, BaseRef, Change, Edit, State

SWEEP_S: Final = 30.0
TAKEOVER_S: Final = 150.0
STALE_S: Final = 600.0
KEPT_S: Final = 3600.0

_LOG: Final = "log"
_BASES: Final = "bases"
_LOCK: Final = "log/.lock"
_WAIT_S: Final = 0.2
_TRIES: Final = 3
_AT_A_TIME: Final = 16
"""A reader that lacks more changes looks for the last one instead of reading all."""

_log = logging.getLogger(__name__)
Decide = Callable[[State], Awaitable[Edit | None]]
"""What to change, for names as they are; None: nothing. May be asked several times."""


class Names:
    """The names of one store, as far as this process has looked. Every method raises RemoteError where it fails.

    Args:
        blobs: where they are.
        former: reads the names of a store that has no log yet; they are what the log begins with.
        upgraded: told before the first change is made.
    """

    def __init__(
        self, blobs: Blobs, former: Callable[[], Awaitable[Base]], upgraded: Callable[[], Awaitable[None]]
    ) -> None:
        self._blobs, self._former, self._upgraded = blobs, former, upgraded
        self._me = secrets.token_hex(8)
        self._state: State | None = None
        self._looked_s = 0.0
        self._looking, self._changing = asyncio.Lock(), asyncio.Lock()

    async def look(self) -> State:
        """The names as they are now: one small request where nothing has changed."""
        async with self._looking:
            if self._state is None or now_s() - self._looked_s > STALE_S:
                await self._look_for_last()
            else:
                await self._look_for_next(self._state)
            assert self._state is not None
            return self._state

    @property
    def known(self) -> State | None:
        """The names when this process last looked; None: it never did."""
        return self._state

    @property
    def known_for_s(self) -> float:
        """How long ago that was."""
        return now_s() - self._looked_s

    async def change(self, decide: Decide) -> State:
        """Make the next change, as soon as nobody deletes objects. What `decide` raises leaves all as it was.

        Raises:
            RemoteError: the store failed; where that was while the change was written, it may be found made later.
        """
        async with self._changing:
            while True:
                state = await self._free(locked=False)
                edit = await decide(state)
                if edit is None:
                    return state
                if (made := await self._made(state, edit)) is not None:
                    return made

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator["Alone", None]:
        """While this is open nobody publishes, and objects may be deleted that no name leads to."""
        async with self._changing, self._locked() as locked:
            state: State | None = None
            while state is None:
                free = await self._free(locked=locked)
                until_s = now_s() + SWEEP_S
                state = await self._made(free, Edit(sweeping=True))
            try:
                yield Alone(state, until_s)
            finally:
                await asyncio.shield(self._end(state))

    async def _end(self, state: State) -> None:
        try:
            if await self._made(state, Edit()) is None:
                _log.warning("store %s: another process took over while objects were deleted", self._blobs.where)
        except RemoteError as error:
            _log.warning("nobody can publish for %g s, since the end could not be told: %s", TAKEOVER_S, error)

    async def _free(self, *, locked: bool) -> State:
        """The names as they are now, when nobody else deletes objects. `locked`: nobody else can, for certain."""
        watched, since_s = -1, 0.0
        while True:
            state = await self.look()
            mine = state.last is not None and state.last.writer == self._me  # its end could not be told
            if not state.sweeping or mine or locked:
                return state
            if watched != state.number:
                watched, since_s = state.number, now_s()
            if now_s() - since_s >= TAKEOVER_S or self._is_unlocked():
                return state
            await asyncio.sleep(_WAIT_S)

    async def _made(self, state: State, edit: Edit) -> State | None:
        """Make the change that follows `state`; None: another was made."""
        if state.last is None:
            await self._upgraded()
            state = log.started(await self._former())
        anew = log.is_due(state)
        kept = None if state.last is None else state.last.base
        base = await self._put_base(state) if anew else kept
        change = log.following(state, self._me, edit, base)
        if not await self._created(_key(change.number), log.dumps(change), urgent=edit.publish is None):
            return None
        made = log.after(state.whole() if anew else state.based, change)
        async with self._looking:
            if self._state is None or self._state.number < made.number:
                self._state, self._looked_s = made, now_s()
        if anew:
            await self._trim(change)
        return made

    async def _created(self, key: str, data: bytes, *, urgent: bool) -> bool:
        """Create a change, also where answers get lost on the way. False: another has the number."""
        failure: RemoteError | None = None
        for _ in range(_TRIES):
            try:
                if await self._blobs.create_pointer(key, data, urgent=urgent):
                    return True
            except RemoteError as error:
                failure = error
            found = await self._blobs.read(key)
            if found is not None:
                return found == data
        raise failure or RemoteError(f"store {self._blobs.where}: {key} is there and not there: look at its service")

    async def _put_base(self, state: State) -> BaseRef:
        data = await asyncio.to_thread(log.dumps, state.whole())
        ref = BaseRef(object_id(data), len(data), state.number)
        await self._blobs.put_object(_base_key(ref), data)
        return ref

    async def _look_for_next(self, state: State) -> None:
        for number in range(state.number + 1, state.number + 1 + _AT_A_TIME):
            asked_s = now_s()
            data = await self._blobs.read(_key(number))
            if data is None:
                self._looked_s = asked_s
                return
            if not await self._take(number, data):
                break
        await self._look_for_last()

    async def _look_for_last(self) -> None:
        for _ in range(_TRIES):
            asked_s, number = now_s(), await self._last_number()
            if number == 0:
                self._state, self._looked_s = log.started(await self._former()), asked_s
                return
            data = await self._blobs.read(_key(number))
            if data is not None and await self._take(number, data):
                self._looked_s = asked_s
                return  # otherwise others have come meanwhile, and it was removed
        raise RemoteError(f"store {self._blobs.where}: the last change of its names, or their base, is missing")

    async def _take(self, number: int, data: bytes) -> bool:
        """Know a change. False: it, or its base, is not there. Some services show what is half written: wait for it."""
        for pause_s in (0.1, 0.4, None):
            try:
                change = log.loads(data, number)
                base = await self._base(change)
            except CorruptData as error:
                again = None if pause_s is None else await self._blobs.read(_key(number))
                if pause_s is None or again is None:
                    raise RemoteError(
                        f"store {self._blobs.where}: {_key(number)} cannot be read: {error}; see `preread store check`"
                    ) from error
                await asyncio.sleep(pause_s if again == data else 0)
                data = again
                continue
            if base is not None:
                self._state = log.after(base, change)
            return base is not None
        return False

    async def _base(self, change: Change) -> Base | None:
        known = self._state
        if known is not None and known.last is not None and known.last.base == change.base:
            return known.based
        if change.base is None:
            return log.NO_BASE
        data = await self._blobs.read(_base_key(change.base))
        if data is None:
            return None
        if len(data) != change.base.size_bytes or object_id(data) != change.base.id:
            raise CorruptData("digest", f"the names that it begins with, {_base_key(change.base)}, are damaged")
        return await asyncio.to_thread(log.loads_base, data)

    async def _last_number(self) -> int:
        """The number of the last change; 0: there is none."""
        for folder in reversed(await self._blobs.below(_LOG)):
            if numbers := [_number(key) for key in await self._blobs.keys_in(folder)]:
                return max(numbers)
        return 0

    async def _trim(self, last: Change) -> None:
        """Remove changes that are long past, and the bases that only they begin with."""
        try:
            found = {_number(one.key): one for one in await self._blobs.all_in(_LOG) if one.key.endswith(".json")}
            if last.number not in found:
                return
            before = found[last.number].at - timedelta(seconds=KEPT_S)
            old = [number for number, one in found.items() if one.at < before and number < last.number]
            await self._blobs.delete_objects([found[number].key for number in sorted(old)])
            oldest = min(found.keys() - set(old))
            data = await self._blobs.read(found[oldest].key)
            first = None if data is None else log.loads(data, oldest).base
            bases = [one for one in await self._blobs.all_in(_BASES) if one.at < before]
            least = 0 if first is None else first.number
            await self._blobs.delete_objects([one.key for one in bases if _base_number(one.key) < least])
        except (RemoteError, CorruptData) as error:
            _log.warning("store %s: old changes of its names stay: %s", self._blobs.where, error)

    @asynccontextmanager
    async def _locked(self) -> AsyncGenerator[bool, None]:
        """Have the lock of those who delete in a folder. False: there is none, which is not so for others either."""
        if self._blobs.folder is None:
            yield False
            return
        with _opened(self._blobs.folder / _LOCK) as handle:
            while (locked := _lock(handle)) is False:
                await asyncio.sleep(_WAIT_S / 4)
            yield locked is True

    def _is_unlocked(self) -> bool:
        """Whether who deleted in this folder has ended, in whatever way. False where that cannot be told."""
        if self._blobs.folder is None:
            return False
        with _opened(self._blobs.folder / _LOCK) as handle:
            return _lock(handle) is True


class Alone:
    """The names while objects are deleted, and until when they may be."""

    def __init__(self, state: State, until_s: float) -> None:
        self.state, self._until_s = state, until_s

    def check(self) -> None:
        """Do nothing if there is time left.

        Raises:
            RemoteError: there is none: the store is too slow.
        """
        if now_s() >= self._until_s:
            raise RemoteError(f"deleting took more than {SWEEP_S:g} s: what is left of it stays for `preread store gc`")


def now_s() -> float:
    """A clock that also counts the time in which the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Have the lock of a file until it is closed; whether that is so. None: its disk has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in CANNOT_LOCK else False
    return True


def _key(number: int) -> str:
    return f"{_LOG}/{number // 1000:09}/{number:012}.json"


def _number(key: str) -> int:
    return _digits(key.rpartition("/")[2].removesuffix(".json"))


def _base_key(ref: BaseRef) -> str:
    return f"{_BASES}/{ref.number:012}-{ref.id[:32]}.json"


def _base_number(key: str) -> int:
    return _digits(key.rpartition("/")[2].partition("-")[0])


def _digits(text: str) -> int:
    """What a number in a key is; 0: somebody else put it there."""
    return int(text) if len(text) == 12 and text.isascii() and text.isdecimal() else 0
