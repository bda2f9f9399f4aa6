"""What this machine answers by itself: the right answers of a chaos run, and how long they take without any link.

The engine is one of its own, in this process. It takes nothing but names and token ids from the cloud, over no emulated
link, and computes every context. Its first answer about each document is timed from cold; the pace of the last few
such answers is what local prefill takes at the moment, since the speed of a shared machine wanders.
"""

import math
import random
import statistics
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from preread.bench.faults import Document
from preread.bench.ttft import text
from preread.edge.answer import answer, gathered
from preread.edge.opening import open_node
from preread.edge.options import Options
from preread.edge.request import Ask, Done, TokenOdds
from preread.edge.residents import Residents
from preread.edge.understand import understand
from preread.engine.sampling import Sampling
from preread.store.egress import CloudLink

_LETTERS_PER_TOKEN = 4
_PACED = 7


def body(document: Document) -> str:
    """The text of a document: so many tokens, more or less, of real prose."""
    whole, letters = text(), document.tokens * _LETTERS_PER_TOKEN
    start = int(document.start * (len(whole) - letters))
    return whole[start : start + letters]


def question(name: str, number: int) -> str:
    """What is asked about all versions of a document: 5 to 160 letters from elsewhere."""
    source, whole = random.Random(f"{name}/{number}"), text()
    start = source.randrange(len(whole) - 200)
    return whole[start : start + source.randint(5, 160)].strip() or "?"


TOP: Final = 5
"""So many of the likeliest tokens are told with each."""
ROUNDING_NATS: Final = 0.5
"""By so much other requests in a step change the odds of a token, at most: llama.cpp multiplies matrices in another way
for more tokens, and rounds what goes in. Of SmolLM2, 0.34 was seen."""
_MEASURED, _DEVIATIONS, _NEAR_NATS = 24, 4.0, 2.0
"""Of so many answers it is measured how far local prefill is from itself, by tokens that are so nearly as likely as the
right one; among some thousands of answers a few are so many standard deviations off."""


@dataclass(frozen=True, slots=True)
class Right:
    """A right answer: its text, its tokens' texts, and of each the log-probabilities (nats) of the likeliest."""

    text: str
    tokens: tuple[str, ...]
    odds: tuple[Mapping[str, float], ...]

    def agrees(self, text: str, tokens: Sequence[str], rounding_nats: float = ROUNDING_NATS) -> bool:
        """Whether another answer is right as well: the same, or another from where rounding may decide."""
        fork_nats = self.fork_nats(tokens)
        return text == self.text if fork_nats is None else fork_nats <= rounding_nats

    def fork_nats(self, tokens: Sequence[str]) -> float | None:
        """By how much the first token that differs is less likely than the right one, in nats; None: none differs."""
        for token, right, odds in zip(tokens, self.tokens, self.odds, strict=False):
            if token != right:
                return odds[right] - odds[token] if token in odds else math.inf
        return None

    def apart_nats(self, other: "Right") -> list[float]:
        """By how much the odds of likely tokens differ in another computation of the same, until that one forks."""
        found = list[float]()
        for right, token, odds, others in zip(self.tokens, other.tokens, self.odds, other.odds, strict=False):
            near = [one for one in odds if one in others and 0 < odds[right] - odds[one] <= _NEAR_NATS]
            if right in others:
                found += [(odds[right] - odds[one]) - (others[right] - others[one]) for one in near]
            if token != right:
                break
        return found


