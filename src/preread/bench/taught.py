"""What teaching a context did: answers to questions held out, in every mode, in the engine that edges run.

Exact KV, taught KV, taught KV through a rung, and the large model's own loss; the control is the same context taught
with questions about another document, which learns how answers are worded but nothing of this one. Documents that are
Python source are also asked about what their syntax tree says, word for word: questions that no model wrote.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from preread.align.study_bytes import Study
from preread.align.taught_bytes import Taught
from preread.bench.modes import number, share
from preread.bench.through import sent
from preread.codec import ladder
from preread.codec.profile import prepare
from preread.codec.profile_bytes import loads
from preread.edge.machine import machine
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit import files, study
from preread.fit.quality import Double, interval
from preread.fit.questions import Question, about, right
from preread.fit.sample import TAIL_TOKENS, hold
from preread.fit.teach import answers, load
from preread.values import Span
from preread.wire.digest import context_id

_HEADINGS = (
    "mode", "loss", "− SLM's", "gap closed", "control", "gain over it", "95 % interval", "right answers", "control",
    "B/token",
)  # fmt: skip
_SLM, _LLM = "slm", "llm"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure: the document as it was published, the study of it, and KV that was taught.

    `control`: taught with another document's study; `profile`: for `rung`, which the taught KV also goes through.
    """

    document: str
    study: Path
    taught: Path
    control: Path | None = None
    profile: Path | None = None
    rung: str = "b1.2"


@dataclass(frozen=True, slots=True)
class Row:
    """One mode; nats a token of the answers held out.

    Attributes:
        mode: "slm" or "llm" alone, "taught", or "taught-<rung>".
        loss: of the answers; `dloss`: less the small model's own, `dloss_ci`: its 95 % interval over exchanges.
        gap_closed: share of the difference between the two models.
        control_loss: of the control; `gain_over_control`: less the mode's own, as such a share too, `gain_ci`: its 95 %
            interval.
        bytes_per_token: of the context's KV: on the wire for a rung, else as float16.
        qa_exact: share of the questions about Python source whose answer is right; `qa_control`: the control's.
    """

    mode: str
    text: str
    loss: float
    dloss: float
    dloss_ci: tuple[float, float]
    gap_closed: float | None
    control_loss: float | None
    gain_over_control: float | None
    gain_ci: tuple[float, float] | None
    bytes_per_token: float
    qa_exact: float | None = None
    qa_control: float | None = None


@dataclass(frozen=True, slots=True)
class _Said:
    """What one mode made of the answers held out, nats a token, and which questions it answered right."""

    losses: list[Double]
    right: list[bool]
    bytes_per_token: float


def bench(model: tuple[Path, str], options: Options, console: Console) -> dict[str, object]:
    """Measure, print a table and last one line of JSON, which is also returned.

    Raises:
        UsageError: a file is of another model or document than the others, or cannot be read.
        CorruptData: a file is not what it should be.
    """
    path, name = model
    measured, taught = study.load(options.study), load(options.taught)
    control = None if options.control is None else load(options.control)
    held_out, asked = measured.held_out, about(options.document)
    window = (len(taught.block.tokens) + TAIL_TOKENS + 255) // 256 * 256
    with closing(LlamaCpp.open(path, name=name, window_tokens=window, scored_tokens=TAIL_TOKENS)) as engine:
        tokens = _tokens(engine, options.document)
        _check(engine, tokens, measured, taught, control)
        prompts = [_prompt(engine, question) for question in asked]

        def said(size_bytes: float) -> _Said:
            losses = [nats.astype(np.float64) for nats in answers(engine, held_out)]
            return _Said(losses, right(engine, asked, prompts), size_bytes)

        engine.session.prefill(tokens)
        plain = 2.0 * engine.spec.geometry.values_per_token
        exact = engine.session.export(Span(0, len(tokens)), Span(0, engine.spec.geometry.layers))
        found = {_LLM: _Said([one.losses.astype(np.float64) for one in held_out], [], plain)}
        for mode, block in ((_SLM, exact), ("taught", taught.block)):
            hold(engine, block)
            found[mode] = said(plain)
        if options.profile is not None:
            profile = loads(files.read(options.profile))
            codec = ladder.codec(options.rung, prepare(profile, engine.embeddings(tokens)))
            for mode, block in ((_SLM, exact), ("taught", taught.block)):
                size_bytes = sent(engine, codec, tokens, block, profile.groups)
                found[f"{mode}-{options.rung}"] = said(size_bytes / len(tokens))
        controls = None
        if control is not None:
            hold(engine, control.block)
            controls = said(plain)
        rows = _rows(found, Path(options.study).stem, controls)
    return _show(rows, name, len(held_out), len(asked), console)


