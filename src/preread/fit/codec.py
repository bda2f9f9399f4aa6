"""The fit's story: from a model and a text to the profile that its fitted rungs need.

sample KV → measure what errors cost, head by head → predict from the token → principal components → fit the coder's
tables → weigh each layer's K and V by what the errors that coding makes do, and do the last three again → choose each
rung's step by the bits that it should take → measure each rung's quality on windows that nothing was fitted on.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from preread import limits
from preread.codec import fitted
from preread.codec.groups import evenly_grouped, layer_groups
from preread.codec.profile import FittedRung, Profile, Quality, Steps, normalised, prepare
from preread.codec.rope import Ropes, Single, unrotate
from preread.codec.symbols import CLASSES, Coder
from preread.engine.llamacpp import LlamaCpp
from preread.engine.probes import queries
from preread.errors import EngineError
from preread.fit import tables
from preread.fit.bases import Group, basis, predictors
from preread.fit.coded import coded, grouped
from preread.fit.layer_factors import layer_factors
from preread.fit.quality import Score, measure, reference, summary
from preread.fit.queries import channel_shares
from preread.fit.sample import WINDOW_TOKENS, Window, hold, take, windows
from preread.fit.sensitivity import sensitivity
from preread.fit.text import Text
from preread.values import Geometry, KVBlock, Span
from preread.wire.fields import MAX_PROFILE_BYTES

Report = Callable[[str, int, int], None]
"""Told a stage ("read", "sense", "fit", "weigh", "measure"), how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Target:
    """A rung to make: `bits` a value that it should take, with its base, and the rung that it refines, if any."""

    name: str
    bits: float
    base: str | None = None


RUNGS = (
    Target("b4", 4.0, "b1.5"),
    Target("b3", 3.0, "b1.2"),
    Target("b2", 2.0, "b0.9"),
    Target("b1.5", 1.5),
    Target("b1.2", 1.2),
    Target("b0.9", 0.9),
    Target("b0.7", 0.7),
)
"""Each thin rung that a budget is likely to choose has one that refines it: docs/codec.md says what that costs."""

_OTHER_TEXT = 0.92
"""Of what a rung's name says, so much is for the fit's own text: prose takes 7 % more than code, recent tokens, sinks
and headers 13 % more at 512 tokens, 3 % at 2,048."""

GROUP_LAYERS = 4
_MOST_BASES_BYTES = MAX_PROFILE_BYTES - (1 << 22)
"""Of all bases and predictions: the rest of a profile is small."""

LONG_WINDOW = 2048
"""Layers with a longer window than this are coded together with those that have none."""

USUAL_TOKENS = 2048
"""Of a context, where some layers look back a window only: the longer it is, the more rows the others look at."""

SINK_TOKENS = 1
LATE_SINKS = 8
"""Of a block, in models with windows; gemma-3-270m has one in a few hundred tokens."""

RECENT_TOKENS, RECENT_PART, RECENT_STEP = 64, 16, 0.5
"""How many of the context's last tokens, or which part of a long one, are quantised how much more finely."""

FEATURES = 128

FIT_WINDOWS, HELD_OUT_WINDOWS = 15, 3
"""About 9,200 tokens to read: more would make better bases, and take minutes longer, see docs/codec.md. Windows are
taken in the order of `text.calibration`, a third of code and two thirds of other kinds and languages."""

SENSE_WINDOWS = 2
WEIGH_WINDOWS = 6
"""What errors of one layer do differs from text to text: of six kinds and languages it is right for others, too. With
two, gemma-3-270m's b1.2 had a KL of 0.023 instead of 0.016 on text that the fit has not seen."""
_TRIED = Target("tried", 1.2)
"""A rung by whose errors layers' K and V are weighed against each other."""
_STEP_WINDOWS = 2
"""Held-out windows by which steps are chosen."""

_TABLE_WINDOWS, _TABLE_STEPS = 4, (0.07, 0.15, 0.3, 0.5)
"""Windows and steps that the coder's tables are fitted on: a class means much the same at every step."""

_BIAS = (0.05, 0.02)
"""Until it is known."""

