"""Many streams of one edge for a while: no gaps, memory that stays, and the answers that one user alone gets.

As in `serve.py`, a cloud, an emulated link and an edge, each a process of its own. First every question is asked once
with nobody else there. Then users ask the same questions, each again as soon as it is answered. What others do in a
step rounds differently, so that of two tokens which are nearly as likely the other one may come, and after it another
answer: how far apart the two were when asked alone is what `fork_nats` says, and what is further apart than rounding
explains is wrong.
"""

import asyncio
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import httpx2
from rich.console import Console

from preread.bench.corpus import draw
from preread.bench.deployment import Deployment, Report, Setting, window_tokens
from preread.bench.events import Reply
from preread.bench.load import percentile
from preread.bench.peers import Beside
from preread.bench.reference import ROUNDING_NATS, TOP, Right
from preread.bench.systems import System, http, started
from preread.edge.machine import machine
from preread.errors import PrereadError, RemoteError

_SAMPLE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        setting: what is set up.
        users: that ask at once; seconds: for so long, and until all are answered.
        contexts: documents; questions: different ones, that are asked about them in turn.
        prompt_tokens, answer_tokens: of each question, and of its answer.
        seed: of documents, questions and their order.
    """

    setting: Setting
    users: int = 64
    seconds: float = 600.0
    contexts: int = 4
    questions: int = 64
    prompt_tokens: int = 25
    answer_tokens: int = 64
    seed: int = 0

    @property
    def window_tokens(self) -> int:
        """KV cache that one request takes, at least."""
        return window_tokens(self.setting.context_tokens + self.prompt_tokens + self.answer_tokens)


@dataclass(frozen=True, slots=True)
class Compared:
    """Answers under load against those that one user alone got.

    Attributes:
        same: that have the same text; forked: others, from where rounding may decide.
        wrong: that neither is true of.
        most_fork_nats: how much less likely the other token was, at most, where an answer is forked.
    """

    same: int
    forked: int
    wrong: int
    most_fork_nats: float


def compared(right: Sequence[Right], answers: Sequence[tuple[int, Reply]]) -> Compared:
    """Compare answers, each with the number of its question."""
    same = [right[number].text == reply.text for number, reply in answers]
    agrees = [right[number].agrees(reply.text, reply.tokens) for number, reply in answers]
    forks_nats = [right[number].fork_nats(reply.tokens) or 0.0 for number, reply in answers]
    forked = [agreed and not one for one, agreed in zip(same, agrees, strict=True)]
    most = max(itertools.compress(forks_nats, forked), default=0.0)
    return Compared(sum(same), sum(forked), len(answers) - sum(same) - sum(forked), round(most, 4))


async def bench(options: Options, console: Console, report: Report) -> dict[str, object]:
    """Publish, ask, print one line of JSON, which is also returned.

    Raises:
        RemoteError: a request was not answered, or an answer was wrong; the line was printed.
        PrereadError: a part could not be started.
    """
    at = options.setting
    corpus = draw(at.model, options.seed, options.contexts, at.context_tokens, options.questions, options.prompt_tokens)
    with tempfile.TemporaryDirectory(prefix="preread-streams-") as scratch:
        window = options.window_tokens
        async with started(at, Beside(), corpus, window, Path(scratch), report) as (system,):
            assert isinstance(system.runs, Deployment)
            await system.runs.fresh()
            right = await _alone(system, options)
            console.print(f"{options.questions} questions are answered alone", style="dim")
            watching = asyncio.create_task(_watched(system.runs))
            began_s = time.monotonic()
            answers, failures = await _streams(system, options)
            seconds = time.monotonic() - began_s
            watching.cancel()
            sizes_bytes = await watching
    found = compared(right, answers)
    result = _told(options, answers, found, seconds, sizes_bytes) | {"failed": len(failures)}
    print(json.dumps(result), flush=True)
    if failures:
        raise RemoteError(f"{len(failures)} requests were not answered; the first: {failures[0]}")
    if found.wrong:
        raise RemoteError(f"{found.wrong} of {len(answers)} answers are not those that one user alone gets")
    return result


async def _alone(system: System, options: Options) -> list[Right]:
    """What each question's answer is when nobody else asks."""
    async with http() as client:
        replies = [await _asked(system, client, number, options, TOP) for number in range(options.questions)]
    return [Right(reply.text, reply.tokens, reply.odds) for reply in replies]


async def _asked(system: System, client: httpx2.AsyncClient, number: int, options: Options, top: int) -> Reply:
    """Ask one of the questions about its document, and for the `top` likeliest of each token."""
    asked = [{"role": "user", "content": system.corpus.questions[number]}]
    document = number % options.contexts
    return await system.ask(client, document, asked, options.answer_tokens, logprobs=True, top_logprobs=top)


async def _streams(system: System, options: Options) -> tuple[list[tuple[int, Reply]], list[str]]:
    """What the users got, each with the number of its question, and why others got nothing."""
    answers, failures, ends_s = list[tuple[int, Reply]](), list[str](), time.monotonic() + options.seconds

    async def user(number: int) -> None:
        chance = random.Random(f"{options.seed}/{number}")
        async with http() as client:
            while True:  # at least once: on a busy machine the time may be over before anybody has begun
                question = chance.randrange(options.questions)
                try:
                    answers.append((question, await _asked(system, client, question, options, 0)))
                except PrereadError as error:
                    failures.append(str(error))
                if time.monotonic() >= ends_s:
                    return

    async with asyncio.TaskGroup() as group:
        for number in range(options.users):
            group.create_task(user(number))
    return answers, failures


async def _watched(edge: Deployment) -> list[int]:
    """What memory the edge has, from time to time, until this is cancelled."""
    sizes_bytes = list[int]()
    try:
        while True:
            sizes_bytes.append(edge.resident_bytes())
            await asyncio.sleep(_SAMPLE_S)
    except asyncio.CancelledError:
        return sizes_bytes


def _told(
    options: Options,
    answers: Sequence[tuple[int, Reply]],
    found: Compared,
    seconds: float,
    sizes_bytes: Sequence[int],
) -> dict[str, object]:
    seen = [reply.seen for _, reply in answers]
    gaps_s = sorted(gap_s for _, reply in answers for gap_s in reply.gaps_s) or [math.nan]
    ttft_s = [one.ttft_s for one in seen] or [math.nan]
    tenth = max(1, len(sizes_bytes) // 10)
    early_bytes, late_bytes = statistics.median(sizes_bytes[tenth : 2 * tenth] or sizes_bytes), sizes_bytes[-1]
    return {
        "bench": "streams", "model": options.setting.name, "users": options.users, "seconds": round(seconds, 1),
        "contexts": options.contexts, "context_tokens": options.setting.context_tokens, "answers": len(answers),
        "tokens_s": round(sum(one.tokens for one in seen) / seconds, 2),
        "ttft_p50_s": round(percentile(ttft_s, 0.5), 4), "ttft_p99_s": round(percentile(ttft_s, 0.99), 4),
        "gap_p50_s": round(percentile(gaps_s, 0.5), 4), "gap_p99_s": round(percentile(gaps_s, 0.99), 4),
        "longest_gap_s": round(gaps_s[-1], 4), **asdict(found), "rounding_nats": ROUNDING_NATS,
        "early_mib": round(early_bytes / 2**20, 1), "last_mib": round(late_bytes / 2**20, 1),
        "peak_mib": round(max(sizes_bytes) / 2**20, 1), "machine": asdict(machine()),
    }  # fmt: skip