def _prompt(engine: LlamaCpp, question: Question) -> Tokens:
    assert engine.chat is not None  # or the document had no tokens
    return engine.tokenize_prompt(engine.chat.after_system([{"role": "user", "content": question.text}]), start=False)


def _tokens(engine: LlamaCpp, document: str) -> Tokens:
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: nothing can be taught to it")
    return engine.tokenize_prompt(engine.chat.system_prefix(document))


def _check(engine: LlamaCpp, tokens: Tokens, study: Study, taught: Taught, control: Taught | None) -> None:
    context = context_id(engine.spec.fingerprint, tokens)
    if not study.context == taught.context == taught.studied == context:
        raise UsageError("the document, its study and the taught context do not belong together")
    if control is not None and (control.context != context or control.studied == context):
        raise UsageError(
            "a control is the same context, taught with the study of another document (fit teach --lessons)"
        )


def _rows(found: dict[str, _Said], text: str, controls: _Said | None) -> list[Row]:
    own, best = (np.concatenate(found[mode].losses).mean() for mode in (_SLM, _LLM))
    gap = float(own - best)
    rows = []
    for mode, its in found.items():
        loss = float(np.concatenate(its.losses).mean())
        rises = [new - old for new, old in zip(its.losses, found[_SLM].losses, strict=True)]
        control, gain, gain_ci, qa_control = None, None, None, None
        if controls is not None and mode.startswith("taught"):
            gains = [(other - new) / gap for new, other in zip(its.losses, controls.losses, strict=True)]
            control, gain = float(np.concatenate(controls.losses).mean()), float(np.concatenate(gains).mean())
            gain_ci, qa_control = interval(gains), share(controls.right)
        closed = (float(own) - loss) / gap if mode != _SLM and gap > 0 else None
        rows.append(
            Row(
                mode, text, loss, loss - float(own), interval(rises), closed, control, gain, gain_ci,
                its.bytes_per_token, share(its.right), qa_control,
            )
        )  # fmt: skip
    return rows


def _show(rows: Sequence[Row], name: str, count: int, asked: int, console: Console) -> dict[str, object]:
    caption = f"{count} answers held out; nats a token"
    if asked:
        caption += f"; {asked} questions about what the syntax tree says"
    table = Table(*_HEADINGS, title=f"{name}, {rows[0].text}", caption=caption)
    for row in rows:
        low, high = row.dloss_ci
        span = "–" if row.gain_ci is None else f"[{row.gain_ci[0]:.3f}, {row.gain_ci[1]:.3f}]"
        table.add_row(
            row.mode, f"{row.loss:.4f}", f"{row.dloss:+.4f} [{low:+.4f}, {high:+.4f}]", number(row.gap_closed),
            number(row.control_loss), number(row.gain_over_control), span, number(row.qa_exact), number(row.qa_control),
            f"{row.bytes_per_token:,.0f}",
        )  # fmt: skip
    console.print(table)
    result: dict[str, object] = {
        "bench": "guide", "slm": name, "exchanges": count, "questions": asked, "rows": [asdict(row) for row in rows],
        "machine": asdict(machine()),
    }  # fmt: skip
    print(json.dumps(result))
    return result
