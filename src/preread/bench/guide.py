"""What a large model's reading does for a small one: loss after a context, in every mode, on text that no fit has seen.

Both models read each window. The small one then predicts what follows on its own exact KV, on KV that a mapping made of
what the large one reads, and on its own as a guide changes it; the control is the same with what the large model makes
of *another* window, which shows how much of it is the large model's reading of this one; a guide's control is a network
of its own, that learnt so. With questions, every mode also answers them about documents, word for word, and it is
measured how likely the right answers are. It knows modes; it must not know how mappings and guides are made.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from preread.align.guide_bytes import KeptGuide
from preread.align.mapping import Read
from preread.align.mapping_bytes import Kept
from preread.bench.through import sent
from preread.cloud.reading import Help, check_models
from preread.codec import ladder
from preread.codec.profile import Profile, prepare
from preread.codec.profile_bytes import loads
from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit import files
from preread.fit import guided as guides
from preread.fit.map import Report, load, mapped, read
from preread.fit.quality import Double, Single, compare, interval, log_softmax
from preread.fit.questions import SOURCE, Document, documents, right
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS, rope, windows
from preread.fit.text import Text
from preread.values import KVBlock

_HEADINGS = (
    "mode", "loss", "− SLM's", "KL", "gap closed", "control", "gain over it", "right answers", "control", "their loss",
    "gain over control", "B/token",
)  # fmt: skip
_CONTROL = " control"
_SLM, _LLM, _GUIDED = "slm", "llm", "guided"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure: files of `preread fit map` and `fit guide`; windows are cut from `text`.

    `questions`: how many to ask at least, about documents of `fit.questions`; 0: none.
    `control`: of the guide; without one, the guide itself reads another document.
    `profile`: for `rung`, which guided KV also goes through.
    """

    text: Text
    mappings: tuple[Path, ...]
    windows: int = 20
    questions: int = 0
    guide: Path | None = None
    control: Path | None = None
    profile: Path | None = None
    rung: str = "b1.2"


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
        kept = _load(slm, llm, options)
        chosen = windows(slm, options.text, options.windows)
        found = _Found({}, {}, {}, {}, {})
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
    """By mode: losses (tail - 1,) and divergences of each window; of each document losses of the right answers' tokens,
    and which answers are right. Of rungs, bytes a token that were sent.
    """

    losses: dict[str, list[Double]]
    divergences: dict[str, list[float]]
    answers: dict[str, list[Double]]
    right: dict[str, list[list[bool]]]
    sent: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What helps the small model."""

    mappings: tuple[Kept, ...]
    guide: KeptGuide | None
    control: KeptGuide | None
    profile: Profile | None
    rung: str

    @property
    def reads(self) -> list[int]:
        """Large layers that are read."""
        found = {layer for one in self.mappings for layer in one.mapping.reads}
        return sorted(found | {layer for one in (self.guide, self.control) if one for layer in one.guide.reads}) or [1]


def _load(slm: LlamaCpp, llm: LlamaCpp, options: Options) -> _Kept:
    mappings = tuple(load(path) for path in options.mappings)
    guide, control = (None if path is None else guides.load(path) for path in (options.guide, options.control))
    check_models(slm, Help(llm, mappings, guides=tuple(one for one in (guide, control) if one)))
    if control is not None and not control.control:
        raise UsageError(f"{options.control} is no control: `preread fit guide` writes one beside each guide")
    profile = None if options.profile is None else loads(files.read(options.profile))
    return _Kept(mappings, guide, control, profile, options.rung)


def _open(path: Path, name: str, window_tokens: int) -> LlamaCpp:
    return LlamaCpp.open(path, name=name, window_tokens=(window_tokens + 255) // 256 * 256, scored_tokens=TAIL_TOKENS)


def _window(
    slm: LlamaCpp,
    llm: LlamaCpp,
    tokens: Tokens,
    tail: Tokens,
    kept: _Kept,
    before: Read | None,
    found: _Found,
) -> Read:
    """Measure all modes on a window; what both models make of it."""
    now = _read(slm, llm, tokens, kept)
    exact = log_softmax(slm.session.score(tail))
    own = _loss(exact, tail)
    for mode, loss, kl in ((_LLM, _large_loss(slm, llm, tail), 0.0), (_SLM, own, 0.0)):
        found.losses.setdefault(mode, []).append(loss)
        found.divergences.setdefault(mode, []).append(kl)
    for mode, block in _modes(slm, now, tokens, kept, before, found):
        slm.session.inject(now.block)
        slm.session.inject(block)
        score = compare(slm.session.score(tail), tail, exact)
        found.losses.setdefault(mode, []).append(own + score.dloss)
        found.divergences.setdefault(mode, []).append(float(score.kl.mean()))
    return now


def _asked(slm: LlamaCpp, llm: LlamaCpp, document: Document, kept: _Kept, before: Read | None, found: _Found) -> Read:
    """Ask all modes about a document; what both models make of it."""
    start, prompts = _prompts(slm, document)
    begun, theirs = _prompts(llm, document)
    now = _read(slm, llm, start, kept)
    if slm.spec.vocabulary != llm.spec.vocabulary or not np.array_equal(start, begun):
        llm.session.prefill(begun)  # or it holds that already, and reading takes longest

    def ask(mode: str, engine: LlamaCpp, its: list[Tokens]) -> None:
        found.right.setdefault(mode, []).append(right(engine, document.questions, its))
        found.answers.setdefault(mode, []).append(_answers(slm, engine, document, its))

    ask(_LLM, llm, theirs)
    ask(_SLM, slm, prompts)
    for mode, block in _modes(slm, now, start, kept, before, found):
        slm.session.inject(now.block)
        slm.session.inject(block)
        ask(mode, slm, prompts)
    return now


def _answers(slm: LlamaCpp, engine: LlamaCpp, document: Document, prompts: list[Tokens]) -> Double:
    """What the right answers cost an engine that holds the document: nats of each, over the small model's tokens."""
    spent = []
    for question, prompt in zip(document.questions, prompts, strict=True):
        answer, counted = (_answer(one, question.answer) for one in (engine, slm))
        rows = log_softmax(engine.session.score(np.concatenate([prompt, answer[:-1]]))[len(prompt) - 1 :])
        nats = -rows[np.arange(len(answer)), answer].astype(np.float64)
        spent.append(np.full(len(counted), nats.sum() / len(counted)))
    return np.concatenate(spent)


