"""preread: a cloud reads a long shared context once; edges answer private questions from its streamed KV cache."""

from typing import TYPE_CHECKING

from preread.errors import PrereadError

if TYPE_CHECKING:
    from preread.edge.edge import AsyncEdge, Edge

__all__ = ["AsyncEdge", "Edge", "PrereadError"]


def __getattr__(name: str) -> object:
    # Loading the engine takes half a second; whoever only wants an error class need not pay for it.
    if name in {"AsyncEdge", "Edge"}:
        from preread.edge import edge

        return getattr(edge, name)
    raise AttributeError(f"module 'preread' has no attribute {name!r}")
