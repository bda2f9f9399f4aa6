"""Does injection reproduce what this engine computes itself? Asked once, at start, of the engine that will serve.

A context is prefilled and a prompt decoded; then the cache is emptied, the same KV and states streamed in layer by
layer from another thread, each layer only once the engine waits for it, and the prompt decoded again. The logits must
be the same bits. So must the rows of a context whose beginning is computed after its end was injected, and, where a
model has windows, those of one whose cells lie elsewhere in each of llama.cpp's two caches. Where what the
first layers compute by themselves is something else, contexts come without that. Before all this, attention in tiles
must give what llama.cpp's own does, but for rounding.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from preread.engine.base import Engine, Slice
from preread.engine.cache import Rows
from preread.engine.cells import having_rows
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.sampling import Sampling
from preread.engine.states import having_state
from preread.errors import EngineError, PrereadError
from preread.plan.legality import is_whole
from preread.values import KVBlock, Layer, Span, StateBlock, runs_of

Logits = npt.NDArray[np.float32]

_CONTEXT_TOKENS, _PROMPT_TOKENS = 128, 8
_COMPUTED_TOKENS = 64
"""Of the context, from its start; llama.cpp itself would compute batches below 64 tokens in another way."""

_MOST_CONTEXT_TOKENS = 256
"""Where it takes no more than this, the context is longer than the model's windows."""

_PATIENCE_S = 10.0

