"""The study's story: a large model reads a document, asks itself questions about it, and answers them.

each passage, several times over → questions that it answers → the whole document → an answer to each → how likely the
large model held every token of it. This is self-study as in Cartridges (Eyuboglu et al., 2025, arXiv 2506.06266), with
a teacher other than the pupil.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from preread.align.exchanges import Exchange, told
from preread.align.study_bytes import Study, loads
from preread.engine.chat import ChatTemplate
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.sampling import Sampling
from preread.errors import UsageError
from preread.fit import files
from preread.fit.quality import log_softmax
from preread.fit.sample import TAIL_TOKENS
from preread.wire.digest import context_id

Report = Callable[[str, int, int], None]
"""Told a stage ("ask" or "answer"), how much of it is done, and how much there is."""

ROUNDS: Final = 4
EACH: Final = 5
PASSAGE_CHARACTERS: Final = 330
"""Of a passage at least: larger ones are asked about no more, and questions come to lie thinner."""

BRIEFLY: Final = "Answer in one short sentence."
BARELY: Final = "Answer with that fact alone, in as few words as possible."
"""Said to both models: long answers cost time, and say more of how a model talks than of what it has read. But who only
learns to explain, in sentences, answers so when asked for a bare value, and wrongly."""

_QUESTION_TOKENS, _ANSWER_TOKENS = 160, 64
_LONGEST_QUESTION: Final = 200
_FEWEST: Final = 8
_PART: Final = "This is a part of a longer text:\n\n{part}\n\nWrite {each} different short questions "
_LINES: Final = (
    ", one a line. Name in each what it is about, so that it can be understood by somebody who does not see this part. "
    "Do not answer them."
)
KINDS: Final = (
    (f"{_PART}that this part answers{_LINES}", BRIEFLY),
    (f"{_PART}about single facts in this part, such as a value, a number, a name or a default{_LINES}", BARELY),
)
"""What rounds ask for in turn, and how that is to be answered."""


def study(small: LlamaCpp, large: LlamaCpp, text: str, progress: Report, rounds: int = ROUNDS) -> Study:
    """Questions about a document, which `large` asks and answers. What it held is gone.

    Args:
        small: for whose context it is; only its tokenizer and its chat template are used.
        large: opened to score `sample.TAIL_TOKENS` tokens.
        text: the document, as `preread publish` has it.
        rounds: how often each passage is asked about; more give more questions, and ever fewer new ones.

    Raises:
        UsageError: a model has no chat template, the document does not fit the large one's window, or it gives too few
            questions.
        EngineError: an engine failed.
        Cancelled: somebody called `cancel` of the large engine.
    """
    mine, its = _chat(small), _chat(large)
    asked = _asked(large, its, text, rounds, progress)
    large.session.prefill(large.tokenize_prompt(its.system_prefix(text)))
    found: list[Exchange] = []
    for number, question in enumerate(asked):
        messages = [{"role": "user", "content": question}]
        its_prompt = large.tokenize_prompt(its.after_system(messages), start=False)
        steps = list(large.session.generate(its_prompt, Sampling(max_tokens=_ANSWER_TOKENS)))
        answer = b"".join(step.piece for step in steps).decode(errors="ignore")
        if steps[-1].end and answer.strip():
            prompt = small.tokenize_prompt(mine.after_system(messages), start=False)
            one = _exchange(small, large, prompt, its_prompt, answer)
            found += [one] if one is not None else []
        progress("answer", number + 1, len(asked))
    if len(found) < _FEWEST:
        raise UsageError(f"{large.spec.name} found {len(found)} questions in the document: {_FEWEST} are needed")
    context = context_id(small.spec.fingerprint, small.tokenize_prompt(mine.system_prefix(text)))
    return Study(context, small.spec.fingerprint, large.spec.fingerprint, tuple(found))


def load(path: Path) -> Study:
    """A study's file.

    Raises:
        UsageError: it cannot be read.
        CorruptData: it is none.
    """
    return loads(files.read(path))


def passages(text: str) -> list[str]:
    """The document in passages of whole lines, of at least `PASSAGE_CHARACTERS` if it is so long."""
    found = [""]
    for line in text.splitlines(keepends=True):
        if len(found[-1]) >= PASSAGE_CHARACTERS:
            found.append("")
        found[-1] += line
    if len(found) > 1 and len(found[-1]) < PASSAGE_CHARACTERS:
        found[-2:] = [found[-2] + found[-1]]
    return found


def questions(reply: str) -> Iterator[str]:
    """The questions in a model's reply: lines that end with a question mark, without their numbers."""
    for line in reply.splitlines():
        question = re.sub(r"^[\s\d.):*\-]+", "", line).strip()
        if question.endswith("?") and 1 < len(question) <= _LONGEST_QUESTION:
            yield question


def _asked(large: LlamaCpp, chat: ChatTemplate, text: str, rounds: int, progress: Report) -> list[str]:
    """Questions, each with how it is to be answered; none is asked twice."""
    parts = passages(text)
    found: dict[str, str] = {}
    large.session.clear()
    for number in range(rounds * len(parts)):
        part = parts[number % len(parts)]
        ask, manner = KINDS[number // len(parts) % len(KINDS)]
        content = ask.format(part=part.strip(), each=EACH)
        prompt = large.tokenize_prompt(chat.render([{"role": "user", "content": content}]))
        first = number < len(KINDS) * len(parts)
        sampling = Sampling(_QUESTION_TOKENS, temperature=0.0 if first else 0.8, top_p=0.95, seed=number)
        reply = b"".join(step.piece for step in large.session.generate(prompt, sampling))
        for question in questions(reply.decode(errors="ignore")):
            found.setdefault(re.sub(r"\W+", " ", question.lower()).strip(), f"{question} {manner}")
        progress("ask", number + 1, rounds * len(parts))
    return list(found.values())


def _exchange(small: LlamaCpp, large: LlamaCpp, prompt: Tokens, its_prompt: Tokens, answer: str) -> Exchange | None:
    """What both say of an answer; None: it is longer than what is measured at once."""
    ours, theirs = (np.concatenate([one.tokenize(answer, special=False), _end(one)]) for one in (small, large))
    if max(len(prompt) + len(ours), len(its_prompt) + len(theirs)) > TAIL_TOKENS:
        return None
    logits = large.session.score(np.concatenate([its_prompt, theirs[:-1]]))
    its = told(its_prompt, theirs, log_softmax(logits[len(its_prompt) - 1 :]))
    if small.spec.vocabulary == large.spec.vocabulary:
        return replace(its, prompt=prompt)
    # What the large model held likely is told in other tokens: the small one learns the answer's own.
    share = np.full(len(ours), its.losses.sum() / len(ours), np.float32)
    return Exchange(prompt, ours, ours[:, None], np.zeros((len(ours), 1), np.float32), share)


def _end(engine: LlamaCpp) -> Tokens:
    return engine.tokenize(_chat(engine).eos)


def _chat(engine: LlamaCpp) -> ChatTemplate:
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: questions are asked and answered in chats")
    return engine.chat
