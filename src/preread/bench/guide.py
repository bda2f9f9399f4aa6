"""What a large model's reading does for a small one: loss after a context, in every mode, on text that no fit has seen.

Both models read each window. The small one then predicts what follows on its own exact KV, and on KV that a mapping
made of what the large one reads; the control reads the same mapping of what the large model makes of *another* window,
which shows how much of it is the large model's reading of this one. With questions, every mode also answers them about
documents, word for word. It knows modes; it must not know how mappings are made.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from preread.align.mapping import Read
from preread.align.mapping_bytes import Kept
from preread.bench.questions import SOURCE, Document, documents, right
from preread.cloud.reading import Help, check_models
from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.map import Report, load, mapped, read
from preread.fit.quality import Single, compare, log_softmax
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS, rope, windows
from preread.fit.text import Text
from preread.values import KVBlock

Double = npt.NDArray[np.float64]

_HEADINGS = (
    "mode", "loss", "− SLM's", "KL", "gap closed", "control", "gain over it", "right answers", "control", "B/token",
)  # fmt: skip
_CONTROL = " control"
_SLM, _LLM = "slm", "llm"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure: `mappings` are files that `preread fit map` wrote; windows are cut from `text`.

    `questions`: how many to ask at least, about documents of `bench.questions`; 0: none.
    """

    text: Text
    mappings: tuple[Path, ...]
    windows: int = 20
    questions: int = 0


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
        qa_exact: share of the questions whose answer is the right one, word for word; `qa_ci`: its 95 % interval,
            over documents; `qa_control`: with the large model's reading of another document.
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
    qa_ci: tuple[float, float] | None = None
    qa_control: float | None = None


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
    asked = documents(options.questions) if options.questions else []
    longest = WINDOW_TOKENS + TAIL_TOKENS if not asked else _MOST_TOKENS
    with progress as report, ExitStack() as stack:
        slm, llm = (stack.enter_context(closing(_open(*model, longest))) for model in (small, large))
        kept = tuple(load(path) for path in options.mappings)
        check_models(slm, Help(llm, kept))
        chosen = windows(slm, options.text, options.windows)
        found = _Found({}, {}, {})
        before: Read | None = None
        for number, (tokens, tail) in enumerate(chosen):
            before = _window(slm, llm, tokens, tail, kept, before, found)
            report("measure", number + 1, len(chosen))
        before = None
        for number, document in enumerate(asked):
            before = _asked(slm, llm, document, kept, before, found)
            report("ask", number + 1, len(asked))
    rows = _rows(found, options.text.label, slm, llm)
    return _show(rows, small[1], large[1], len(chosen), sum(len(one.questions) for one in asked), console)


_MOST_TOKENS = 2048
"""A document of the questions with its frame, a question and an answer; code has three characters a token."""


@dataclass(frozen=True, slots=True)
class _Found:
    """By mode: losses (tail - 1,) and divergences of each window, and which answers about each document are right."""

    losses: dict[str, list[Double]]
    divergences: dict[str, list[float]]
    right: dict[str, list[list[bool]]]


