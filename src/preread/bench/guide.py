"""What a large model's reading does for a small one: loss after a context, in every mode, on text that no fit has seen.

Both models read each window. The small one then predicts what follows on its own exact KV, on KV that a mapping made of
what the large one reads, and on its own as a guide changes it; the control is the same with what the large model makes
of *another* window, which shows how much of it is the large model's reading of this one; a guide's control is a network
of its own, that learnt so. With questions, every mode also answers them about documents, word for word, and it is
measured how likely the right answers are. It knows modes; it must not know how mappings and guides are made.
"""

from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from preread.align.guide_bytes import KeptGuide
from preread.align.mapping import Read
from preread.align.mapping_bytes import Kept
from preread.bench.modes import CONTROL, GUIDED, LLM, SLM, Found, rows_of, show
from preread.bench.through import sent
from preread.cloud.reading import Help, check_models
from preread.codec import ladder
from preread.codec.profile import Profile, prepare
from preread.codec.profile_bytes import loads
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit import files
from preread.fit import guided as guides
from preread.fit.map import Report, load, mapped, read
from preread.fit.quality import Double, Single, compare, log_softmax
from preread.fit.questions import Document, documents, right
from preread.fit.sample import TAIL_TOKENS, WINDOW_TOKENS, windows
from preread.fit.text import Text
from preread.values import KVBlock


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
        found = Found({}, {}, {}, {}, {})
        before: Read | None = None
        for number, (tokens, tail) in enumerate(chosen):
            before = _window(slm, llm, tokens, tail, kept, before, found)
            report("measure", number + 1, len(chosen))
        before = None
        for number, document in enumerate(asked):
            before = _asked(slm, llm, document, kept, before, found)
            report("ask", number + 1, len(asked))
    rows = rows_of(found, options.text.label, slm, llm)
    return show(rows, small[1], large[1], len(chosen), sum(len(one.questions) for one in asked), console)


_MOST_TOKENS = 2048
"""A document of the questions with its frame, a question and an answer; code has three characters a token."""


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
    found: Found,
) -> Read:
    """Measure all modes on a window; what both models make of it."""
    now = _read(slm, llm, tokens, kept)
    exact = log_softmax(slm.session.score(tail))
    own = _loss(exact, tail)
    for mode, loss, kl in ((LLM, _large_loss(slm, llm, tail), 0.0), (SLM, own, 0.0)):
        found.losses.setdefault(mode, []).append(loss)
        found.divergences.setdefault(mode, []).append(kl)
    for mode, block in _modes(slm, now, tokens, kept, before, found):
        slm.session.inject(now.block)
        slm.session.inject(block)
        score = compare(slm.session.score(tail), tail, exact)
        found.losses.setdefault(mode, []).append(own + score.dloss)
        found.divergences.setdefault(mode, []).append(float(score.kl.mean()))
    return now


def _asked(slm: LlamaCpp, llm: LlamaCpp, document: Document, kept: _Kept, before: Read | None, found: Found) -> Read:
    """Ask all modes about a document; what both models make of it."""
    start, prompts = _prompts(slm, document)
    begun, theirs = _prompts(llm, document)
    now = _read(slm, llm, start, kept)
    if slm.spec.vocabulary != llm.spec.vocabulary or not np.array_equal(start, begun):
        llm.session.prefill(begun)  # or it holds that already, and reading takes longest

    def ask(mode: str, engine: LlamaCpp, its: list[Tokens]) -> None:
        found.right.setdefault(mode, []).append(right(engine, document.questions, its))
        found.answers.setdefault(mode, []).append(_answers(slm, engine, document, its))

    ask(LLM, llm, theirs)
    ask(SLM, slm, prompts)
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
    slm: LlamaCpp, now: Read, tokens: Tokens, kept: _Kept, before: Read | None, found: Found
) -> list[tuple[str, KVBlock]]:
    """The small model's KV in every mode, and in every mode's control, for which there has to be another text."""
    turn = slm.ropes
    made = [(f"mapped-{one.mapping.split}", mapped(one.mapping, now, turn)) for one in kept.mappings]
    if kept.guide is not None:
        made.append((GUIDED, guides.guided(kept.guide.guide, now, turn)))
    if kept.guide is not None and kept.profile is not None:
        codec = ladder.codec(kept.rung, prepare(kept.profile, slm.embeddings(tokens)))
        slm.session.inject(now.block)
        slm.session.inject(made[-1][1])
        whole = slm.session.export(now.block.tokens, now.block.layers)
        size_bytes = sent(slm, codec, tokens, whole, kept.profile.groups)
        made.append((f"{GUIDED}-{kept.rung}", slm.session.export(now.block.tokens, now.block.layers)))
        found.sent.setdefault(made[-1][0], []).append(size_bytes / len(tokens))
    if before is None:
        return made
    control = guides.other(now, before)
    made += [(f"mapped-{one.mapping.split}{CONTROL}", mapped(one.mapping, control, turn)) for one in kept.mappings]
    if kept.guide is not None:
        made.append((GUIDED + CONTROL, guides.guided((kept.control or kept.guide).guide, control, turn)))
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
