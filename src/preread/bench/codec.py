"""The codec's rungs and other schemes on one text: bytes that would cross the wire against what they do to the model.

Each context is prefilled once with exact KV; each rung then goes all the way (see `through.py`). It must not know how
any codec works.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from preread.bench import cachegen, plot
from preread.bench.baselines import KIVI_BITS, Kivi
from preread.bench.rates import AtEqualKL, Row, Sample, at_equal_kl, row, with_interval
from preread.bench.through import cached, contexts, cut, export, sample
from preread.cloud.chunks import GROUP_LAYERS
from preread.codec import ladder
from preread.codec.base import Codec
from preread.codec.profile import Prepared, Profile, prepare
from preread.codec.profile_bytes import loads
from preread.edge.machine import machine
from preread.engine.llamacpp import CacheType, LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.codec import fit
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS
from preread.fit.text import Text, calibration
from preread.values import Span
from preread.wire.parts import groups_of

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

_LLAMA: dict[str, tuple[CacheType, float]] = {"llama-q8_0": ("q8_0", 8.5), "llama-q4_0": ("q4_0", 4.5)}
_CACHEGEN = tuple(f"cachegen-{level}" for level in cachegen.STEPS)
OTHERS = (*_LLAMA, *(f"kivi-{bits}" for bits in KIVI_BITS), *_CACHEGEN)
"""Rows of other schemes."""

_COUNTED_WINDOWS, _COUNTED_TOKENS = 8, 1024
_EQUAL_KL = (0.02, 0.05)
_HEADINGS = ("rung", "bits/value", "B/token", "Δloss", "KL", "top-1", "encode tok/s", "decode tok/s")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Attributes:
        text: what the windows are cut from.
        rungs: rows to measure; empty: lossless, all rungs of the profile, and all other schemes.
        windows: how many windows.
        context_tokens: lengths of contexts; each is measured on every window.
        tail: how many tokens after the context are predicted.
        profile: file of a fitted profile; None: fit one first, if a rung needs it.
        plot: where to draw the picture.
    """

    text: Text
    rungs: tuple[str, ...] = ()
    windows: int = 20
    context_tokens: tuple[int, ...] = (512, 2048)
    tail: int = 128
    profile: Path | None = None
    plot: Path | None = None


def bench(
    model: Path, name: str, options: Options, console: Console, progress: AbstractContextManager[Report]
) -> dict[str, object]:
    """Measure, print tables and last one line of JSON, which is also returned.

    Raises:
        UsageError: the text is too short, a rung is unknown, the profile is another model's, or an extra is missing.
    """
    if options.plot:
        plot.check(options.plot)
    with progress as report, ExitStack() as stack:

        def opened(cache: CacheType) -> LlamaCpp:
            return stack.enter_context(closing(_open(model, name, options, cache)))

        engine = opened("f16")
        windows = cut(engine, options.text, options.windows, max(options.context_tokens), options.tail)
        profile = _profile(engine, options, report)
        rungs = _rungs(options.rungs, profile)
        others = _others(engine, rungs, report)
        caches = {rung: opened(_LLAMA[rung][0]) for rung in rungs if rung in _LLAMA}
        samples: dict[str, list[Sample]] = {rung: [] for rung in rungs}
        total = len(windows) * len(options.context_tokens) * len(rungs)
        for number, window in enumerate(windows):
            for exact in contexts(engine, window, options.context_tokens, options.tail):
                prepared, prepare_s = _prepared(engine, profile, exact.tokens)
                for rung in rungs:
                    report("measure", sum(map(len, samples.values())), total)
                    if rung in caches:
                        found = cached(caches[rung], _LLAMA[rung][1], number, exact)
                    else:
                        codec = others.get(rung) or ladder.codec(rung, prepared)
                        extra_s = prepare_s if ladder.needs_profile(codec.version) else 0.0
                        found = sample(engine, codec, number, exact, _groups(engine, profile), extra_s)
                    samples[rung].append(found)
    return _show(name, options, samples, profile, console)


def _open(model: Path, name: str, options: Options, cache: CacheType) -> LlamaCpp:
    scored = max(options.tail, TAIL_TOKENS)
    need = max(max(options.context_tokens) + scored, _COUNTED_TOKENS, WINDOW_TOKENS + scored)
    window_tokens = (need + 255) // 256 * 256
    engine = LlamaCpp.open(model, name=name, window_tokens=window_tokens, scored_tokens=scored, cache=cache)
    if cache == "f16" and engine.no_rows:
        engine.close()
        raise UsageError(f"KV of {name} cannot be streamed: {engine.no_rows}")
    return engine