def _answer(engine: LlamaCpp, text: str) -> Tokens:
    ends = "\n" if engine.chat is None else engine.chat.eos
    return np.concatenate([engine.tokenize(text, special=False), engine.tokenize(ends)])


def _read(slm: LlamaCpp, llm: LlamaCpp, tokens: Tokens, kept: _Kept) -> Read:
    return read(slm, llm, tokens, sorted({one.mapping.split for one in kept.mappings}), kept.reads)


def _modes(
    slm: LlamaCpp, now: Read, tokens: Tokens, kept: _Kept, before: Read | None, found: _Found
) -> list[tuple[str, KVBlock]]:
    """The small model's KV in every mode, and in every mode's control, for which there has to be another text."""
    turn = rope(slm)
    made = [(f"mapped-{one.mapping.split}", mapped(one.mapping, now, turn)) for one in kept.mappings]
    if kept.guide is not None:
        made.append((_GUIDED, guides.guided(kept.guide.guide, now, turn)))
    if kept.guide is not None and kept.profile is not None:
        codec = ladder.codec(kept.rung, prepare(kept.profile, slm.embeddings(tokens)))
        slm.session.inject(now.block)
        slm.session.inject(made[-1][1])
        whole = slm.session.export(now.block.tokens, now.block.layers)
        size_bytes = sent(slm, codec, tokens, whole, kept.profile.group_layers)
        made.append((f"{_GUIDED}-{kept.rung}", slm.session.export(now.block.tokens, now.block.layers)))
        found.sent.setdefault(made[-1][0], []).append(size_bytes / len(tokens))
    if before is None:
        return made
    control = guides.other(now, before)
    made += [(f"mapped-{one.mapping.split}{_CONTROL}", mapped(one.mapping, control, turn)) for one in kept.mappings]
    if kept.guide is not None:
        made.append((_GUIDED + _CONTROL, guides.guided((kept.control or kept.guide).guide, control, turn)))
    return made