class Reference:
    """Right answers, by document and question."""

    def __init__(self, residents: Residents, cloud: CloudLink, answer_tokens: int) -> None:
        self._residents, self._node, self._cloud = residents, residents.node, cloud
        self._sampling = Sampling(max_tokens=answer_tokens, temperature=0.0, top_logprobs=TOP)
        self._answers: dict[tuple[str, int], dict[int, Right]] = {}
        self._paces_s: deque[float] = deque(maxlen=_PACED)
        self._measured, self._apart_nats = 0, list[float]()

    @property
    def rounding_nats(self) -> float:
        """What rounding may decide with this model: of how far local prefill is from itself, what is seen seldom."""
        squares = [apart * apart for apart in self._apart_nats]
        return max(ROUNDING_NATS, _DEVIATIONS * math.sqrt(statistics.fmean(squares))) if squares else ROUNDING_NATS

    async def learn(self, document: Document, questions: Sequence[int]) -> None:
        """Answer these questions about a document that is published now, the first one from cold."""
        await self._sync()
        await self._node.forget()
        found = self._answers.setdefault((document.name, document.version), {})
        for number in dict.fromkeys(questions):
            started = time.monotonic()
            done, found[number] = await self._ask(document, number)
            if done.timings.way == "computed":
                self._paces_s.append((time.monotonic() - started) / done.prompt_tokens)
            if self._measured < _MEASURED:
                self._measured += 1
                self._apart_nats += found[number].apart_nats(await self._whole(document, number))

    async def _whole(self, document: Document, number: int) -> Right:
        """The same computed in another way, from cold and in one piece: context and question in the same batches."""
        node, sampling = self._node, self._sampling
        question = (await understand(Ask(**asked(document, number), sampling=sampling), node)).alone()
        async with node.core.paused():
            steps = await node.core.call(lambda: list(node.engine.session.generate(question.prompt, sampling, reuse=0)))
        tokens = tuple(self._piece(step.token) for step in steps)
        odds = ({self._piece(token): logprob for token, logprob in step.top} for step in steps)
        return Right("".join(tokens), tokens, tuple(odds))

    def _piece(self, token: int) -> str:
        return self._node.engine.piece(token).decode(errors="replace")

    async def pace(self, document: Document) -> None:
        """Answer about a document that is published now from cold once more, for the time that it takes."""
        await self._node.forget()
        started = time.monotonic()
        done, _ = await self._ask(document, 0)
        self._paces_s.append((time.monotonic() - started) / done.prompt_tokens)

    def local_s(self, prompt_tokens: int) -> float:
        """What a whole answer takes here at present, from cold, with so many tokens before it."""
        return statistics.median(self._paces_s) * prompt_tokens

    @property
    def last_pace_s(self) -> float:
        """Seconds a token, of the last answer from cold."""
        return self._paces_s[-1]

    def right(self, name: str, number: int) -> dict[int, Right]:
        """The answers to a question for every version of a document that was published under this name."""
        return {
            version: answers[number]
            for (other, version), answers in self._answers.items()
            if other == name and number in answers
        }

    async def _sync(self) -> None:
        self._node.link = self._cloud
        try:
            await self._node.sync()
        finally:
            self._node.link = None

    async def _ask(self, document: Document, number: int) -> tuple[Done, Right]:
        ask = Ask(**asked(document, number), sampling=self._sampling)
        pieces, done = await gathered(answer(ask, self._residents))
        text, odds = "".join(piece.text for piece in pieces), [one for piece in pieces for one in piece.odds]
        return done, Right(text, tuple(one.text for one in odds), tuple(map(_likeliest, odds)))


def _likeliest(odds: TokenOdds) -> Mapping[str, float]:
    return {each.text: each.logprob or 0.0 for each in (*odds.top, odds)}


def asked(document: Document, number: int) -> dict[str, Any]:
    """The fields of a request that say what is asked."""
    return {"context": document.name, "messages": ({"role": "user", "content": question(document.name, number)},)}


@asynccontextmanager
async def referring(
    model: Path, name: str, cloud: str, folder: Path, window_tokens: int, threads: int, answer_tokens: int
) -> AsyncGenerator[Reference, None]:
    """Open the engine for it; `cloud` is where names and token ids come from."""
    options = Options(name, window_tokens=window_tokens, threads=threads, cache_ram_bytes=0, keep_conversations_s=0)
    async with (
        CloudLink(cloud) as link,
        open_node(model, name, None, folder, options) as residents,
    ):
        yield Reference(residents, link, answer_tokens)
