"""Guesses save steps, and change nothing else: what an answer says, where it ends, what is told of its tokens."""

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from preread import Edge
from preread.edge.request import Ask, Done, Piece, Timings, TokenOdds
from preread.engine.sampling import Sampling
from preread.plan import drafts
from preread.testing.families import write_family

ROUNDING = 0.1
"""By so much a step's size changes a token's probability, at most."""

DOCUMENT = (
    "The yellow lamp means that the tank is empty. Fill it with two litres of clean water. The green lamp means that "
    "the filter is clean. The blue lamp means that the fan turns too slowly: open the lid, and remove what blocks it."
)
ASKED = f"Repeat this text word for word, and say nothing else:\n\n{DOCUMENT}"
WINDOW_TOKENS = 512
TOKENS = 40


@dataclass(frozen=True)
class Whole:
    text: str
    odds: tuple[TokenOdds, ...]
    done: Done
    steps: int

    @property
    def timings(self) -> Timings:
        return self.done.timings

    @property
    def data(self) -> list[bytes]:
        return [one.data for one in self.odds]


class Asker:
    """An edge without a cloud that is asked with guesses, as many as may be, or without any."""

    def __init__(self, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.edge, self.node, self._patch = edge, edge.asynchronous.node, monkeypatch

    def guessing(self, most: int) -> None:
        """From now on so many guesses are worth it, whatever steps take on this machine at the moment."""
        self._patch.setattr(drafts, "worth", lambda *_: most)

    async def whole(self, ask: Ask) -> Whole:
        before, pieces = self.node.core.stats().steps, list[Piece]()
        async for item in self.edge.asynchronous.answer(ask):
            if isinstance(item, Done):
                odds = tuple(one for piece in pieces for one in piece.odds)
                text = "".join(piece.text for piece in pieces)
                return Whole(text, odds, item, self.node.core.stats().steps - before)
            pieces.append(item)
        raise AssertionError("no end")

    def ask(self, stop: tuple[str, ...] = (), prompt: str = ASKED, **sampling: Any) -> Whole:
        chosen = replace(Sampling(max_tokens=TOKENS, top_logprobs=20), **sampling)
        chat = ({"role": "user", "content": prompt},)
        return self.edge.portal.call(self.whole, Ask(messages=chat, stop=stop, sampling=chosen))

    def both(self, **how: Any) -> tuple[Whole, Whole]:
        """Without guesses, and with."""
        self.guessing(0)
        without = self.ask(**how)
        self.guessing(drafts.MOST_DRAFTS)
        return without, self.ask(**how)


@pytest.fixture(scope="module")
def edge(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with Edge(str(smollm), window_tokens=WINDOW_TOKENS, folder=tmp_path_factory.mktemp("edge")) as edge:
        yield edge


@pytest.fixture
def asker(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> Asker:
    return Asker(edge, monkeypatch)


def same(one: Whole, other: Whole) -> bool:
    """Whether two answers are the same. The odds are, up to rounding, as far as what stands before them is."""
    for expected, found in zip(one.odds, other.odds, strict=False):
        odds = {one.data: math.exp(one.logprob) for one in found.top}
        assert all(abs(math.exp(one.logprob) - odds.get(one.data, 0.0)) < ROUNDING for one in expected.top)
        if expected.data != found.data:
            return False
    assert one.text == other.text and one.done.finish == other.done.finish
    assert len(one.odds) == len(other.odds) == one.timings.predicted_n == other.timings.predicted_n
    return True


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_an_answer_with_guesses_is_the_one_without_in_fewer_steps(asker: Asker, sampling: dict[str, Any]) -> None:
    without, guessed = asker.both(**sampling)
    assert without.steps >= without.timings.predicted_n
    assert guessed.steps < 0.7 * guessed.timings.predicted_n
    same(without, guessed)


def test_wrong_guesses_change_nothing_either(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    asker.guessing(0)
    without = asker.ask()
    before = asker.node.core.stats().tokens
    asker.guessing(4)
    monkeypatch.setattr(drafts._Place, "tokens", lambda *_: [1000, 1001, 1002, 1003])
    monkeypatch.setattr(drafts.Drafts, "_found", lambda self: drafts._Place(self._own, 0))
    wrong = asker.ask()
    counted = {of: count - before[of] for of, count in asker.node.core.stats().tokens.items()}
    assert counted["answer"] == wrong.timings.predicted_n + (wrong.done.finish == "stop")
    assert counted["wrong_guess"] >= 3 * wrong.timings.predicted_n
    same(without, wrong)


@pytest.mark.long
def test_wrong_guesses_draw_no_lots(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all but the first tokens of answers with a seed would be others. By rounding alone, few are."""
    alike = 0
    for seed in range(6):
        how = {"prompt": "Tell me a story.", "temperature": 0.8, "seed": seed, "max_tokens": 10}
        asker.guessing(0)
        without = asker.ask(**how)
        with monkeypatch.context() as patch:
            patch.setattr(drafts, "worth", lambda *_: 2)
            patch.setattr(drafts._Place, "tokens", lambda *_: [1000, 1001])
            patch.setattr(drafts.Drafts, "_found", lambda self: drafts._Place(self._own, 0))
            alike += same(without, asker.ask(**how))
    assert alike >= 4


@pytest.mark.long
def test_several_guess_at_once(asker: Asker) -> None:
    asker.guessing(drafts.MOST_DRAFTS)
    prompts = [ASKED, ASKED.replace("yellow", "white"), ASKED.replace("two", "three"), "Count from one to forty."]
    alone = [asker.ask(prompt=prompt) for prompt in prompts]

    async def at_once() -> list[Whole]:
        chosen = Sampling(max_tokens=TOKENS, top_logprobs=20)
        asks = [Ask(messages=({"role": "user", "content": prompt},), sampling=chosen) for prompt in prompts]
        return await asyncio.gather(*map(asker.whole, asks))

    before = asker.node.core.stats().steps
    together = asker.edge.portal.call(at_once)
    assert asker.node.core.stats().steps - before < sum(one.timings.predicted_n for one in together)
    for one, other in zip(alone, together, strict=True):
        same(one, other)


@pytest.mark.long
def test_no_answer_is_longer_than_it_may_be(asker: Asker) -> None:
    asker.guessing(drafts.MOST_DRAFTS)
    whole = asker.ask()
    for most in range(1, 20):
        some = asker.ask(max_tokens=most)
        assert (some.timings.predicted_n, some.done.finish, len(some.odds)) == (most, "length", most)
        assert some.data == whole.data[:most]
    assert asker.ask(max_tokens=0).text == ""


@pytest.mark.long
def test_a_stop_text_ends_an_answer_within_what_was_guessed(asker: Asker) -> None:
    asker.guessing(drafts.MOST_DRAFTS)
    whole = asker.ask()
    for at in range(40, 110, 9):
        stopped = asker.ask(stop=(whole.text[at : at + 9],))
        first = whole.text.index(whole.text[at : at + 9])
        assert (stopped.text, stopped.done.finish) == (whole.text[:first], "stop")
        assert stopped.timings.predicted_n == len(stopped.odds) < TOKENS


def test_an_answer_does_not_end_before_it_may(asker: Asker) -> None:
    without, guessed = asker.both(prompt="Repeat the word: yes yes yes yes yes yes", min_tokens=40, max_tokens=60)
    assert min(without.timings.predicted_n, guessed.timings.predicted_n) >= 40
    same(without, guessed)
    ended = asker.ask(prompt="Hi", max_tokens=60)
    assert ended.done.finish == "stop" and len(ended.odds) == ended.timings.predicted_n < 60


@pytest.mark.long
def test_an_answer_that_repeats_itself_ends_with_the_window(asker: Asker) -> None:
    stay = asker.node.engine.tokenize(" yes")
    bias = tuple((int(id), 100.0) for id in stay)
    without, guessed = asker.both(prompt=ASKED * 6, max_tokens=10_000, logit_bias=bias)
    for one in (without, guessed):
        assert one.done.prompt_tokens + one.timings.predicted_n == WINDOW_TOKENS
        assert one.done.finish == "length"
    assert guessed.text == without.text
    assert guessed.steps < 0.7 * without.steps
    assert asker.node.core.stats().cells["requests"] == 0
    assert same(*asker.both(max_tokens=4)), "and others are answered as before"


def test_a_model_whose_rows_cannot_be_taken_back_guesses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path / "mamba2.gguf", "mamba2")
    with Edge(str(path), window_tokens=1024, folder=tmp_path) as edge:
        asker = Asker(edge, monkeypatch)
        sampling = Sampling(max_tokens=TOKENS, top_logprobs=1)
        ask = Ask(prompt=DOCUMENT * 12, sampling=sampling)
        asker.guessing(0)
        without = edge.portal.call(asker.whole, ask)
        asker.guessing(drafts.MOST_DRAFTS)
        guessing = edge.portal.call(asker.whole, ask)
    assert guessing.data == without.data
    assert guessing.steps == without.steps
