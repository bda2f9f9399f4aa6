"""Pictures: of `preread bench codec`, bytes a token against KL; of `preread bench ttft`, time to first token
over the link's rate; of `preread bench serve`, times over the rate of answers; of `preread fit align`, which layers
are alike.

Matplotlib has its one home here. Nothing is behind what is drawn, and text is grey, for light pages and dark ones.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.bench.load import Row as LoadRow
from preread.bench.rates import OURS, Row, at_equal_kl, curves
from preread.bench.ttft import Row as TtftRow
from preread.errors import UsageError
from preread.fit.align import Alignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_MARKERS = {OURS: "o", "unfitted": "x", "llama.cpp": "s", "KIVI-like": "^", "CacheGen-like": "D"}
_GREY = "#7d8590"
_LEAST_KL, _SAVED_AT_KL = 1e-5, 0.02
"""The first is as good as nothing, and is on a logarithm; at the second schemes are compared."""
_LOOK: Any = {
    "text.color": _GREY, "axes.labelcolor": _GREY, "axes.edgecolor": _GREY, "xtick.color": _GREY, "ytick.color": _GREY,
    "savefig.transparent": True, "legend.framealpha": 0, "svg.hashsalt": "preread",
}  # fmt: skip
_COLOURS = {OURS: "C0", "unfitted": "C4", "llama.cpp": "C3", "KIVI-like": "C1", "CacheGen-like": "C2"}


def check(path: Path) -> None:
    """Make sure that a picture could be written, before what it is to show is measured.

    Raises:
        UsageError: matplotlib is not installed, the format is unknown, or there is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot writes {', '.join(FORMATS)}, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot: there is no folder {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'preread[bench]'") from error


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the picture of bytes a token against KL divergence; its format follows from the path's suffix.

    Bands are 95 % confidence intervals. Rungs that change nothing have no place on a logarithm: a line says what the
    exact ones take.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    with _figure(7, 4.8) as figure:
        axes = figure.subplots()
        for name, curve in curves(rows).items():
            colour, whole = _COLOURS[name], len(curve) > 1
            sizes = [row.bytes_per_token for row in curve]
            low, high = [max(row.kl_ci[0], _LEAST_KL) for row in curve], [row.kl_ci[1] for row in curve]
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                sizes, [row.kl for row in curve], color=colour, marker=_MARKERS[name], markersize=6 if whole else 7,
                linewidth=2.2 if name == OURS else 1.4, zorder=3 if name == OURS else 2,
                label=name if whole else f"{name}, {curve[0].rung.rpartition('-')[2]}",
            )  # fmt: skip
            for row in curve if name == OURS else ():
                axes.annotate(
                    row.rung, (row.bytes_per_token, row.kl), (0, -13), textcoords="offset points", ha="center",
                    fontsize=8,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("bytes a token of context")
        axes.set_ylabel("KL divergence from the exact KV, nats a token")
        axes.set_xscale("log", subs=(2, 3, 4, 5, 6, 7, 8, 9))
        axes.set_yscale("log")
        for size_bytes, what in _exact(rows):
            axes.axvline(size_bytes, color=_GREY, linestyle=":", linewidth=1.2)
            axes.annotate(
                what, (size_bytes, 0.98), (-4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                rotation=90, ha="right", va="top", fontsize=8,
            )  # fmt: skip
        _saved(axes, rows)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda size_bytes, _: f"{size_bytes:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(lambda kl, _: f"{kl:g}")
        _grid(axes)
        axes.legend(fontsize=8, loc="upper left")
        _save(figure, path)


def _exact(rows: Sequence[Row]) -> Iterator[tuple[float, str]]:
    """Bytes a token of what changes nothing, and what it is called."""
    yield 16 * rows[0].bytes_per_token / rows[0].bits_per_value, "float16, exact"
    yield from ((row.bytes_per_token, f"{row.rung}, exact") for row in rows if row.kl == 0)


def _saved(axes: Any, rows: Sequence[Row]) -> None:
    """Say how many bytes fewer than the best other scheme ours takes at one divergence, if both reach it."""
    found, bytes_a_bit = at_equal_kl(rows, _SAVED_AT_KL), rows[0].bytes_per_token / rows[0].bits_per_value
    if found.ours_bits is None or found.best_bits is None or found.ratio is None:
        return
    ours, best = found.ours_bits * bytes_a_bit, found.best_bits * bytes_a_bit
    ends = {"arrowstyle": "<->", "color": _GREY, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (ours, _SAVED_AT_KL), (best, _SAVED_AT_KL), arrowprops=ends)
    axes.annotate(
        f"{found.ratio:.1f} × fewer bytes", (math.sqrt(ours * best), _SAVED_AT_KL), (0, 4),
        textcoords="offset points", ha="center", fontsize=9,
    )  # fmt: skip


def draw_ttft(rows: Sequence[TtftRow], title: str, path: Path) -> None:
    """Write the picture of time to first token over the link's rate; its format follows from the path's suffix.

    A point is the median over round trips and lengths of context. Rates of 0 have no place on it.

    Raises:
        UsageError: the file cannot be written.
    """
    with _figure(7, 4.8) as figure:
        axes = figure.subplots()
        there = [row for row in rows if row.mbps > 0]
        rates = sorted({row.mbps for row in there})
        rungs = list(dict.fromkeys(row.rung for row in there))

        def line(rung: str | None, times: str, **look: Any) -> None:
            cells = [[row for row in there if row.mbps == rate and rung in (None, row.rung)] for rate in rates]
            points = [(each[0].mbps, statistics.median(getattr(row, times) for row in each)) for each in cells if each]
            axes.plot([rate for rate, _ in points], [time_s for _, time_s in points], **look)

        line(None, "local_s", color=_GREY, linewidth=1.5, label="computed here")
        for number, rung in enumerate(rungs):
            line(rung, "streamed_s", color=f"C{number}", marker="o", linewidth=2, label=f"streamed, {rung}")
            line(rung, "floor_s", color=f"C{number}", linestyle=":", linewidth=1.2, label=f"floor, {rung}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("link, Mbit/s")
        axes.set_ylabel("time to first token, s")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        axes.yaxis.set_major_formatter(lambda time_s, _: f"{time_s:g}")
        _grid(axes)
        axes.legend(fontsize=8)
        _save(figure, path)


def draw_load(rows: Sequence[LoadRow], title: str, path: Path) -> None:
    """Write the picture of time to first token, and a further token, over the rate of answers that was achieved.

    Its format follows from the path's suffix.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    with _figure(9, 4.2) as figure:
        first, further = figure.subplots(1, 2)
        for number, system in enumerate(dict.fromkeys(row.system for row in rows)):
            own = sorted((row for row in rows if row.system == system), key=lambda row: row.rate or 0.0)
            look: Any = {"color": f"C{number}", "linewidth": 2.2 if number == 0 else 1.4}
            _times(first, own, "ttft_p50_s", marker="o", label=f"{system}, median", **look)
            thin = look | {"linewidth": look["linewidth"] / 2}
            _times(first, own, "ttft_p99_s", marker=".", linestyle="--", label=f"{system}, 99th percentile", **thin)
            _times(further, own, "tpot_p50_s", marker="o", label=f"{system}, median", **look)
            for row in own:
                if row.failed and row.ttft_p50_s is not None:
                    first.annotate(
                        f"{row.failed} of {row.requests} not answered", (row.rps, row.ttft_p50_s), (6, -3),
                        textcoords="offset points", fontsize=8,
                    )  # fmt: skip
        figure.suptitle(title, fontsize=10)
        first.set_ylabel("time to first token, s")
        first.set_yscale("log")
        first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        first.yaxis.set_minor_formatter(NullFormatter())
        further.set_ylabel("time of a further token, s")
        further.set_ylim(bottom=0)
        for axes in (first, further):
            axes.set_xlabel("answers a second")
            axes.set_xlim(left=0)
            axes.yaxis.set_major_formatter(lambda time_s, _: f"{time_s:g}")
            _grid(axes)
            axes.legend(fontsize=8)
        _save(figure, path)


def _times(axes: Any, rows: Sequence[LoadRow], of: str, **look: Any) -> None:
    """A line through what was measured of each row, where there was an answer."""
    points = [(row.rps, getattr(row, of)) for row in rows if getattr(row, of) is not None]
    axes.plot([rps for rps, _ in points], [time_s for _, time_s in points], **look)


def draw_alignment(found: Alignment, path: Path) -> None:
    """Write the matrix of similarities with the chosen path through it; its format follows from the path's suffix.

    Raises:
        UsageError: the file cannot be written.
    """
    rows, columns = found.similarity.shape
    with _figure(1.8 + columns / 4, 1.6 + rows / 4) as figure:
        axes = figure.subplots()
        image = axes.imshow(
            found.similarity, origin="lower", cmap="viridis", vmin=min(0.0, found.similarity.min()), vmax=1
        )
        axes.plot(found.path, range(rows), color="white", marker="o", markersize=4, linewidth=1.5, label="chosen path")
        axes.set_xlabel(f"layer of {found.large}")
        axes.set_ylabel(f"layer of {found.small}")
        axes.set_title(f"similarity (CKA) on {found.tokens:,} tokens", fontsize=10)
        axes.legend(loc="lower right", fontsize=8, facecolor="0.3", labelcolor="white")
        figure.colorbar(image, ax=axes, shrink=0.8)
        _save(figure, path)


@contextmanager
def _figure(width: float, height: float) -> "Iterator[Figure]":
    """A figure of so many inches, as all pictures look."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_LOOK):
        yield Figure(figsize=(width, height), layout="constrained")


def _grid(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color=_GREY, alpha=0.35, linewidth=0.8)
    axes.grid(True, which="minor", color=_GREY, alpha=0.15, linewidth=0.6)


def _save(figure: "Figure", path: Path) -> None:
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
