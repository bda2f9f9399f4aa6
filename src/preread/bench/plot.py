"""Pictures: of `preread bench codec`, bits a value against KL and loss; of `preread bench ttft`, time to first token
over the link's rate; of `preread bench serve`, over that of requests; of `preread fit align`, which layers are alike.

Matplotlib has its one home here. Nothing is behind what is drawn, and text is grey, for light pages and dark ones.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preread.bench.load import Row as LoadRow
from preread.bench.rates import OURS, Row, curves
from preread.bench.ttft import Row as TtftRow
from preread.errors import UsageError
from preread.fit.align import Alignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_MARKERS = {OURS: "o", "unfitted": "x", "llama.cpp": "s", "KIVI-like": "^", "CacheGen-like": "D"}
_GREY = "#7d8590"
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
    """Write the picture; its format follows from the path's suffix.

    Raises:
        UsageError: the file cannot be written.
    """
    with _figure(11, 4.8) as figure:
        figure.suptitle(title)
        left, right = figure.subplots(1, 2)
        for name, curve in curves(rows).items():
            bits = [row.bits_per_value for row in curve]
            look = {"marker": _MARKERS[name], "color": _COLOURS[name], "label": name, "capsize": 2, "elinewidth": 1}
            look |= {"linewidth": 2.2 if name == OURS else 1.2, "zorder": 3 if name == OURS else 2}
            left.errorbar(bits, [row.kl for row in curve], _errors([(row.kl, row.kl_ci) for row in curve]), **look)
            right.errorbar(
                bits, [row.dloss for row in curve], _errors([(row.dloss, row.dloss_ci) for row in curve]), **look
            )
            if name == OURS:
                for row in curve:
                    left.annotate(
                        row.rung, (row.bits_per_value, row.kl), (5, 5), textcoords="offset points", fontsize=8
                    )
        left.set_ylabel("KL divergence from the exact KV, nats")
        left.set_yscale("log")
        right.set_ylabel("change of loss, nats/token")
        right.set_yscale("symlog", linthresh=0.01)
        right.axhline(0, color="0.6", linewidth=0.8)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda bits, _: f"{bits:g}")
            axes.set_xlabel("bits a value, all bytes counted")
            axes.grid(True, which="both", alpha=0.25)
        left.legend()
        _save(figure, path)


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
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize=8)
        _save(figure, path)


def draw_load(rows: Sequence[LoadRow], title: str, path: Path) -> None:
    """Write the picture of time to first token over the rate that was achieved; its format follows from the suffix.

    Raises:
        UsageError: the file cannot be written.
    """
    with _figure(7, 4.8) as figure:
        axes = figure.subplots()
        for number, system in enumerate(dict.fromkeys(row.system for row in rows)):
            own = sorted((row for row in rows if row.system == system), key=lambda row: row.rate or 0.0)
            for style, what in (("-", "median"), ("--", "99th percentile")):
                times_s = [(row.rps, row.ttft_p50_s if style == "-" else row.ttft_p99_s) for row in own]
                points = [(rps, ttft_s) for rps, ttft_s in times_s if ttft_s is not None]
                axes.plot(
                    [rps for rps, _ in points], [ttft_s for _, ttft_s in points], style, marker="o", color=f"C{number}",
                    linewidth=2.2 if number == 0 else 1.2, label=f"{system}, {what}",
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("answers a second")
        axes.set_ylabel("time to first token, s")
        axes.set_yscale("log")
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize=8)
        _save(figure, path)


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


def _save(figure: "Figure", path: Path) -> None:
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _errors(means: Sequence[tuple[float, tuple[float, float]]]) -> list[list[float]]:
    """How far the intervals reach below and above their means."""
    below = [max(mean - low, 0.0) for mean, (low, _) in means]
    return [below, [max(high - mean, 0.0) for mean, (_, high) in means]]