_MOST_ROUNDING = 0.1
"""Difference of V in the mean, as a share of its size: 0.02 to 0.03 of three models; layers amplify rounding."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tested:
    """What was found: the rate of prefill (tokens/s), and why injection is off (None: it works)."""

    prefill_tokens_s: float
    no_injection: str | None


def self_test(engine: LlamaCpp) -> Tested:
    """Test an engine that holds no context; if injection fails, switch it off in `engine.no_injection`."""
    # Any ids will do, as long as they differ; a fixed stride keeps the test the same on every start.
    count = _context_tokens(engine.spec.windows)
    tokens = (np.arange(count + _PROMPT_TOKENS, dtype=np.int64) * 97 + 11) % engine.spec.vocab_size
    context, prompt = tokens[:count].astype(np.int32), tokens[count:].astype(np.int32)
    _check_attention(engine, context[:_COMPUTED_TOKENS])
    engine.session.prefill(context[:8])  # llama.cpp makes its graph, and needs its memory, for the first time
    engine.session.clear()
    started = time.monotonic()
    _compute(engine, Slice(engine.sequences[0], context, 0))
    rate = count / (time.monotonic() - started)
    if engine.no_injection is None:
        try:
            engine.no_injection = _differs(engine, context, prompt)
        except PrereadError as error:
            engine.no_injection = f"the engine's self-test failed: {error}"
    engine.session.clear()
    return Tested(rate, engine.no_injection)


def _context_tokens(windows: Sequence[int | None]) -> int:
    beyond = min((window for window in windows if window is not None), default=0) + _COMPUTED_TOKENS
    return max(_CONTEXT_TOKENS, beyond) if beyond <= _MOST_CONTEXT_TOKENS else _CONTEXT_TOKENS


def _check_attention(engine: LlamaCpp, context: Tokens) -> None:
    """Switch attention in tiles off where it is not what llama.cpp computes."""
    if engine.attention is None or engine.no_injection is not None:  # then nothing can be read of the cache either
        return
    if not engine.spec.token_bytes:  # no layer attends
        return
    values = []
    for tiles in (False, True):
        engine.attention.on = tiles
        engine.session.prefill(context[:8])  # of another size, so that llama.cpp does not use its last graph again
        engine.session.prefill(context)
        blocks = [engine.session.export(Span(0, len(context)), run) for run in runs_of(engine.spec.layers)]
        halves = [block.v if block.v.size else block.k for block in blocks]
        values.append(np.concatenate([half.reshape(-1) for half in halves]).astype(np.float32))
    off = np.abs(values[1] - values[0]).mean() / np.abs(values[0]).mean()
    if not off < _MOST_ROUNDING:
        engine.attention.on = False
        _log.warning("attention in tiles is off: of %s it makes V differ by %.2g of its size", engine.spec.name, off)


def _differs(engine: LlamaCpp, context: Tokens, prompt: Tokens) -> str | None:
    """What injection does otherwise than computing, if anything; the context is computed in the first sequence."""
    own, request, scratch, *_ = engine.sequences
    local = _logits(engine, own, request, len(context), prompt)
    blocks, state = exported(engine, own, len(context)), _state(engine, own)
    engine.cache.free(own)
    rows, late = engine.cache.reserve(own, len(context)), list[int]()
    engine.runner.arm(0)
    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(_feed, engine, rows, blocks, state, late)
        try:
            streamed = _logits(engine, own, request, len(context), prompt, armed=True)
        finally:
            feeding.result()
    if late:
        return f"the engine's self-test failed: the engine did not wait for layer {late[0]}"
    if not np.array_equal(local, streamed):
        return f"the engine's self-test failed: logits differ by up to {np.abs(local - streamed).max():.3g}"
    _check_layers(engine, context, blocks, state, rows, scratch)
    if is_whole(engine.spec.sight):  # then nothing is computed before injected rows
        return None
    return _misplaced(engine, context, blocks, rows, scratch) or _displaced(engine, blocks, rows, request, scratch)


def exported(engine: Engine, sequence: int, tokens: int) -> list[KVBlock]:
    """All rows of a sequence, a block for each run of layers that are alike."""
    return [engine.cache.export(sequence, Span(0, tokens), run) for run in runs_of(engine.spec.layers)]


def _same(engine: Engine, sequence: int, blocks: Sequence[KVBlock]) -> bool:
    """Whether a sequence has these bits."""
    found = exported(engine, sequence, len(blocks[0].tokens))
    pairs = zip(found, blocks, strict=True)
    return all(one.k.tobytes() == other.k.tobytes() and one.v.tobytes() == other.v.tobytes() for one, other in pairs)


def _state(engine: LlamaCpp, sequence: int) -> StateBlock | None:
    layers = having_state(engine.spec.layers)
    return engine.cache.export_state(sequence, layers) if layers else None


def _check_layers(
    engine: LlamaCpp, context: Tokens, blocks: Sequence[KVBlock], state: StateBlock | None, rows: Rows, scratch: int
) -> None:
    """Compute the context's beginning anew through its first layers; have none computed so if that makes another.

    Where sequences are whole, that is all of it: the states of its end are copied.
    """
    if not engine.runner.splits_layers:
        return
    cache, count = engine.cache, len(context) if is_whole(engine.spec.sight) else _COMPUTED_TOKENS
    beginning, layers = Span(0, count), (len(engine.spec.layers) + 1) // 2
    lower, first = cache.unplaced(scratch, count), Span(0, layers)
    for block in blocks:
        nothing = replace(block, tokens=beginning, k=0 * block.k[:, :, :count], v=0 * block.v[:, :, :count])
        inject_layers(engine, rows, nothing, state and replace(state, r=0 * state.r, s=0 * state.s), first)
    try:
        _compute(engine, Slice(scratch, context[:count], 0, layers=layers, rows=lower))
        cache.copy(lower, rows, beginning, layers)
        same, states = _same(engine, rows.sequence, blocks), _state(engine, rows.sequence)
        if state is not None and states is not None:
            same &= np.array_equal(states.r, state.r) and np.array_equal(states.s, state.s)
        engine.runner.splits_layers = same
    except EngineError as error:
        engine.runner.splits_layers = False
        _log.warning("the first layers of %s cannot be computed by themselves: %s", engine.spec.name, error)
    cache.free(scratch)
    for block in blocks:
        inject_layers(engine, rows, block, state, Span(0, len(engine.spec.layers)))


def _misplaced(engine: LlamaCpp, context: Tokens, blocks: Sequence[KVBlock], rows: Rows, scratch: int) -> str | None:
    """Compute the context's beginning anew, in a sequence of its own, where its end is there already."""
    cache, beginning = engine.cache, Span(0, _COMPUTED_TOKENS)
    cache.take(rows, beginning)
    _compute(engine, Slice(scratch, context[:_COMPUTED_TOKENS], 0))
    cache.share(scratch, rows.sequence, beginning)
    if not _same(engine, rows.sequence, blocks):
        return "the engine's self-test failed: what is computed before injected rows is not what is computed alone"
    return None