def _prompts(engine: LlamaCpp, document: Document) -> tuple[Tokens, list[Tokens]]:
    """A chat about a document: the tokens that all begin with, and those of each question."""
    try:
        if engine.chat is None:
            raise UsageError("there is no template")
        begun = engine.tokenize_prompt(engine.chat.system_prefix(document.titled))
        asked = [engine.chat.after_system([{"role": "user", "content": one.text}]) for one in document.questions]
        return begun, [engine.tokenize_prompt(prompt, start=False) for prompt in asked]
    except UsageError:  # none, or one without a system prompt
        begun = engine.tokenize(document.text, special=False, start=True)
        return begun, [engine.tokenize(f"\n\nQuestion: {one.text}\nAnswer:") for one in document.questions]


def _large_loss(slm: LlamaCpp, llm: LlamaCpp, tail: Tokens) -> Double:
    """What the large model pays for the tail after what it holds: nats for each token of the small one, (tail - 1,)."""
    if slm.spec.vocabulary == llm.spec.vocabulary:
        return _loss(log_softmax(llm.session.score(tail)), tail)
    pieces = [slm.piece(int(token)) for token in tail]
    theirs = llm.tokenize(b"".join(pieces).decode(errors="ignore"), special=False)[:TAIL_TOKENS]
    spent = _loss(log_softmax(llm.session.score(theirs)), theirs).sum()
    over = sum(len(llm.piece(int(token))) for token in theirs[1:])
    nats = spent / max(over, 1) * np.array([len(piece) for piece in pieces[1:]], np.float64)
    return np.asarray(nats)


def _loss(log_probabilities: Single, tail: Tokens) -> Double:
    return -log_probabilities[np.arange(len(tail) - 1), tail[1:]].astype(np.float64)


def _rows(found: _Found, text: str, slm: LlamaCpp, llm: LlamaCpp) -> list[Row]:
    losses = found.losses
    rows = []
    for mode, its in losses.items():
        if mode.endswith(_CONTROL):
            continue
        its_right = found.right.get(mode)
        told, asked = _told(losses, mode), _told(found.answers, mode)
        assert told is not None
        rows.append(
            Row(
                mode,
                text,
                told.loss,
                round(told.loss - float(np.mean(np.concatenate(losses[_SLM]))), 5),
                _interval([a.mean() - b.mean() for a, b in zip(its, losses[_SLM], strict=True)]),
                round(float(np.mean(found.divergences[mode])), 5),
                told.gap_closed,
                told.control,
                told.gain,
                round(float(np.mean(found.sent[mode])))
                if mode in found.sent
                else 2 * (llm if mode == _LLM else slm).spec.geometry.values_per_token,
                _share(its_right),
                None if its_right is None else _interval([float(np.mean(one)) for one in its_right]),
                _share(found.right.get(_control(mode))),
                told.gain_ci,
                *((None,) * 5 if asked is None else asked),
            )
        )
    return rows


def _control(mode: str) -> str:
    return (_GUIDED if mode.startswith(_GUIDED) else mode) + _CONTROL


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
    loss, own, best = (float(np.concatenate(losses[one]).mean()) for one in (mode, _SLM, _LLM))
    gap = own - best
    closed = None if mode == _SLM or gap <= 0 else round((own - loss) / gap, 4)
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
