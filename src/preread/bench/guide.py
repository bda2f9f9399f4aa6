"""What a large model's reading does for a small one: loss after a context, in every mode, on text that no fit has seen.

Both models read each window. The small one then predicts what follows on its own exact KV, and on KV that a mapping
made of the large model's; the control reads the same mapping of what the large model keeps of *another* window, which
shows how much of it is the large model's reading of this one. It knows modes; it must not know how mappings are made.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from preread.align.mapping_bytes import Kept
from preread.cloud.reading import Large, check_models
from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.fit.map import Read, Report, load, mapped, read
from preread.fit.quality import Single, compare, log_softmax
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS, hold, rope, take, windows
from preread.fit.text import Text
from preread.values import KVBlock

Double = npt.NDArray[np.float64]

_HEADINGS = ("mode", "loss", "− SLM's", "KL", "gap closed", "control", "gain over it", "B/token")
_SLM, _LLM = "slm", "llm"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure: `mappings` are files that `preread fit map` wrote; windows are cut from `text`."""

    text: Text
    mappings: tuple[Path, ...]
    windows: int = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One mode, means over all windows; nats a token.

    Attributes:
        mode: "slm" or "llm" alone, or "mapped-<split>".
        loss: of the text after the context; `dloss`: less the small model's own, `dloss_ci`: its 95 % interval.
        kl: of the next-token distribution from the small model's own.
        gap_closed: share of the difference between the two models.
        control_loss: with the large model's KV of another context; `gain_over_control`: less the mode's own, as such a
            share too.
        bytes_per_token: of the context's KV as float16, before any codec.
    """

    mode: str
    text: str
    loss: float
    dloss: float
    dloss_ci: tuple[float, float]
    kl: float
    gap_closed: float | None
    control_loss: float | None
    gain_over_control: float | None
    bytes_per_token: int
    qa_exact: float | None = None


def bench(
    small: tuple[Path, str],
    large: tuple[Path, str],
    options: Options,
    console: Console,
    progress: AbstractContextManager[Report],
) -> dict[str, object]:
    """Measure, print a table and last one line of JSON, which is also returned.

    Args:
        small, large: files and names of the two models.

    Raises:
        UsageError: the text is too short, or a mapping is of other models.
        CorruptData: a file is no mapping.
    """
    with progress as report, ExitStack() as stack:
        slm, llm = (stack.enter_context(closing(_open(*model))) for model in (small, large))
        kept = tuple(load(path) for path in options.mappings)
        check_models(slm, Large(llm, kept))
        chosen = windows(slm, options.text, options.windows)
        losses: dict[str, list[Double]] = {}
        divergences: dict[str, list[float]] = {}
        before: Read | None = None
        for number, (tokens, tail) in enumerate(chosen):
            found, before = _window(slm, llm, tokens, tail, kept, before)
            for mode, (loss, kl) in found.items():
                losses.setdefault(mode, []).append(loss)
                divergences.setdefault(mode, []).append(kl)
            report("measure", number + 1, len(chosen))
    rows = _rows(losses, divergences, options.text.label, slm, llm)
    return _show(rows, small[1], large[1], len(chosen), console)


def _open(path: Path, name: str) -> LlamaCpp:
    return LlamaCpp.open(path, name=name, window_tokens=1024, scored_tokens=TAIL_TOKENS)


def _window(
    slm: LlamaCpp, llm: LlamaCpp, tokens: Tokens, tail: Tokens, kept: Sequence[Kept], before: Read | None
) -> tuple[dict[str, tuple[Double, float]], Read]:
    """Losses (tail - 1,) and divergences of each mode, and what both models read."""
    mine, theirs = (take(engine, [(tokens, tail)], lambda _: None)[0] for engine in (slm, llm))
    now = read(slm, llm, mine, theirs.block)
    hold(llm, theirs.block)
    found = {_LLM: (_loss(log_softmax(llm.score(tail)), tail), 0.0)}
    hold(slm, mine.block)
    exact = log_softmax(slm.score(tail))
    found[_SLM] = (_loss(exact, tail), 0.0)
    for one in kept:
        name = f"mapped-{one.mapping.split}"
        found[name] = _after(slm, mapped(one.mapping, now, rope(slm)), tail, exact, mine.block)
        if before is not None:
            other = Read(now.small, now.rows, before.large, now.embeddings)
            found[f"{name} control"] = _after(slm, mapped(one.mapping, other, rope(slm)), tail, exact, mine.block)
    return found, now


def _after(slm: LlamaCpp, block: KVBlock, tail: Tokens, exact: Single, own: KVBlock) -> tuple[Double, float]:
    """What follows, read with a block in place of some of the small model's own layers."""
    hold(slm, own)
    slm.inject(block)
    score = compare(slm.score(tail), tail, exact)
    return _loss(exact, tail) + score.dloss, float(score.kl.mean())


def _loss(log_probabilities: Single, tail: Tokens) -> Double:
    return -log_probabilities[np.arange(len(tail) - 1), tail[1:]].astype(np.float64)


def _rows(
    losses: dict[str, list[Double]], divergences: dict[str, list[float]], text: str, slm: LlamaCpp, llm: LlamaCpp
) -> list[Row]:
    own, best = (float(np.mean(losses[mode])) for mode in (_SLM, _LLM))
    gap = own - best
    rows = []
    for mode, its in losses.items():
        if mode.endswith("control"):
            continue
        controls = losses.get(f"{mode} control")
        loss = float(np.mean(its))
        control = None if not controls else float(np.mean(controls))
        # The first window has no other before it: the control is compared with the same windows.
        matched = loss if not controls else float(np.mean(its[-len(controls) :]))
        rows.append(
            Row(
                mode,
                text,
                round(loss, 5),
                round(loss - own, 5),
                _interval([a.mean() - b.mean() for a, b in zip(its, losses[_SLM], strict=True)]),
                round(float(np.mean(divergences[mode])), 5),
                None if mode == _SLM or gap <= 0 else round((own - loss) / gap, 4),
                None if control is None else round(control, 5),
                None if control is None or gap <= 0 else round((control - matched) / gap, 4),
                2 * (llm if mode == _LLM else slm).spec.geometry.values_per_token,
            )
        )
    return rows


def _interval(means: list[float]) -> tuple[float, float]:
    """Percentile bootstrap over windows, seeded."""
    picks = np.random.default_rng(0).integers(len(means), size=(10_000, len(means)))
    low, high = np.percentile(np.array(means)[picks].mean(axis=1), (2.5, 97.5))
    return round(float(low), 5), round(float(high), 5)


def _show(rows: list[Row], small: str, large: str, count: int, console: Console) -> dict[str, object]:
    caption = f"{count} contexts of {WINDOW_TOKENS} tokens, the next {TAIL_TOKENS - 1} predicted; nats a token"
    table = Table(*_HEADINGS, title=f"{large} reads for {small}: {rows[0].text}", caption=caption)
    for row in rows:
        low, high = row.dloss_ci
        table.add_row(
            row.mode, f"{row.loss:.4f}", f"{row.dloss:+.4f} [{low:+.4f}, {high:+.4f}]", f"{row.kl:.4f}",
            _number(row.gap_closed), _number(row.control_loss), _number(row.gain_over_control),
            f"{row.bytes_per_token:,}",
        )  # fmt: skip
    console.print(table)
    result: dict[str, object] = {
        "bench": "guide", "slm": small, "llm": large, "rows": [asdict(row) for row in rows],
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result))
    return result


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
