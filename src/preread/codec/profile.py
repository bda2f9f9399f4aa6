"""What the fitted rungs need to know of a model, once: bases, predictions, steps. Immutable, named by its digest.

A group's rows of K (before rotation) and V of one token, all layers of the group side by side, are one vector x:
[K of the first layer, K of the next, …, V of the first layer, …], heads in order. It is written as

    x = mean + prediction · features(token) + y · basis

and y, the coefficients, are quantised. The basis is that of a principal component analysis of what the prediction
leaves, in a space where errors count by what they do to the output: there, a vector is x times the square root of its
weights, and basis and prediction are kept as they are there, as int8 with a scale for each row.
`fit/codec.py` makes profiles; `fitted.py` uses them; `profile_bytes.py` writes and reads them.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from preread.codec.product import COLUMNS, Synthesis, analysed, padded_depth, padded_rows, padded_width, panels
from preread.codec.rope import Ropes, Single, angles
from preread.codec.symbols import Classes, Coder
from preread.errors import UsageError
from preread.values import Fingerprint, Geometry, Span

MAX_SINKS: Final = 64
"""No more tokens of a context are sinks."""

Bytes8 = npt.NDArray[np.int8]

Turn = tuple[Single, Single]


@dataclass(frozen=True, slots=True)
class Quality:
    """What a rung does to the model's output, against exact KV, on text that the fit has not seen.

    Attributes:
        dloss: mean change of loss, nats/token.
        kl: mean KL divergence from the next-token distribution after exact KV, nats.
        top1: share of positions with the same likeliest token.
        tokens: how many positions were measured.
    """

    dloss: float
    kl: float
    top1: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Steps:
    """How finely coefficients are quantised.

    Attributes:
        step: of the quantiser, in the weighted space.
        classes: for each group the classes of its coded components, (components,) uint8 below `CLASSES`.
    """

    step: float
    classes: tuple[Classes, ...]


@dataclass(frozen=True, slots=True)
class FittedRung:
    """One lossy rung.

    Attributes:
        name: in the ladder.
        bits: a value, on the fit's own text.
        quality: as measured by the fit.
        older, recent: steps for most of a context, and for its last tokens, which what follows looks at most.
        bias: how much nearer to zero the reader puts symbols of size 1, and larger ones, in steps.
        base: the rung that this one refines: its symbols are of what that one leaves. None: it stands alone.
    """

    name: str
    bits: float
    quality: Quality
    older: Steps
    recent: Steps
    bias: tuple[float, float]
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Basis:
    """Of one layer group, with N = 2 · layers · kv_heads · head_dim values in a vector.

    Attributes:
        mean: (N,) float32.
        weight: (N,) float32, what a squared error of 1 costs; positive.
        rows, row_scales: basis (C, N) int8, and (C,) float32 that its rows are to be multiplied by: then they are
            orthonormal, but for rounding.
        prediction, prediction_scales: features to weighted vectors, (R, N) int8, and (R,) float32.
    """

    mean: Single
    weight: Single
    rows: Bytes8
    row_scales: Single
    prediction: Bytes8
    prediction_scales: Single

    def vectors(self, components: int) -> Single:
        """What a coefficient of 1 of the first components adds to x, (components, N)."""
        weighted = self.rows[:components] * self.row_scales[:components, None]
        return (weighted / np.sqrt(self.weight)).astype(np.float32)

    def predicted(self) -> Single:
        """What a feature of 1 adds to x, (R, N)."""
        return (self.prediction * self.prediction_scales[:, None] / np.sqrt(self.weight)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that the fitted rungs of one model share.

    Attributes:
        fingerprint, geometry: of the model.
        groups: layers that are coded together, in order.
        sink_tokens: so many tokens at the context's start are kept lossless: attention sinks, unlike all others.
        recent_tokens: at least so many tokens at the context's end are recent.
        calibration: what text it was fitted on; for people.
        ropes: how each layer rotates K.
        feature_mean, features: token features are (normalised embedding − mean (E,)) · features (E, R) float16.
        bases: one for each layer group.
        coder: tables that symbols are coded with.
        rungs: best first; one that another refines stands alone.
        recent_part: one in so many tokens is recent, in a long context; 0: no more than recent_tokens.
        sink_runs: whether tokens that repeat the context's first one, without a gap, are sinks too: what they attend to
            is the same token over and over, so their KV (before rotation) is the same.
        late_sinks: of a block so many more tokens may be lossless, which it names itself: where windows lose sight of a
            context's start, tokens in its middle are sinks, and which ones nobody knows before it is read.
    """

    fingerprint: Fingerprint
    geometry: Geometry
    groups: tuple[Span, ...]
    sink_tokens: int
    recent_tokens: int
    calibration: str
    ropes: Ropes
    feature_mean: Single
    features: npt.NDArray[np.float16]
    bases: tuple[Basis, ...]
    coder: Coder
    rungs: tuple[FittedRung, ...]
    recent_part: int = 0
    sink_runs: bool = False
    late_sinks: int = 0
    _synthesis: dict[int, Synthesis] = field(default_factory=dict, compare=False, repr=False)
    _analysis: dict[int, Single] = field(default_factory=dict, compare=False, repr=False)

    def group(self, layers: Span) -> int | None:
        """Index of the layer group that is exactly `layers`."""
        return next((index for index, group in enumerate(self.groups) if group == layers), None)

    def rung(self, name: str) -> FittedRung:
        """The rung of this name.

        Raises:
            KeyError: there is none.
        """
        return {rung.name: rung for rung in self.rungs}[name]

    def synthesis(self, group: int) -> Synthesis:
        """Features and coefficients to vectors, as the compiled product wants it; kept."""
        if group not in self._synthesis:
            self._synthesis[group] = synthesis(self.bases[group])
        return self._synthesis[group]

    def analysis(self, group: int) -> Single:
        """Vectors less their mean, and features, to coefficients, (N + R) by C, as panels; kept."""
        if group not in self._analysis:
            basis = self.bases[group]
            rows = basis.vectors(len(basis.rows))
            weighted = (rows * basis.weight).astype(np.float64)
            # The rows are orthonormal but for their rounding to int8, which this takes back.
            back = np.linalg.solve(weighted @ rows.T, weighted).T
            self._analysis[group] = panels(np.vstack([back, -basis.predicted() @ back]).astype(np.float32))
        return self._analysis[group]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A profile made ready for one context.

    Attributes:
        profile: what was made ready.
        features: of the context's tokens, (tokens, R).
        turns: cosines and sines of the angles by which each layer rotates K at their positions, each (tokens, pairs);
            layers that rotate alike have the same ones.
        sinks: so many tokens at the start are lossless.
        recent: tokens from here on are recent; no sink is.
    """

    profile: Profile
    features: Single
    turns: tuple[Turn, ...]
    sinks: int
    recent: int


def prepare(profile: Profile, embeddings: Single, places: npt.NDArray[np.intp] | None = None) -> Prepared:
    """Make a profile ready for a context.

    Args:
        profile: of the model.
        embeddings: the model's own, of the context's tokens, (tokens, E).
        places: which of the embeddings each token has, (tokens,): a text uses few different tokens. None: its own.

    Raises:
        UsageError: the embeddings are not of this model.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != len(profile.feature_mean):
        raise UsageError(f"embeddings of shape {embeddings.shape} do not fit a profile for {len(profile.feature_mean)}")
    # (normalised(embeddings) - mean) · features; the mean is the last row, so that one product does
    rows = np.zeros((padded_rows(len(embeddings) + 1), embeddings.shape[1]), np.float32)
    rows[: len(embeddings)], rows[len(embeddings)] = embeddings, profile.feature_mean
    onto = analysed(rows, panels(profile.features.astype(np.float32)))[:, : profile.features.shape[1]]
    features: Single = onto[: len(embeddings)] / _rms(embeddings) - onto[len(embeddings)]
    places = np.arange(len(embeddings)) if places is None else places
    features, tokens, sinks = features[places], len(places), profile.sink_tokens
    if profile.sink_runs and sinks:
        first = embeddings[places[:MAX_SINKS]]
        repeated = (first == first[:1]).all(axis=1)
        sinks = max(sinks, len(repeated) if repeated.all() else int(np.argmin(repeated)))
    recent = max(profile.recent_tokens, tokens // profile.recent_part if profile.recent_part else 0)
    made = {id(rope): angles(rope, Span(0, tokens)) for rope in profile.ropes}
    turns = tuple(made[id(rope)] for rope in profile.ropes)
    return Prepared(profile, features, turns, sinks, max(tokens - recent, sinks))


def normalised(embeddings: Single) -> Single:
    """Rows brought to a root mean square of 1, as the model's first layer sees them."""
    rows: Single = embeddings / _rms(embeddings)
    return rows


def _rms(rows: Single) -> Single:
    """Root mean square of each row, (rows, 1)."""
    squares = np.einsum("te,te->t", rows, rows) / np.float32(rows.shape[1])
    rms: Single = np.sqrt(squares + np.float32(1e-12))[:, None]
    return rms


def synthesis(basis: Basis) -> Synthesis:
    """A basis in the order in which the compiled product reads it."""
    rows = np.vstack([basis.prediction, basis.rows])
    depth, width = padded_depth(len(rows)), padded_width(rows.shape[1])
    padded = np.zeros((depth, width), np.int16)
    padded[: len(rows), : rows.shape[1]] = rows
    scales, means, columns = np.zeros(depth, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32)
    scales[: len(rows)] = np.concatenate([basis.prediction_scales, basis.row_scales])
    means[: len(basis.mean)] = basis.mean
    columns[: len(basis.mean)] = 1 / np.sqrt(basis.weight)
    pairs = padded.reshape(depth // 2, 2, -1, COLUMNS).transpose(2, 0, 3, 1)
    fours = (padded + 128).astype(np.uint8).reshape(depth // 4, 4, -1, COLUMNS).transpose(2, 0, 3, 1)
    return Synthesis(np.ascontiguousarray(pairs), np.ascontiguousarray(fours), scales, means, columns)
