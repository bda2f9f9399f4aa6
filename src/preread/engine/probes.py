"""What goes on inside a model while it reads: the queries of its attention, and what each layer gets to read."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from preread.engine.ggml import Queries, Residuals, library
from preread.engine.llamacpp import BATCH_TOKENS, LlamaCpp, Tokens
from preread.engine.session import CONTEXT
from preread.errors import UsageError


def queries(engine: LlamaCpp, tokens: Tokens) -> npt.NDArray[np.float32] | None:
    """Queries (layers, heads, tokens, head_dim) of at most a batch of tokens from a context's start, after RoPE.

    None: this model's graph does not name them. What the engine held is gone.

    Raises:
        UsageError: more than a batch, or than fit the window.
        EngineError: llama.cpp failed.
    """
    if len(tokens) > BATCH_TOKENS:
        raise UsageError(f"queries of {len(tokens)} tokens were asked for: at most {BATCH_TOKENS} go at once")
    engine.session.check_room(len(tokens))
    engine.session.clear()
    found = Queries(library(), len(tokens), engine.spec.geometry)
    try:
        engine.native.gate.observe(lambda: engine.native.decode(tokens, 0, CONTEXT), found.see, found.take)
    finally:
        engine.session.clear(wipe=True)
    return found.all()


def inputs(
    engine: LlamaCpp, tokens: Tokens, layers: Sequence[int], progress: Callable[[int], None] | None = None
) -> list[npt.NDArray[np.float32]]:
    """Compute a context as `prefill` does; the residual stream that each of `layers` reads, (tokens, width).

    Before layer 0 that is the tokens' embeddings as they are in the file, which some models scale.

    Raises:
        UsageError, Cancelled, EngineError: as `prefill` does; the graph does not show the stream.
    """
    before = {layer - 1 for layer in layers if layer}
    found = Residuals(library(), before)
    engine.native.gate.observe(lambda: engine.session.prefill(tokens, progress), found.see, found.take)
    return [found.of(layer - 1, len(tokens)) if layer else engine.embeddings(tokens) for layer in layers]