def _displaced(engine: LlamaCpp, blocks: Sequence[KVBlock], rows: Rows, request: int, scratch: int) -> str | None:
    """Inject the context where another one's windows have left cells behind: only one of the two caches gives them."""
    if rows.windowed is None:
        return None
    cache, count = engine.cache, len(blocks[0].tokens)
    cache.free(rows.sequence)
    cache.reserve(request, _PROMPT_TOKENS)
    cache.reserve(scratch, count)
    cache.free(request)  # what comes next looks for cells from here on
    again = cache.reserve(rows.sequence, count)
    for block in blocks:
        cache.inject(again, block)
    same = _same(engine, rows.sequence, blocks)
    for sequence in (rows.sequence, scratch):
        cache.free(sequence)
    if not same:
        return "the engine's self-test failed: rows are not where the model's windows look for them"
    return None


def _feed(engine: LlamaCpp, rows: Rows, blocks: Sequence[KVBlock], state: StateBlock | None, late: list[int]) -> None:
    """Inject layer after layer, each only when the engine has come to wait for it, or for one behind it."""
    try:
        _fed(engine, rows, blocks, state, late)
    except BaseException:
        engine.session.cancel()
        raise


def _fed(engine: LlamaCpp, rows: Rows, blocks: Sequence[KVBlock], state: StateBlock | None, late: list[int]) -> None:
    for layer in range(engine.spec.geometry.layers):
        deadline = time.monotonic() + _PATIENCE_S
        while engine.session.waiting_for_layer < layer and engine.spec.layers[layer] != Layer():
            if time.monotonic() > deadline:
                late.append(layer)
                engine.session.cancel()
                return
            time.sleep(1e-4)
        block = next(block for block in blocks if layer < block.layers.stop)
        inject_layers(engine, rows, block, state, Span(layer, layer + 1))
        engine.runner.open(layer + 1)


def inject_layers(engine: Engine, rows: Rows, block: KVBlock, state: StateBlock | None, layers: Span) -> None:
    """Write some layers of what a sequence had: of a block of its rows, and of its states."""
    wanted = range(layers.start, layers.stop)
    if these := [i for i, layer in enumerate(having_rows(engine.spec.layers, block.layers)) if layer in wanted]:
        some = Span(max(layers.start, block.layers.start), min(layers.stop, block.layers.stop))
        engine.cache.inject(rows, KVBlock(block.tokens, some, block.k[these], block.v[these]))
    if state is not None and (these := [i for i, layer in enumerate(state.layers) if layer in wanted]):
        numbers = tuple(state.layers[i] for i in these)
        engine.cache.inject_state(rows, StateBlock(numbers, state.position, state.r[these], state.s[these]))


def _compute(engine: LlamaCpp, one: Slice) -> None:
    engine.runner.arm()
    engine.runner.run([one])


def _logits(
    engine: LlamaCpp, context: int, request: int, tokens: int, prompt: Tokens, *, armed: bool = False
) -> Logits:
    """Logits (vocab,) after a prompt that follows a context of `tokens`; `armed`: it waits for the context's layers."""
    engine.cache.share(context, request, Span(0, tokens))
    if not armed:
        engine.runner.arm()
    with closing(engine.chooser(Sampling(max_tokens=1), prompt)) as chooser:
        engine.runner.run([Slice(request, prompt, tokens, chooser)])
    logits = engine.session.logits()
    engine.cache.free(request)
    return logits