_SMALLEST = 0.3
"""Components whose deviation is less than so many steps are not coded at all."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """All but the rungs."""

    profile: Profile
    groups: tuple[Group, ...]


def fit(engine: LlamaCpp, text: Text, progress: Report) -> Profile:
    """Fit a model's codec. Takes minutes; `engine.session.cancel` ends it; what the engine held is gone.

    Args:
        engine: opened to score at least `sample.TAIL_TOKENS` tokens.
        text: at least 4 windows of 640 tokens; 18 are used.

    Raises:
        UsageError: the text is too short.
        EngineError: the model's KV cannot be exchanged, is too wide for a profile, or the engine failed.
        Cancelled: somebody called `engine.session.cancel`.
    """
    if engine.no_rows:
        raise EngineError(f"KV of {engine.spec.name} cannot be coded: {engine.no_rows}")
    profile_groups(engine.spec.windows, engine.spec.geometry)  # or it fails after minutes
    chosen = windows(engine, text, FIT_WINDOWS + HELD_OUT_WINDOWS)
    kept = max(1, len(chosen) * HELD_OUT_WINDOWS // (FIT_WINDOWS + HELD_OUT_WINDOWS))
    total = len(chosen) * WINDOW_TOKENS
    # Held-out windows are spread over the text, so that they are like it, and share no token with the others.
    held_out_at = {int(at) for at in np.linspace(1, len(chosen) - 1, kept)}
    sample = take(engine, chosen, lambda done: progress("read", done, total))
    held_out = [window for n, window in enumerate(sample) if n in held_out_at]
    sample = [window for n, window in enumerate(sample) if n not in held_out_at]
    variances = _variances(sample[:8], engine.ropes)
    costs = sensitivity(
        engine,
        sample[:SENSE_WINDOWS],
        variances,
        SINK_TOKENS,
        late_sinks(engine.spec.windows),
        lambda done, of: progress("sense", done, of),
    )
    progress("fit", 0, 1)
    costs = costs * usual_costs(engine.spec.windows)[None, :, None]
    weights = _weights(engine, sample[0], costs / np.mean(costs * variances))
    tried = _with_rungs(engine, _bases(engine, text, sample, weights), sample, held_out, (_TRIED,))
    factors = layer_factors(
        engine, tried, weights, sample[:WEIGH_WINDOWS], lambda done, of: progress("weigh", done, of)
    )
    weights = weights * factors[:, :, None, None]
    profile = _with_rungs(engine, _bases(engine, text, sample, weights), sample, held_out, RUNGS)
    progress("fit", 1, 1)
    return _measured(engine, profile, held_out, progress)


def _with_rungs(
    engine: LlamaCpp, made: _Fit, sample: list[Window], held_out: list[Window], targets: Sequence[Target]
) -> Profile:
    """The whole profile, of whose rungs the quality is not known."""
    profile = made.profile
    analysed = [_analysed(engine, profile, window) for window in held_out[:_STEP_WINDOWS]]
    profile = replace(profile, coder=_tables(made, [_analysed(engine, profile, w) for w in sample[:_TABLE_WINDOWS]]))
    return replace(profile, rungs=_rungs(replace(made, profile=profile), analysed, targets))


def profile_groups(windows: Sequence[int | None], geometry: Geometry) -> tuple[Span, ...]:
    """Which layers of a model with these windows are coded together: as many as can be published, up to `GROUP_LAYERS`.

    What a short window has left behind need not be sent, so its layers are apart from those that look at everything.
    With a long window few contexts leave anything behind, and layers that lie together are coded better together.

    Raises:
        EngineError: even layer by layer a profile would be larger than an edge takes.
    """
    apart = any(window is not None and window <= LONG_WINDOW for window in windows)
    for count in range(GROUP_LAYERS, 0, -1):
        groups = evenly_grouped(windows, count) if apart else layer_groups(len(windows), count)
        widths = [geometry.values_per_token * len(group) // geometry.layers for group in groups]
        if sum(width * (width + FEATURES) for width in widths) <= _MOST_BASES_BYTES:
            return groups
    raise EngineError(
        f"a profile for {geometry.layers} layers of {geometry.kv_heads} heads of {geometry.head_dim} values would be "
        "larger than an edge takes: publish in rungs that need none, with preread cloud --rungs lossless,q8"
    )


def late_sinks(windows: Sequence[int | None]) -> int:
    """How many tokens of a block may be late sinks: only models some of whose layers look back a window have any."""
    return LATE_SINKS if any(window is not None for window in windows) else 0


def usual_costs(windows: Sequence[int | None]) -> npt.NDArray[np.float64]:
    """By how much more an error in one row of each layer costs, (layers,), in a context of `USUAL_TOKENS`.

    What is measured is what errors in all rows of a layer do together. A window holds fewer of these rows, and bits are
    spent on those only: so each counts more.
    """
    seen = [USUAL_TOKENS if window is None else min(max(window - 1, 1), USUAL_TOKENS) for window in windows]
    return USUAL_TOKENS / np.array(seen, np.float64)


def _variances(sample: list[Window], ropes: Ropes) -> npt.NDArray[np.float64]:
    """Mean variance of a channel of K (before rotation) and V of each head, (2, layers, kv_heads)."""
    k = [unrotate(window.block.k[:, :, SINK_TOKENS:], _counted(window.block), ropes) for window in sample]
    v = [window.block.v[:, :, SINK_TOKENS:].astype(np.float32) for window in sample]
    halves = [np.stack(half).var(axis=(0, 3)).mean(axis=2) for half in (k, v)]
    least: npt.NDArray[np.float64] = np.maximum(np.stack(halves), 1e-12).astype(np.float64)
    return least


def _weights(engine: LlamaCpp, window: Window, costs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What an error in each channel of K (before rotation) and V costs, (2, layers, kv_heads, head_dim)."""
    shape = engine.spec.geometry
    shares = np.ones((2, shape.layers, shape.kv_heads, shape.head_dim))
    found = queries(engine, window.tokens)
    if found is not None:
        shares[0] = channel_shares(found, shape.kv_heads, engine.ropes)
    weights: npt.NDArray[np.float64] = costs[..., None] * shares
    return weights


