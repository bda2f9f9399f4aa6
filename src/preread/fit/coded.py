"""KV as a rung leaves it: coded, and back."""

import numpy as np

from preread.codec.fitted import Fitted
from preread.codec.profile import Prepared
from preread.values import KVBlock


def grouped(block: KVBlock, prepared: Prepared) -> list[KVBlock]:
    """A block of all layers as the profile's layer groups."""
    groups = prepared.profile.groups
    return [KVBlock(block.tokens, g, block.k[g.start : g.stop], block.v[g.start : g.stop]) for g in groups]


def coded(prepared: Prepared, index: int, block: KVBlock) -> list[KVBlock]:
    """The layer groups of a block of all layers, coded in the profile's rung of this index and back."""
    codec, geometry = Fitted(prepared, index), prepared.profile.geometry
    return [codec.decode(codec.encode(part), part.tokens, part.layers, geometry) for part in grouped(block, prepared)]


def whole(parts: list[KVBlock], like: KVBlock) -> KVBlock:
    """Layer groups together, of the tokens and layers of another block."""
    k, v = (np.concatenate([getattr(part, half) for part in parts]) for half in "kv")
    return KVBlock(like.tokens, like.layers, k, v)
