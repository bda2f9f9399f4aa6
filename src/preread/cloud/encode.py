"""KV of a chunk, and states behind it, become stored segments, one for each rung and group of layers.

Whoever has KV can have it stored so, whatever read the context; what comes before and after is not known here.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from preread.codec.base import Codec
from preread.codec.fitted import Fitted, encoded
from preread.codec.state import state_codec_beside
from preread.store.objects import Objects
from preread.values import ContextId, KVBlock, ObjectRef, Span, StateBlock
from preread.wire import segment
from preread.wire.draft import Row
from preread.wire.fields import SizedId


async def stored(
    store: Objects,
    pool: Executor,
    context: ContextId,
    codecs: tuple[Codec, ...],
    blocks: Sequence[KVBlock | StateBlock],
) -> Row:
    """Encode one chunk in every rung, and store it.

    Args:
        store, pool: where to; threads that encode.
        context: that the chunk is of.
        codecs: the rungs'.
        blocks: the chunk's KV, or states behind it, one block for each group of layers, in order.

    Returns:
        The segments: [rung][group], as a record notes them.

    Raises:
        UsageError: the KV, or a state, holds values that are not finite.
        RemoteError: the store cannot be written.
    """
    loop = asyncio.get_running_loop()
    encode = partial(_frames, context, codecs)
    frames = await asyncio.gather(*[loop.run_in_executor(pool, encode, block) for block in blocks])
    row = []
    for step in codecs:
        row.append(tuple([sized(await store.put("segments", group[step.rung])) for group in frames]))
    return tuple(row)


def sized(ref: ObjectRef) -> SizedId:
    """A stored object, as manifests and records name it."""
    return SizedId(ref.id, ref.size_bytes)


def _frames(context: ContextId, codecs: tuple[Codec, ...], block: KVBlock | StateBlock) -> dict[str, bytes]:
    """A block's segment at each rung."""
    if isinstance(block, StateBlock):
        tokens, layers = Span(0, block.position), Span(block.layers[0], block.layers[-1] + 1)
        beside = {step.rung: state_codec_beside(step.rung) for step in codecs}
        coded = {codec.rung: codec.encode(block) for codec in {of.rung: of for of in beside.values()}.values()}
        return {
            rung: segment.pack(segment.SegmentHeader(context, rung, tokens, layers, block.shape), coded[codec.rung])
            for rung, codec in beside.items()
        }
    fitted = [step for step in codecs if isinstance(step, Fitted)]
    payloads = {step.rung: step.encode(block) for step in codecs if not isinstance(step, Fitted)}
    if fitted:
        payloads |= encoded(fitted[0].prepared, block, [step.rung for step in fitted])
    header = partial(segment.SegmentHeader, context)
    return {
        rung: segment.pack(header(rung, block.tokens, block.layers, block.shape), payload)
        for rung, payload in payloads.items()
    }