def _counted(block: KVBlock) -> Span:
    """The tokens that are no sinks."""
    return Span(block.tokens.start + SINK_TOKENS, block.tokens.stop)


def _bases(engine: LlamaCpp, text: Text, sample: list[Window], costs: npt.NDArray[np.float64]) -> _Fit:
    """`costs`: of each channel, (2, layers, kv_heads, head_dim)."""
    spec, ropes = engine.spec, engine.ropes
    tokens = np.concatenate([window.tokens[SINK_TOKENS:] for window in sample])
    known = normalised(engine.embeddings(tokens))
    frame = Profile(
        spec.fingerprint,
        spec.geometry,
        profile_groups(spec.windows, spec.geometry),
        SINK_TOKENS,
        RECENT_TOKENS,
        text.label,
        ropes,
        np.zeros(known.shape[1], np.float32),
        np.zeros((known.shape[1], 0), np.float16),
        (),
        tables.start(),
        (),
        RECENT_PART,
        sink_runs=True,
        late_sinks=late_sinks(spec.windows),
    )
    means, weights, weighted = [], [], []
    for layers in frame.groups:
        x = np.concatenate([_vectors(window.block, layers, ropes) for window in sample])
        weight = costs[:, layers.start : layers.stop].ravel().astype(np.float32)
        mean = x.mean(axis=0)
        means.append(mean)
        weights.append(weight)
        weighted.append((x - mean) * np.sqrt(weight))
    feature_mean, features, predictions = predictors(known, weighted, FEATURES)
    rounded = features.astype(np.float16)
    seen = (known - feature_mean) @ rounded.astype(np.float32)
    groups = tuple(
        basis(mean, weight, prediction, x - seen @ prediction)
        for mean, weight, prediction, x in zip(means, weights, predictions, weighted, strict=True)
    )
    bases = tuple(group.basis for group in groups)
    return _Fit(replace(frame, feature_mean=feature_mean, features=rounded, bases=bases), groups)


def _vectors(block: KVBlock, layers: Span, ropes: Ropes) -> Single:
    part = slice(layers.start, layers.stop)
    k = unrotate(block.k[part, :, SINK_TOKENS:], _counted(block), ropes[part])
    return fitted.vectors(k, block.v[part, :, SINK_TOKENS:].astype(np.float32))


Windows = list[list[Single]]
"""Coefficients (tokens, C) of windows, of each layer group."""


def _tables(made: _Fit, windows: Windows) -> Coder:
    """The coder's tables: what symbols are chosen depends on them, so they are made twice."""
    deviations, coder = [group.deviations for group in made.groups], tables.start()
    for _ in range(2):
        coded = []
        for step in _TABLE_STEPS:
            steps = _steps(deviations, step)
            for group, classes in enumerate(steps.classes):
                found = [fitted.quantised(y[group], steps, _BIAS, group, coder)[1] for y in windows]
                coded += [(symbols, classes) for symbols in found]
        coder = tables.tables(coded)
    return coder


def _rungs(made: _Fit, windows: Windows, targets: Sequence[Target]) -> tuple[FittedRung, ...]:
    """All rungs: first those that stand alone, then those that refine them, of what these leave."""
    deviations, coder = [group.deviations for group in made.groups], made.profile.coder

    def alone(target: Target) -> FittedRung:
        rung = _rung(deviations, coder, windows, target, target.bits * _OTHER_TEXT)
        return replace(rung, recent=_steps(deviations, RECENT_STEP * rung.older.step))

    def refining(target: Target) -> FittedRung:
        return _refining(found[target.base or ""], coder, windows, target)

    with ThreadPoolExecutor(limits.cpus()) as pool:  # symbols are chosen in C, without the GIL
        found = {rung.name: rung for rung in pool.map(alone, [target for target in targets if not target.base])}
        found |= {rung.name: rung for rung in pool.map(refining, [target for target in targets if target.base])}
    return tuple(found[target.name] for target in targets)


