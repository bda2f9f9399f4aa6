"""Codecs of recurrent states on one text: bytes that would cross the wire against what they do to the model.

Each context is prefilled once; its KV stays exact, and its states go through each codec's real bytes. It must not know
how any codec works.
"""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preread.bench.rates import with_interval
from preread.bench.through import cut
from preread.codec.state import state_codec, state_rungs
from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.quality import Score, Single, compare, joined, reference, summary
from preread.fit.text import Text
from preread.values import KVBlock, Span, StateBlock, StateShape

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

_HEADINGS = ("states as", "bits/value", "KB a context", "Δloss", "KL", "top-1", "encode MB/s", "decode MB/s")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Attributes:
        text: what the windows are cut from.
        rungs: codecs of states; empty: all.
        windows: how many windows.
        context_tokens: lengths of contexts; each is measured on every window.
        tail: how many tokens after the context are predicted.
    """

    text: Text
    rungs: tuple[str, ...] = ()
    windows: int = 20
    context_tokens: tuple[int, ...] = (512, 1024)
    tail: int = 128


@dataclass(frozen=True, slots=True)
class Row:
    """Means with 95 % confidence intervals, and medians of rates, in MB of float32."""

    rung: str
    bits_per_value: float
    bytes_per_context: int
    dloss: float
    dloss_ci: tuple[float, float]
    kl: float
    kl_ci: tuple[float, float]
    top1: float
    encode_mb_s: float
    decode_mb_s: float


@dataclass(frozen=True, slots=True)
class _Exact:
    """A context, its KV and its states, and what follows as these have it."""

    window: int
    tail: Tokens
    rows: KVBlock
    states: StateBlock
    log_probabilities: Single

    @property
    def size_bytes(self) -> int:
        return self.states.r.nbytes + self.states.s.nbytes


@dataclass(frozen=True, slots=True)
class _Sample:
    window: int
    size_bytes: int
    exact_bytes: int
    score: Score
    encode_s: float
    decode_s: float


def bench(
    model: Path, name: str, options: Options, console: Console, progress: AbstractContextManager[Report]
) -> dict[str, object]:
    """Measure, print a table and last one line of JSON, which is also returned.

    Raises:
        UsageError: the model has no states, or they cannot be read; the text is too short, or a codec is unknown.
    """
    rungs = options.rungs or state_rungs()
    for rung in rungs:
        state_codec(rung)
    longest = max(options.context_tokens)
    window_tokens = (longest + options.tail + 255) // 256 * 256
    engine = LlamaCpp.open(model, name=name, window_tokens=window_tokens, scored_tokens=options.tail)
    samples: dict[str, list[_Sample]] = {rung: [] for rung in rungs}
    with closing(engine), progress as report:
        layers = tuple(i for i, layer in enumerate(engine.spec.layers) if layer.state is not None)
        if engine.no_injection or not layers:
            raise UsageError(f"{name} has no states that can be read: {engine.no_injection or 'no layer is recurrent'}")
        windows = cut(engine, options.text, options.windows, longest, options.tail)
        total = len(windows) * len(options.context_tokens) * len(rungs)
        for number, window in enumerate(windows):
            for count in options.context_tokens:
                context, tail = window[longest - count : longest], window[longest:]
                exact = _exact(engine, number, context, tail, layers)
                for rung in rungs:
                    report("measure", sum(map(len, samples.values())), total)
                    samples[rung].append(_sample(engine, rung, exact))
    return _show(name, options, [_row(rung, of) for rung, of in samples.items()], console)


def _exact(engine: LlamaCpp, window: int, context: Tokens, tail: Tokens, layers: tuple[int, ...]) -> _Exact:
    engine.session.prefill(context)
    rows = engine.session.export(Span(0, len(context)), Span(0, len(engine.spec.layers)))
    return _Exact(window, tail, rows, engine.session.export_state(layers), reference(engine, tail))


def _sample(engine: LlamaCpp, rung: str, exact: _Exact) -> _Sample:
    codec, states = state_codec(rung), exact.states
    started = time.perf_counter()
    payload = codec.encode(states)
    encoded = time.perf_counter()
    back = codec.decode(payload, states.layers, states.position, StateShape(states.r.shape[1], *states.s.shape[1:]))
    decoded = time.perf_counter()
    engine.session.reserve(states.position)
    if exact.rows.k.size:
        engine.session.inject(exact.rows)
    engine.session.inject_state(back)
    engine.session.open_layers(len(engine.spec.layers))
    score = compare(engine.session.score(exact.tail), exact.tail, exact.log_probabilities)
    return _Sample(exact.window, len(payload), exact.size_bytes, score, encoded - started, decoded - encoded)


def _row(rung: str, samples: list[_Sample]) -> Row:
    windows: dict[int, list[Score]] = {}
    for sample in samples:
        windows.setdefault(sample.window, []).append(sample.score)
    found = summary([joined(scores) for scores in windows.values()])
    low_loss, high_loss = found.dloss_ci
    low_kl, high_kl = found.kl_ci
    return Row(
        rung=rung,
        bits_per_value=round(statistics.fmean(32 * of.size_bytes / of.exact_bytes for of in samples), 3),
        bytes_per_context=round(statistics.fmean(of.size_bytes for of in samples)),
        dloss=round(found.quality.dloss, 6),
        dloss_ci=(round(low_loss, 6), round(high_loss, 6)),
        kl=round(found.quality.kl, 6),
        kl_ci=(round(low_kl, 6), round(high_kl, 6)),
        top1=round(found.quality.top1, 4),
        encode_mb_s=round(statistics.median(of.exact_bytes / of.encode_s for of in samples) / 1e6, 1),
        decode_mb_s=round(statistics.median(of.exact_bytes / of.decode_s for of in samples) / 1e6, 1),
    )


def _show(name: str, options: Options, rows: list[Row], console: Console) -> dict[str, object]:
    lengths = " and ".join(f"{count:,}" for count in options.context_tokens)
    title = f"{name}, {options.windows} windows, contexts of {lengths} tokens"
    table = Table(title=title, caption="± half a 95 % confidence interval")
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "states as" else "right")
    for row in rows:
        means = [with_interval(row.dloss, row.dloss_ci, 5), with_interval(row.kl, row.kl_ci, 5)]
        size, rates = f"{row.bytes_per_context / 1e3:,.1f}", (row.encode_mb_s, row.decode_mb_s)
        table.add_row(row.rung, f"{row.bits_per_value:.2f}", size, *means, f"{row.top1:.3f}", *map(str, rates))
    console.print(table)
    result: dict[str, object] = {
        "bench": "states",
        "model": name,
        "text": options.text.label,
        "rows": [asdict(row) for row in rows],
        "windows": options.windows,
        "context_tokens": list(options.context_tokens),
        "tail_tokens": options.tail,
        "machine": asdict(machine()),
    }
    print(json.dumps(result))
    return result