def _profile(engine: LlamaCpp, options: Options, report: Report) -> Profile | None:
    if options.rungs and all(rung in (*OTHERS, *ladder.ladder()) for rung in options.rungs):
        return None
    if options.profile is None:
        return fit(engine, calibration(), report)
    try:
        profile = loads(options.profile.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the profile {options.profile}: {error.strerror or error}") from error
    if profile.fingerprint != engine.spec.fingerprint:
        raise UsageError(f"{options.profile} is the profile of another model than {engine.spec.name}")
    return profile


def _rungs(asked: tuple[str, ...], profile: Profile | None) -> tuple[str, ...]:
    known = (*ladder.ladder(profile), *OTHERS)
    if not asked:
        return ("lossless", *(ladder.fitted_rungs(profile) if profile else ()), *OTHERS)
    for rung in asked:
        if rung not in known:
            raise UsageError(f"unknown rung {rung!r}; known here: {', '.join(known)}")
    return asked


def _others(engine: LlamaCpp, rungs: tuple[str, ...], report: Report) -> dict[str, Codec]:
    """Codecs of the other schemes that are asked for; CacheGen's symbols are counted on the calibration's text."""
    found: dict[str, Codec] = {codec.rung: codec for codec in map(Kivi, KIVI_BITS)}
    if set(rungs) & set(_CACHEGEN):
        blocks = []
        windows = cut(engine, calibration(), _COUNTED_WINDOWS, _COUNTED_TOKENS, 0)
        for number, window in enumerate(windows):
            report("count", number, len(windows))
            engine.session.prefill(window)
            blocks.append(export(engine))
        found |= {codec.rung: codec for codec in cachegen.fit(blocks)}
    return {rung: codec for rung, codec in found.items() if rung in rungs}


def _prepared(engine: LlamaCpp, profile: Profile | None, tokens: Tokens) -> tuple[Prepared | None, float]:
    """The profile for these tokens, and how many seconds that took."""
    started = time.perf_counter()
    if profile is None:
        return None, 0.0
    different, places = np.unique(tokens, return_inverse=True)
    prepared = prepare(profile, engine.embeddings(different), places)
    return prepared, time.perf_counter() - started


def _groups(engine: LlamaCpp, profile: Profile | None) -> tuple[Span, ...]:
    if profile is not None:
        return profile.groups
    return tuple(Span(*group.layers) for group in groups_of(engine.spec.layers, GROUP_LAYERS))


def _show(
    name: str, options: Options, samples: dict[str, list[Sample]], profile: Profile | None, console: Console
) -> dict[str, object]:
    rows: list[Row] = []
    for count in (None, *sorted(set(options.context_tokens))):
        block = [row(rung, of, count) for rung, of in samples.items()]
        length = "contexts of all lengths" if count is None else f"contexts of {count:,} tokens"
        console.print(_table(block, f"{name}, {options.windows} windows, {length}"))
        rows += block
    equal = [at_equal_kl([row for row in rows if row.context_tokens is None], kl) for kl in _EQUAL_KL]
    for found in equal:
        console.print(_sentence(found))
    if options.plot:
        plot.draw([row for row in rows if row.context_tokens is None], f"{name} on {options.text.label}", options.plot)
    result: dict[str, object] = {
        "bench": "codec",
        "model": name,
        "text": options.text.label,
        "rows": [asdict(row) for row in rows],
        "equal_kl": [asdict(found) for found in equal],
        "windows": options.windows,
        "tail_tokens": options.tail,
        "calibration": None if profile is None else profile.calibration,
        "machine": asdict(machine()),
    }
    print(json.dumps(result))
    return result


def _table(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title, caption="± half a 95 % confidence interval")
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "rung" else "right")
    for of in rows:
        rates = [f"{rate:,}" if rate else "–" for rate in (of.encode_tokens_s, of.decode_tokens_s)]
        means = [with_interval(of.dloss, of.dloss_ci), with_interval(of.kl, of.kl_ci)]
        bytes_per_token = f"{of.bytes_per_token:,.0f}"
        table.add_row(of.rung, f"{of.bits_per_value:.3f}", bytes_per_token, *means, f"{of.top1:.3f}", *rates)
    return table


def _sentence(found: AtEqualKL) -> str:
    if found.ours_bits is None or found.best_bits is None or found.ratio is None:
        return f"KL {found.kl:g}: not both of ours and another scheme reach it"
    return (
        f"KL {found.kl:g}: {found.ours_bits:.2f} bits a value, {found.best} {found.best_bits:.2f}: "
        f"{found.ratio:.2f} × fewer bytes"
    )
