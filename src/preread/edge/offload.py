"""Contexts that left the engine's cache for another one, kept in memory so that coming back costs a copy."""

from collections import OrderedDict

from preread.values import ContextId, KVBlock, StateBlock

Blocks = tuple[KVBlock | StateBlock, ...]
"""All that a context has: its rows, and the state behind it, where the model has one."""


class Offload:
    """Least recently used goes first when there is no room. A context that is taken leaves it: it exists once."""

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes, self._used_bytes = room_bytes, 0
        self._blocks: OrderedDict[ContextId, Blocks] = OrderedDict()

    def __contains__(self, context: ContextId) -> bool:
        return context in self._blocks

    @property
    def used_bytes(self) -> int:
        """Of all that is kept."""
        return self._used_bytes

    def takes(self, size_bytes: int) -> bool:
        """Whether something of this size can be kept at all."""
        return size_bytes <= self._room_bytes

    def put(self, context: ContextId, *blocks: KVBlock | StateBlock) -> None:
        """Keep a whole context; others make room."""
        self.take(context)
        size_bytes = _size_bytes(blocks)
        while self._blocks and self._used_bytes + size_bytes > self._room_bytes:
            self.take(next(iter(self._blocks)))
        if self.takes(size_bytes):
            self._blocks[context] = blocks
            self._used_bytes += size_bytes

    def take(self, context: ContextId) -> Blocks:
        """Take a context out; nothing, if it is not there."""
        blocks = self._blocks.pop(context, ())
        self._used_bytes -= _size_bytes(blocks)
        return blocks

    def clear(self) -> None:
        """Keep nothing any more."""
        self._blocks.clear()
        self._used_bytes = 0


def _size_bytes(blocks: Blocks) -> int:
    pairs = ((one.k, one.v) if isinstance(one, KVBlock) else (one.r, one.s) for one in blocks)
    return sum(int(half.nbytes) for pair in pairs for half in pair)
