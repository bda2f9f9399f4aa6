"""Contexts whose KV left the engine's cache for another one, kept in memory so that coming back costs a copy."""

from collections import OrderedDict

from preread.values import ContextId, KVBlock


class Offload:
    """Least recently used goes first when there is no room. A context that is taken leaves it: its KV exists once."""

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes, self._used_bytes = room_bytes, 0
        self._blocks: OrderedDict[ContextId, KVBlock] = OrderedDict()

    def __contains__(self, context: ContextId) -> bool:
        return context in self._blocks

    @property
    def used_bytes(self) -> int:
        """Of all that is kept."""
        return self._used_bytes

    def takes(self, size_bytes: int) -> bool:
        """Whether something of this size can be kept at all."""
        return size_bytes <= self._room_bytes

    def put(self, context: ContextId, block: KVBlock) -> None:
        """Keep a whole context; others make room."""
        self.take(context)
        size_bytes = _size_bytes(block)
        while self._blocks and self._used_bytes + size_bytes > self._room_bytes:
            self.take(next(iter(self._blocks)))
        if self.takes(size_bytes):
            self._blocks[context] = block
            self._used_bytes += size_bytes

    def take(self, context: ContextId) -> KVBlock | None:
        """Take a context out, if it is there."""
        block = self._blocks.pop(context, None)
        if block is not None:
            self._used_bytes -= _size_bytes(block)
        return block

    def clear(self) -> None:
        """Keep nothing any more."""
        self._blocks.clear()
        self._used_bytes = 0


def _size_bytes(block: KVBlock) -> int:
    return int(block.k.nbytes + block.v.nbytes)