def _refining(base: FittedRung, coder: Coder, windows: Windows, target: Target) -> FittedRung:
    """A rung that codes what its base leaves, of recent tokens with half the step too."""
    left, recent = (_left(windows, steps, base.bias, coder) for steps in (base.older, base.recent))
    rung = _rung(_spread(left), coder, left, target, target.bits * _OTHER_TEXT - base.bits)
    return replace(rung, bits=rung.bits + base.bits, recent=_steps(_spread(recent), RECENT_STEP * rung.older.step))


def _left(windows: Windows, steps: Steps, bias: tuple[float, float], coder: Coder) -> Windows:
    """What quantising leaves of coefficients."""
    left = [[np.array(y) for y in groups] for groups in windows]
    for groups in left:
        for group, y in enumerate(groups):
            fitted.restore(fitted.quantised(y, steps, bias, group, coder)[1], steps, bias, y, -1)
    return left


def _spread(windows: Windows) -> list[Single]:
    """Root mean squares of coefficients, for each group."""
    return [np.sqrt(np.mean([np.square(y).mean(axis=0) for y in ys], axis=0)) for ys in zip(*windows, strict=True)]


def _rung(deviations: list[Single], coder: Coder, windows: Windows, target: Target, bits: float) -> FittedRung:
    """The step that takes so many bits a value, by bisection with the real coder."""
    low, high = 1e-3, 30.0
    for _ in range(11):
        step = float(np.sqrt(low * high))
        low, high = (step, high) if _spent(windows, _steps(deviations, step), _BIAS, coder)[0] > bits else (low, step)
    steps = _steps(deviations, step)
    bias = _spent(windows, steps, _BIAS, coder)[1]
    spent = _spent(windows, steps, bias, coder)[0]
    return FittedRung(target.name, spent, Quality(0.0, 0.0, 1.0, 1), steps, steps, bias, target.base)


def _steps(deviations: list[Single], step: float) -> Steps:
    """A step, and the classes of components of these deviations. Those that are too weak to be coded come last."""
    classes = []
    for spread in deviations:
        in_steps = spread / step
        coded = in_steps[: int(np.max(np.nonzero(in_steps >= _SMALLEST)[0], initial=-1)) + 1]
        classes.append(np.clip(np.rint(2 * np.log2(np.maximum(coded, 1e-9))) + 6, 0, CLASSES - 1).astype(np.uint8))
    return Steps(step, tuple(classes))


def _analysed(engine: LlamaCpp, profile: Profile, window: Window) -> list[Single]:
    """A held-out window's coefficients (tokens, C) of each layer group."""
    prepared = prepare(profile, engine.embeddings(window.tokens))
    blocks = enumerate(grouped(window.block, prepared))
    return [fitted.coefficients(prepared, block, group, SINK_TOKENS) for group, block in blocks]


def _spent(
    windows: Windows, steps: Steps, bias: tuple[float, float], coder: Coder
) -> tuple[float, tuple[float, float]]:
    """Bits a value without sinks, and the bias that puts symbols of size 1, and larger ones, at their values' mean."""
    size = values = 0
    below: list[list[Single]] = [[], []]
    for groups in windows:
        for group, y in enumerate(groups):
            coded, symbols = fitted.quantised(y, steps, bias, group, coder)
            in_steps = np.abs(y[:, : symbols.shape[1]]) / np.float32(steps.step)
            size += len(coded)
            values += y.size
            sizes = np.abs(symbols)
            for which, chosen in zip(below, (sizes == 1, sizes > 1), strict=True):
                which.append((sizes - in_steps)[chosen])
    return 8 * size / values, (_bias(below[0]), _bias(below[1]))


def _bias(residues: list[Single]) -> float:
    every = np.concatenate(residues)
    return float(np.clip(every.mean(), 0, 0.45)) if len(every) else 0.0


def _measured(engine: LlamaCpp, profile: Profile, held_out: list[Window], progress: Report) -> Profile:
    """The profile with each rung's quality as its real bytes have it."""
    scores: dict[str, list[Score]] = {rung.name: [] for rung in profile.rungs}
    steps, total = 0, len(held_out) * len(profile.rungs)
    for window in held_out:
        hold(engine, window.block)
        exact = reference(engine, window.tail)
        prepared = prepare(profile, engine.embeddings(window.tokens))
        for index, rung in enumerate(profile.rungs):
            back = coded(prepared, index, window.block)
            scores[rung.name].append(measure(engine, len(window.tokens), window.tail, exact, back))
            steps += 1
            progress("measure", steps, total)
    rungs = tuple(replace(rung, quality=summary(scores[rung.name]).quality) for rung in profile.rungs)
    return replace(profile, rungs=rungs)