def _open(path: Path, name: str, window_tokens: int) -> LlamaCpp:
    return LlamaCpp.open(path, name=name, window_tokens=(window_tokens + 255) // 256 * 256, scored_tokens=TAIL_TOKENS)


def _window(
    slm: LlamaCpp,
    llm: LlamaCpp,
    tokens: Tokens,
    tail: Tokens,
    kept: Sequence[Kept],
    before: Read | None,
    found: _Found,
) -> Read:
    """Measure all modes on a window; what both models make of it."""
    now = _read(slm, llm, tokens, kept)
    exact = log_softmax(slm.score(tail))
    own = _loss(exact, tail)
    for mode, loss, kl in ((_LLM, _large_loss(slm, llm, tail), 0.0), (_SLM, own, 0.0)):
        found.losses.setdefault(mode, []).append(loss)
        found.divergences.setdefault(mode, []).append(kl)
    for mode, block in _modes(slm, now, kept, before):
        slm.inject(now.block)
        slm.inject(block)
        score = compare(slm.score(tail), tail, exact)
        found.losses.setdefault(mode, []).append(own + score.dloss)
        found.divergences.setdefault(mode, []).append(float(score.kl.mean()))
    return now


def _asked(
    slm: LlamaCpp, llm: LlamaCpp, document: Document, kept: Sequence[Kept], before: Read | None, found: _Found
) -> Read:
    """Ask all modes about a document; what both models make of it."""
    start, prompts = _prompts(slm, document)
    begun, theirs = _prompts(llm, document)
    now = _read(slm, llm, start, kept)
    if slm.spec.vocabulary != llm.spec.vocabulary or not np.array_equal(start, begun):
        llm.prefill(begun)  # or it holds that already, and reading takes longest
    found.right.setdefault(_LLM, []).append(right(llm, document.questions, theirs))
    found.right.setdefault(_SLM, []).append(right(slm, document.questions, prompts))
    for mode, block in _modes(slm, now, kept, before):
        slm.inject(now.block)
        slm.inject(block)
        found.right.setdefault(mode, []).append(right(slm, document.questions, prompts))
    return now


def _read(slm: LlamaCpp, llm: LlamaCpp, tokens: Tokens, kept: Sequence[Kept]) -> Read:
    layers = sorted({layer for one in kept for layer in one.mapping.reads}) or [1]
    return read(slm, llm, tokens, sorted({one.mapping.split for one in kept}), layers)


def _modes(slm: LlamaCpp, now: Read, kept: Sequence[Kept], before: Read | None) -> list[tuple[str, KVBlock]]:
    """The small model's KV in every mode, and in every mode's control, for which there has to be another text."""
    made = [(f"mapped-{one.mapping.split}", mapped(one.mapping, now, rope(slm))) for one in kept]
    if before is None:
        return made
    count = len(now.embeddings)
    others = {layer: np.resize(rows, (count, rows.shape[1])) for layer, rows in before.large.items()}
    control = replace(now, large=others)
    return made + [(f"mapped-{one.mapping.split}{_CONTROL}", mapped(one.mapping, control, rope(slm))) for one in kept]


def _prompts(engine: LlamaCpp, document: Document) -> tuple[Tokens, list[Tokens]]:
    """A chat about a document: the tokens that all begin with, and those of each question."""
    try:
        if engine.chat is None:
            raise UsageError("there is no template")
        begun = engine.tokenize_prompt(engine.chat.system_prefix(f"A part of {document.module}:\n\n{document.text}"))
        asked = [engine.chat.after_system([{"role": "user", "content": one.text}]) for one in document.questions]
    except UsageError:  # none, or one without a system prompt
        begun = engine.tokenize(document.text, special=False, start=True)
        asked = [f"\n\nQuestion: {one.text}\nAnswer:" for one in document.questions]
    return begun, [engine.tokenize(text) for text in asked]


def _large_loss(slm: LlamaCpp, llm: LlamaCpp, tail: Tokens) -> Double:
    """What the large model pays for the tail after what it holds: nats for each token of the small one, (tail - 1,)."""
    if slm.spec.vocabulary == llm.spec.vocabulary:
        return _loss(log_softmax(llm.score(tail)), tail)
    pieces = [slm.piece(int(token)) for token in tail]
    theirs = llm.tokenize(b"".join(pieces).decode(errors="ignore"), special=False)[:TAIL_TOKENS]
    spent = _loss(log_softmax(llm.score(theirs)), theirs).sum()
    over = sum(len(llm.piece(int(token))) for token in theirs[1:])
    nats = spent / max(over, 1) * np.array([len(piece) for piece in pieces[1:]], np.float64)
    return np.asarray(nats)


def _loss(log_probabilities: Single, tail: Tokens) -> Double:
    return -log_probabilities[np.arange(len(tail) - 1), tail[1:]].astype(np.float64)


def _rows(found: _Found, text: str, slm: LlamaCpp, llm: LlamaCpp) -> list[Row]:
    losses = found.losses
    own, best = (float(np.mean(losses[mode])) for mode in (_SLM, _LLM))
    gap = own - best
    rows = []
    for mode, its in losses.items():
        if mode.endswith(_CONTROL):
            continue
        controls, its_right = losses.get(mode + _CONTROL), found.right.get(mode)
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
                round(float(np.mean(found.divergences[mode])), 5),
                None if mode == _SLM or gap <= 0 else round((own - loss) / gap, 4),
                None if control is None else round(control, 5),
                None if control is None or gap <= 0 else round((control - matched) / gap, 4),
                2 * (llm if mode == _LLM else slm).spec.geometry.values_per_token,
                _share(its_right),
                None if its_right is None else _interval([float(np.mean(one)) for one in its_right]),
                _share(found.right.get(mode + _CONTROL)),
            )
        )
    return rows


def _share(marks: list[list[bool]] | None) -> float | None:
    return None if marks is None else share([one for each in marks for one in each])


def _interval(means: list[float]) -> tuple[float, float]:
    """Percentile bootstrap over windows, seeded."""
    picks = np.random.default_rng(0).integers(len(means), size=(10_000, len(means)))
    low, high = np.percentile(np.array(means)[picks].mean(axis=1), (2.5, 97.5))
    return round(float(low), 5), round(float(high), 5)


def _show(rows: list[Row], small: str, large: str, count: int, asked: int, console: Console) -> dict[str, object]:
    caption = f"{count} contexts of {WINDOW_TOKENS} tokens, the next {TAIL_TOKENS - 1} predicted; nats a token"
    if asked:
        caption += f"; {asked} questions about {SOURCE}"
    table = Table(*_HEADINGS, title=f"{large} reads for {small}: {rows[0].text}", caption=caption)
    for row in rows:
        low, high = row.dloss_ci
        table.add_row(
            row.mode, f"{row.loss:.4f}", f"{row.dloss:+.4f} [{low:+.4f}, {high:+.4f}]", f"{row.kl:.4f}",
            number(row.gap_closed), number(row.control_loss), number(row.gain_over_control),
            number(row.qa_exact), number(row.qa_control), f"{row.bytes_per_token:,}",
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
