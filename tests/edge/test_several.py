"""Several answers to one request: made at once, told as they come, and a prompt that choices share is computed once."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from preread.edge import several
from preread.edge.app import create_app
from preread.edge.edge import AsyncEdge
from preread.edge.serving import Limits
from preread.errors import EngineError
from preread.testing.cloud import serving

PROMPT = "One two three four five six seven eight nine ten. " * 10
STANDARD = {"max_tokens": 4, "temperature": 1.0, "seed": 5, "logit_bias": {"0": -100, "1": -100, "2": -100}}


@dataclass(frozen=True)
class Served:
    """An edge of the tiny model that keeps conversations for so long."""

    url: str
    edge: AsyncEdge

    def complete(self, **fields: Any) -> Any:
        return self.post(**fields).json()

    def post(self, **fields: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/completions", json=STANDARD | fields, trust_env=False, timeout=60)

    def computed_tokens(self) -> int:
        """Of prompts, so far."""
        return self.edge.node.core.stats().tokens["prompt"]


@pytest.fixture(scope="module", params=[600.0, 0.0], ids=["kept", "not kept"])
def served(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("edge")
    edge = AsyncEdge(str(tiny_model), keep_conversations_s=request.param, window_tokens=1024, folder=folder)
    with serving(create_app(edge, limits=Limits(requests=16))) as url:
        yield Served(url, edge)


def test_choices_share_their_prompt_where_conversations_are_kept(served: Served) -> None:
    choices, before = 5, served.computed_tokens()
    answer = served.complete(prompt=f"A. {PROMPT}", n=choices)
    computed, prompt = served.computed_tokens() - before, answer["usage"]["prompt_tokens"]
    assert computed == (prompt + choices if served.edge.node.core.keeps else choices * prompt)
    assert len({choice["text"] for choice in answer["choices"]}) > 1
    assert answer["usage"]["completion_tokens"] == 4 * choices
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "it was computed, if only once"


def events(text: str) -> list[Any]:
    *told, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(each) for each in told]


def test_streamed_choices_of_several_prompts_are_the_whole_ones_in_pieces(served: Served) -> None:
    said = {"logit_bias": {"500": 100}}  # whatever its weights come to in steps of other shapes
    fields = {"prompt": [f"C. {PROMPT}", "Two"], "n": 2, **said}
    whole = served.complete(**fields)
    told = events(served.post(**fields, stream=True, stream_options={"include_usage": True}).text)
    texts, ends = [""] * 4, []
    for event in told[:-1]:
        (choice,) = event["choices"]
        assert choice["index"] not in ends, "nothing comes after a choice's end"
        texts[choice["index"]] += choice["text"]
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == [choice["text"] for choice in whole["choices"]] and texts[0] and sorted(ends) == [0, 1, 2, 3]
    assert told[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_failure_ends_all_answers_of_the_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, calls = several.answered, 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise EngineError("the engine is tired")
        return answered(*args)

    monkeypatch.setattr(several, "answered", failing)
    answer = served.post(prompt=PROMPT, n=4, max_tokens=200)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the engine is tired")
    monkeypatch.undo()
    assert len(served.complete(prompt=PROMPT, n=4)["choices"]) == 4


def test_many_answers_take_no_more_of_the_edge_than_their_caller_may_have(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 requests one caller has 8: with others inside there is room for the fewer answers at once."""
    most, now, answered = 0, 0, several.answered

    async def counted(*args: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            async for item in answered(*args):
                yield item
        finally:
            now -= 1

    monkeypatch.setattr(several, "answered", counted)
    assert len(served.complete(prompt="Three", n=20)["choices"]) == 20
    assert most == 8


def test_who_goes_away_leaves_none_of_the_answers_behind(served: Served) -> None:
    with httpx2.stream(
        "POST", f"{served.url}/v1/completions", trust_env=False, timeout=60,
        json=STANDARD | {"prompt": PROMPT, "n": 3, "max_tokens": 700, "stream": True},
    ) as answer:  # fmt: skip
        assert next(answer.iter_lines())
    until(lambda: served.edge.node.core.idle)
    assert served.complete(prompt="Four")["choices"]


def until(true: Callable[[], bool]) -> None:
    async def wait() -> None:
        async with asyncio.timeout(60):
            while not true():
                await asyncio.sleep(0.005)

    asyncio.run(wait())
