"""How often and when each context was used, so that an edge knows after a restart what to hold.

A small file of context ids, counts and times: no prompts, no answers. It stays on this machine.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from preread import files
from preread.plan.place import Use
from preread.values import ContextId
from preread.wire.digest import is_id

_MOST_BYTES = 2**20
_MOST_CONTEXTS = 4096
_log = logging.getLogger(__name__)


class _File(msgspec.Struct, frozen=True):
    contexts: dict[str, tuple[float, float]]
    version: int = 1


class Uses:
    """Uses of contexts, kept in one file. Belongs to the event loop; `restore` and `save` wait for the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._uses: dict[ContextId, Use] = {}
        self._saved: dict[ContextId, Use] = {}

    def of(self, context: ContextId) -> Use:
        """How the context was used."""
        return self._uses.get(context, Use())

    def used(self, context: ContextId, now_s: float) -> None:
        """The context was used now, in seconds of a clock that goes on over restarts."""
        self._uses[context] = self.of(context).again(now_s)

    def restore(self) -> None:
        """Read what an earlier process kept; nothing, if that is damaged."""
        try:
            with open(self._path, "rb") as file:
                read = msgspec.json.decode(file.read(_MOST_BYTES), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, ValueError) as error:
            _log.warning("uses of contexts are counted anew, since %s cannot be read: %s", self._path, error)
            return
        self._uses = {
            ContextId(id): Use(max(0.0, uses), at_s) for id, (uses, at_s) in read.contexts.items() if is_id(id)
        }
        self._saved = dict(self._uses)

    def saving(self, now_s: float) -> Callable[[], None] | None:
        """What writes the file, for another thread; None if nothing has changed. The least used are forgotten."""
        if self._uses == self._saved:
            return None
        kept = sorted(self._uses.items(), key=lambda pair: -pair[1].worth(now_s))[:_MOST_CONTEXTS]
        self._uses = dict(kept)
        self._saved = dict(kept)
        body = msgspec.json.encode(_File({id: (use.uses, use.at_s) for id, use in kept}))
        return lambda: self._write(body)

    def _write(self, body: bytes) -> None:
        try:
            files.put_below(self._path, body)
        except OSError as error:
            _log.info("uses of contexts are not kept: %s", error)
