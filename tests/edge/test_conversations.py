"""Conversations are kept for their next turn: nothing of the history is computed twice, and nobody else has it."""

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from preread import Edge
from preread.edge.answer import answered
from preread.edge.app import create_app
from preread.edge.options import Near
from preread.edge.request import Ask, Done, Piece, Timings, TokenOdds
from preread.edge.understand import Question, understand
from preread.engine.sampling import Sampling
from preread.plan.match import shared_tokens

ROUNDING = 0.2
"""Nats by which a step's size changes a token's odds, at most: a model of random weights has nearly equal ones."""

PARTS = "filter", "pump", "fan", "valve", "sensor", "lid", "motor"
QUESTIONS = [*(f"What is the code of the {part}?" for part in PARTS), "And why?"]
ANSWER_TOKENS = 12

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Turn:
    """A question that was answered."""

    question: Question
    text: str
    odds: tuple[TokenOdds, ...]
    timings: Timings

    @property
    def kept_tokens(self) -> int:
        """The next turn has so many tokens in common with it: all but the last one, which nothing came after."""
        return self.question.prompt_tokens + self.timings.predicted_n - 1


class Talk:
    """An edge, and callers who talk to it: answers are of `ANSWER_TOKENS` tokens of printable ASCII, `only` of some."""

    def __init__(self, edge: Edge) -> None:
        self.edge, self.node = edge, edge.asynchronous.node
        self.core, self.residents = self.node.core, edge.asynchronous.residents
        self.spoken = self.tokens(lambda piece: piece.isascii() and piece.decode().isprintable() and bool(piece))

    def tokens(self, wanted: Callable[[bytes], bool]) -> set[int]:
        engine = self.node.engine
        return {id for id in range(engine.spec.vocab_size) if wanted(engine.piece(id))}

    def asked(self, chat: Chat, context: str | None = "manual", only: set[int] | None = None, **more: Any) -> Ask:
        unspoken = set(range(self.node.engine.spec.vocab_size)) - (only or self.spoken)
        bias = tuple((id, -1000.0) for id in sorted(unspoken))
        sampling = Sampling(max_tokens=ANSWER_TOKENS, logit_bias=bias, top_logprobs=3)
        return Ask(messages=tuple(chat), context=context, sampling=replace(sampling, **more))

    async def answer(self, ask: Ask, caller: str = "ann") -> Turn:
        question, pieces = await understand(ask, self.node, caller), list[Piece]()
        async with aclosing(answered(question, self.residents, caller)) as items:
            async for item in items:
                if isinstance(item, Done):
                    text, odds = "".join(piece.text for piece in pieces), [one for p in pieces for one in p.odds]
                    return Turn(question, text, tuple(odds), item.timings)
                pieces.append(item)
        raise AssertionError("no end")

    def turn(self, chat: Chat, caller: str = "ann", context: str | None = "manual", **more: Any) -> Turn:
        return self.edge.portal.call(self.answer, self.asked(chat, context, **more), caller)

    def forget(self) -> None:
        self.edge.portal.call(self.node.forget)

    def cells(self) -> int:
        """Of conversations, once what is to go has gone."""
        self.edge.portal.call(self.core.call, lambda: None)
        return self.core.stats().cells["conversations"]

    def until(self, there: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 60
        while not there():
            assert time.monotonic() < end_s
            time.sleep(0.001)


def said(*texts: str) -> Chat:
    """A chat in which user and model take turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def same_odds(one: Sequence[TokenOdds], other: Sequence[TokenOdds]) -> None:
    """But for rounding: where the likeliest tokens are nearly alike, another may come."""
    assert len(one) == len(other) == ANSWER_TOKENS
    for expected, found in zip(one, other, strict=True):
        assert abs((expected.logprob or 0) - (found.logprob or 0)) < ROUNDING
        if expected.data != found.data:
            assert found.data in [one.data for one in expected.top]
            break


def opened(model: Path, url: str | None, folder: Path, **options: Any) -> Edge:
    return Edge(str(model), url, rung="lossless", window_tokens=2048, folder=folder, sync_s=3600, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edge")


@pytest.fixture(scope="module")
def open_talk(tiny_model: Path, cloud: Any, folder: Path) -> Iterator[Talk]:
    with opened(tiny_model, cloud.url, folder, kv_memory_bytes=2**24, near=Near(disk_bytes=2**24)) as edge:
        edge.portal.call(edge.asynchronous.node.settled)
        yield Talk(edge)


@pytest.fixture
def talk(open_talk: Talk) -> Talk:
    """With nothing kept."""
    open_talk.forget()
    return open_talk


@pytest.mark.parametrize("context", ["manual", None])
def test_of_eight_turns_each_computes_what_is_new_in_it(talk: Talk, context: str | None) -> None:
    talk.turn(said("Hello."), "somebody else", context)  # brings the context
    before, computed_tokens = talk.core.stats().tokens["prompt"], 0
    chat, last = Chat(), None
    for question in QUESTIONS:
        chat.append({"role": "user", "content": question})
        turn = talk.turn(chat, context=context)
        timings = turn.timings
        assert timings.predicted_n == ANSWER_TOKENS
        assert timings.cache_n == (timings.context_n if last is None else last.kept_tokens)
        assert timings.cache_n + timings.prompt_n == turn.question.prompt_tokens
        assert last is None or timings.prompt_n <= 40
        computed_tokens += timings.prompt_n
        chat.append({"role": "assistant", "content": turn.text})
        last = turn
    assert talk.core.stats().tokens["prompt"] == before + computed_tokens, "what is said is what is done"
    assert last is not None and last.question.prompt_tokens > 8 * 30


def test_a_next_turn_is_answered_as_without_what_is_kept(talk: Talk) -> None:
    first = talk.turn(said(QUESTIONS[0]))
    chat = said(QUESTIONS[0], first.text, QUESTIONS[1])
    resumed = talk.turn(chat)
    talk.forget()
    anew = talk.turn(chat)
    assert (resumed.timings.cache_n, anew.timings.cache_n) == (first.kept_tokens, first.timings.context_n)
    same_odds(anew.odds, resumed.odds)


def test_an_answer_whose_text_reads_in_other_tokens_is_not_computed_again(talk: Talk) -> None:
    """The model spells here what a tokenizer has longer tokens for."""
    letters = talk.tokens(lambda piece: piece in (b"t", b"h", b"e", b"i", b"n"))
    first = talk.turn(said(QUESTIONS[0]), only=letters, temperature=1.0, seed=1)
    engine, chat = talk.node.engine, said(QUESTIONS[0], first.text, QUESTIONS[1])
    assert len(engine.tokenize(first.text)) < ANSWER_TOKENS
    second = talk.turn(chat)
    assert second.timings.cache_n == first.kept_tokens
    other = talk.edge.portal.call(understand, talk.asked(chat), talk.node, "another")
    assert b"".join(map(engine.piece, other.prompt.tolist())) == b"".join(
        map(engine.piece, second.question.prompt.tolist())
    )
    assert shared_tokens(other.prompt, second.question.prompt) < len(first.question.prompt) + ANSWER_TOKENS - 1


def test_two_go_on_from_one_conversation_one_after_the_other_and_at_once(talk: Talk) -> None:
    first = talk.turn(said(QUESTIONS[0]))
    chats = [said(QUESTIONS[0], first.text, question) for question in QUESTIONS[1:5]]
    one_by_one = [talk.turn(chat) for chat in chats[:2]]

    async def at_once() -> list[Turn]:
        return await asyncio.gather(*[talk.answer(talk.asked(chat)) for chat in chats])

    together = talk.edge.portal.call(at_once)
    for turn in (*one_by_one, *together[2:]):
        assert turn.timings.cache_n >= first.kept_tokens
    for turn, earlier in zip(together, one_by_one, strict=False):
        assert turn.timings.cache_n == earlier.question.prompt_tokens - 1, "all of that was computed before"
        same_odds(earlier.odds, turn.odds)


def test_a_conversation_is_its_callers_alone(talk: Talk) -> None:
    first = talk.turn(said(QUESTIONS[0]), "ann")
    chat = said(QUESTIONS[0], first.text, QUESTIONS[1])
    assert talk.turn(chat, "bob").timings.cache_n == first.timings.context_n
    assert talk.turn(chat, "").timings.cache_n == first.timings.context_n
    assert talk.turn(chat, "ann").timings.cache_n == first.kept_tokens


def test_a_conversation_about_a_context_is_none_about_another(talk: Talk, cloud: Any) -> None:
    cloud.publish("leaflet", "The red lamp means that the tank is empty. " * 12)
    talk.turn(said(QUESTIONS[0]), "carl", "leaflet")  # and it is there, computed or streamed
    first = talk.turn(said(QUESTIONS[0]))
    chat = said(QUESTIONS[0], first.text, QUESTIONS[1])
    about_another = talk.turn(chat, context="leaflet").timings
    assert about_another.prompt_n == talk.turn(chat, "bob", "leaflet").timings.prompt_n
    assert talk.turn(chat, context=None).timings.cache_n == 0


def test_who_goes_away_in_the_middle_finds_what_was_computed(talk: Talk) -> None:
    ask = talk.asked(said(QUESTIONS[0]), max_tokens=1000)

    async def leave() -> int:
        question = await understand(ask, talk.node, "ann")
        async with aclosing(answered(question, talk.residents, "ann")) as items:
            await anext(items)
        return question.prompt_tokens

    prompt_tokens = talk.edge.portal.call(leave)
    assert talk.turn(said(QUESTIONS[0])).timings.cache_n == prompt_tokens - 1


def test_whoever_is_to_be_forgotten_is_and_nobody_else(talk: Talk) -> None:
    ann, bob = (talk.turn(said(QUESTIONS[0]), caller) for caller in ("10.0.0.1", "10.0.0.2"))
    cells = talk.cells()

    async def delete(path: str) -> int:
        transport = httpx2.ASGITransport(create_app(talk.edge.asynchronous), client=("10.0.0.1", 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.delete(path)).status_code

    assert talk.edge.portal.call(delete, "/v1/conversations") == 204
    talk.until(lambda: talk.cells() == cells // 2)
    chat = said(QUESTIONS[0], ann.text, QUESTIONS[1])
    assert talk.turn(chat, "10.0.0.1").timings.cache_n == ann.timings.context_n
    assert talk.turn(chat, "10.0.0.2").timings.cache_n == bob.kept_tokens
    assert talk.edge.portal.call(delete, "/conversations") == 204


def test_what_is_being_answered_or_was_left_just_now_is_forgotten_too(talk: Talk) -> None:
    ask = talk.asked(said(QUESTIONS[0]), max_tokens=1000)

    async def forgotten(gone: bool) -> None:
        question = await understand(ask, talk.node, "ann")
        async with aclosing(answered(question, talk.residents, "ann")) as items:
            await anext(items)
            if not gone:
                await talk.core.drop_conversations("ann")
        if gone:
            await talk.core.drop_conversations("ann")

    for gone in (True, False):
        for _ in range(3):
            talk.edge.portal.call(forgotten, gone)
            talk.until(lambda: talk.core.idle)
            assert talk.turn(said(QUESTIONS[0]), max_tokens=1).timings.cache_n == len(
                talk.node.contexts.named("manual").tokens
            )
            talk.edge.portal.call(talk.core.drop_conversations, "ann")
    talk.until(lambda: talk.cells() == 0)


def test_a_conversation_displaces_no_context_that_was_asked_for_by_name(
    tiny_model: Path, cloud: Any, tmp_path: Path
) -> None:
    """The cache has room for one window: three long conversations and the context are more."""
    with opened(tiny_model, cloud.url, tmp_path, kv_memory_bytes=0, cache_ram_bytes=0) as edge:
        talk = Talk(edge)
        context_n = talk.turn(said(QUESTIONS[0])).timings.context_n
        kept = []
        for n in range(5):
            turn = talk.turn(said(f"{n} " + "A long story. " * 120), context=None)
            assert turn.question.prompt_tokens > 400
            kept.append(talk.cells())
            assert talk.core.stats().cells["contexts"] == context_n
        assert max(kept) + context_n <= 2048 < 5 * 400 + context_n and min(kept) > 0
        assert talk.turn(said(QUESTIONS[1])).timings.way == "resident"


@pytest.mark.parametrize("keep_s", [0.0, 1e-6])
def test_nothing_is_kept_where_nothing_is_to_be_or_it_is_too_old(
    tiny_model: Path, cloud: Any, tmp_path: Path, keep_s: float
) -> None:
    with opened(tiny_model, cloud.url, tmp_path, keep_conversations_s=keep_s) as edge:
        talk = Talk(edge)
        first = talk.turn(said(QUESTIONS[0]))
        second = talk.turn(said(QUESTIONS[0], first.text, QUESTIONS[1]))
        assert second.timings.cache_n == first.timings.context_n > 0
        talk.until(lambda: talk.cells() == 0)


def test_nothing_of_a_conversation_is_on_the_disk(talk: Talk, folder: Path) -> None:
    secret = "My number is 5 5 1 7 3 and nobody knows."
    first = talk.turn(said(secret))
    assert len(first.text) > 10
    talk.turn(said(secret, first.text, QUESTIONS[1]))
    written = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    assert b"manual" in written and len(written) > 10_000
    assert secret.encode() not in written and first.text.encode() not in written
    for ids in (first.question.prompt, np.array(talk.node.engine.tokenize(first.text))):
        for form in ("<H", ">H", "<I", ">I"):
            packed = [struct.pack(form, id) for id in ids.tolist()]
            assert not any(b"".join(packed[at : at + 6]) in written for at in range(len(packed) - 6))


def test_tokens_behind_a_named_context_wait_for_nobody_who_reads(talk: Talk) -> None:
    """All others are read in turn."""
    reading, over = threading.Event(), threading.Event()

    def read() -> None:
        reading.set()
        assert over.wait(60)

    async def story() -> None:
        asked = talk.asked(said(QUESTIONS[0]))
        busy = asyncio.create_task(talk.node.readers.run(asked, "bob", read))
        assert await asyncio.to_thread(reading.wait, 60)
        waiting = asyncio.create_task(understand(asked, talk.node, "ann"))
        told = await understand(Ask(prompt=(1, 2, 3), context="manual"), talk.node, "ann")
        assert told.prompt.tolist() == [1, 2, 3] and not waiting.done()
        over.set()
        await asyncio.gather(busy, waiting)

    talk.edge.portal.call(story)
