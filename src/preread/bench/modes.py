"""What modes of reading are worth: rows of losses against both models and against a control, and their table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp
from preread.fit.quality import Double, interval
from preread.fit.questions import SOURCE
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS

CONTROL = " control"
"""What a control's mode ends with."""
SLM, LLM, GUIDED = "slm", "llm", "guided"

_HEADINGS = (
    "mode", "loss", "− SLM's", "KL", "gap closed", "control", "gain over it", "right answers", "control", "their loss",
    "gain over control", "B/token",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One mode, means over all windows; nats a token.

    Attributes:
        mode: "slm" or "llm" alone, "mapped-<split>", "guided", or "guided-<rung>".
        loss: of the text after the context; `dloss`: less the small model's own, `dloss_ci`: its 95 % interval.
        kl: of the next-token distribution from the small model's own.
        gap_closed: share of the difference between the two models.
        control_loss: with the large model's KV of another context; `gain_over_control`: less the mode's own, as such a
            share too, `gain_ci`: its 95 % interval.
        qa_exact: share of the questions whose answer is the right one, word for word; `qa_ci`: its 95 % interval,
            over documents; `qa_control`: with the large model's reading of another document.
        qa_loss: of the right answers, nats a token; `qa_gap_closed`, `qa_control_loss`, `qa_gain_over_control` and
            `qa_gain_ci` as above.
        bytes_per_token: of the context's KV as float16, before any codec; of a rung, what is sent.
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
    qa_ci: tuple[float, float] | None = None
    qa_control: float | None = None
    gain_ci: tuple[float, float] | None = None
    qa_loss: float | None = None
    qa_gap_closed: float | None = None
    qa_control_loss: float | None = None
    qa_gain_over_control: float | None = None
    qa_gain_ci: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """By mode: losses (tail - 1,) and divergences of each window; of each document losses of the right answers' tokens,
    and which answers are right. Of rungs, bytes a token that were sent.
    """

    losses: dict[str, list[Double]]
    divergences: dict[str, list[float]]
    answers: dict[str, list[Double]]
    right: dict[str, list[list[bool]]]
    sent: dict[str, list[float]]


def rows_of(found: Found, text: str, slm: LlamaCpp, llm: LlamaCpp) -> list[Row]:
    """A row for each mode that is no control; `text`: name of what was read."""
    losses = found.losses
    rows = []
    for mode, its in losses.items():
        if mode.endswith(CONTROL):
            continue
        its_right = found.right.get(mode)
        told, asked = _told(losses, mode), _told(found.answers, mode)
        assert told is not None
        rows.append(
            Row(
                mode,
                text,
                told.loss,
                round(told.loss - float(np.mean(np.concatenate(losses[SLM]))), 5),
                _interval([a.mean() - b.mean() for a, b in zip(its, losses[SLM], strict=True)]),
                round(float(np.mean(found.divergences[mode])), 5),
                told.gap_closed,
                told.control,
                told.gain,
                round(float(np.mean(found.sent[mode])))
                if mode in found.sent
                else 2 * (llm if mode == LLM else slm).spec.geometry.values_per_token,
                _share(its_right),
                None if its_right is None else _interval([float(np.mean(one)) for one in its_right]),
                _share(found.right.get(_control(mode))),
                told.gain_ci,
                *((None,) * 5 if asked is None else asked),
            )
        )
    return rows


def _control(mode: str) -> str:
    return (GUIDED if mode.startswith(GUIDED) else mode) + CONTROL


class _Told(NamedTuple):
    """Nats a token in one mode, against both models and its control, as in `Row`."""

    loss: float
    gap_closed: float | None
    control: float | None
    gain: float | None
    gain_ci: tuple[float, float] | None


def _told(losses: dict[str, list[Double]], mode: str) -> _Told | None:
    """Of windows or of documents; None: there are none."""
    if not losses:
        return None
    loss, own, best = (float(np.concatenate(losses[one]).mean()) for one in (mode, SLM, LLM))
    gap = own - best
    closed = None if mode == SLM or gap <= 0 else round((own - loss) / gap, 4)
    controls = losses.get(_control(mode))
    if not controls:
        return _Told(round(loss, 5), closed, None, None, None)
    control = round(float(np.concatenate(controls).mean()), 5)
    if gap <= 0:
        return _Told(round(loss, 5), closed, control, None, None)
    # The first text has no other before it: the control is compared with the same texts.
    gains = [(other - mine) / gap for mine, other in zip(losses[mode][-len(controls) :], controls, strict=True)]
    low, high = interval(gains)
    return _Told(
        round(loss, 5), closed, control, round(float(np.concatenate(gains).mean()), 4), (round(low, 4), round(high, 4))
    )


def _share(marks: list[list[bool]] | None) -> float | None:
    return None if marks is None else share([one for each in marks for one in each])


def _interval(means: list[float]) -> tuple[float, float]:
    """Percentile bootstrap over windows, seeded."""
    picks = np.random.default_rng(0).integers(len(means), size=(10_000, len(means)))
    low, high = np.percentile(np.array(means)[picks].mean(axis=1), (2.5, 97.5))
    return round(float(low), 5), round(float(high), 5)


def show(rows: list[Row], small: str, large: str, count: int, asked: int, console: Console) -> dict[str, object]:
    """Print a table and last one line of JSON, which is also returned, of `count` contexts and `asked` questions."""
    caption = f"{count} contexts of {WINDOW_TOKENS} tokens, the next {TAIL_TOKENS - 1} predicted; nats a token"
    if asked:
        caption += f"; {asked} questions about {SOURCE}"
    table = Table(*_HEADINGS, title=f"{large} reads for {small}: {rows[0].text}", caption=caption)
    for row in rows:
        low, high = row.dloss_ci
        table.add_row(
            row.mode, f"{row.loss:.4f}", f"{row.dloss:+.4f} [{low:+.4f}, {high:+.4f}]", f"{row.kl:.4f}",
            number(row.gap_closed), number(row.control_loss), number(row.gain_over_control),
            number(row.qa_exact), number(row.qa_control), number(row.qa_loss), number(row.qa_gain_over_control),
            f"{row.bytes_per_token:,}",
        )  # fmt: skip
    console.print(table)
    result: dict[str, object] = {
        "bench": "guide", "slm": small, "llm": large, "questions": asked, "rows": [asdict(row) for row in rows],
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result))
    return result


def share(marks: Sequence[bool]) -> float | None:
    """Of the answers, which are right or not; None where nothing was asked."""
    return round(float(np.mean(marks)), 4) if marks else None


def number(value: float | None) -> str:
    """As it is shown in tables."""
    return "–" if value is None else f"{value:.3f}"
