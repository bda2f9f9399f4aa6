"""How far a prompt is, as clients are told that ask with llama-server's `return_progress`."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.edge import sending
from preread.edge.app import create_app
from preread.edge.core import Core
from preread.edge.edge import AsyncEdge
from preread.edge.progress import Telling, UnderWay
from preread.edge.request import Progress
from preread.testing.cloud import serving
from preread.values import Span

LONG = "One two three four five six seven eight nine ten. " * 30
counts = st.integers(0, 3000)
looks = st.lists(st.none() | st.builds(Progress, total=st.just(1000), cache=counts, processed=counts, time_ms=counts))


@given(looks=looks, last=st.none() | st.builds(Progress, st.just(1000), counts, counts, counts))
def test_what_is_told_begins_with_what_was_there_only_grows_and_ends_with_all(
    looks: list[Progress | None], last: Progress | None
) -> None:
    telling = Telling()
    told = [one for look in looks if (one := telling.next(look)) is not None]
    assert len(told) <= len([look for look in looks if look is not None])
    told += telling.last(last)
    if not told:
        assert last is None and not any(looks)
        return
    assert told[0].processed == told[0].cache <= 1000
    assert {(one.total, one.cache) for one in told} == {(1000, told[0].cache)}
    processed = [one.processed for one in told]
    assert processed == sorted(set(processed)) and processed[-1] <= 1000
    assert last is None or processed[-1] == 1000


def under_way(core: Any, *, begun: bool, **coming: Any) -> Progress | None:
    """How far a question is, with 100 tokens behind a context of 400 in two groups of layers and four chunks."""
    manifest = SimpleNamespace(chunks=[(0, 100), (100, 200), (200, 300), (300, 400)], groups=[(0, 4), (4, 8)])
    places = [
        SimpleNamespace(tokens=Span(*tokens), chunk=chunk, group=group)
        for chunk, tokens in enumerate(manifest.chunks)
        for group in range(2)
    ]
    known = SimpleNamespace(entry=SimpleNamespace(context="c"), tokens=range(400))
    question = SimpleNamespace(known=known, reuse=400, prompt=range(100), prompt_tokens=500)
    alone = coming.pop("alone", False)
    resumed = coming.pop("resumed", 0)
    way = None
    if coming:
        way = SimpleNamespace(
            **{"began_s": 0.0, "spec": SimpleNamespace(manifest=manifest, places=places), "loaded": None} | coming
        )
    asking: Any = SimpleNamespace(question=question, coming=way)
    generation: Any = SimpleNamespace(id=1, begun_s=1.0 if begun else None, alone=alone, resumed_tokens=resumed)
    return UnderWay(asking, generation).progress(core)


def loaded(*cells: tuple[int, int], seconds: float | None = None) -> Any:
    return SimpleNamespace(origins=dict.fromkeys(cells, "cloud"), seconds=seconds)


@pytest.mark.parametrize(
    ("begun", "coming", "computed", "filled", "cache", "processed"),
    [
        (True, {}, 40, 0, 400, 440),
        (True, {"resumed": 30}, 40, 0, 430, 440),
        (False, {"loaded": loaded()}, 0, 0, 0, 0),
        (False, {"loaded": loaded((0, 0), (0, 1), (1, 0))}, 0, 0, 0, 150),
        (False, {"loaded": loaded((0, 0), (0, 1))}, 0, 70, 0, 170),
        (True, {"loaded": loaded((0, 0), (0, 1))}, 20, 0, 0, 120),
        (True, {"loaded": loaded(seconds=0.1)}, 20, 0, 0, 420),
        (False, {"reason": "no cloud"}, 0, 250, 0, 250),
        (True, {"reason": "no cloud"}, 10, 0, 0, 410),
        (True, {"loaded": loaded(), "alone": True}, 300, 0, 0, 300),
    ],
)
def test_tokens_are_processed_when_they_are_in_the_cache_however_they_came(
    begun: bool, coming: dict[str, Any], computed: int, filled: int, cache: int, processed: int
) -> None:
    core = SimpleNamespace(computed=lambda id: computed, filled=lambda context: filled)
    found = under_way(core, begun=begun, **coming)
    assert found is not None and (found.total, found.cache, found.processed) == (500, cache, processed)


def test_who_waits_for_a_turn_is_told_nothing_yet() -> None:
    core = SimpleNamespace(computed=lambda id: 0, filled=lambda context: 0)
    assert UnderWay().progress(core) is None and under_way(core, begun=False) is None  # type: ignore[arg-type]


# Of real answers


@pytest.fixture(scope="module")
def url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    edge = AsyncEdge(str(tiny_model), window_tokens=2048, folder=tmp_path_factory.mktemp("edge"))
    with serving(create_app(edge)) as url:
        yield url


def told(url: str, path: str = "/v1/completions", **fields: Any) -> tuple[list[dict[str, int]], list[Any]]:
    """What was told of the prompt, and the other events."""
    body = {"max_tokens": 3, "temperature": 0, "stream": True, "return_progress": True} | fields
    answer = httpx2.post(url + path, json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    return progress, [chunk for chunk in chunks if "prompt_progress" not in chunk]


def test_a_stream_that_asks_is_told_before_its_first_token(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PROGRESS_S", 0.001)
    read: list[int] = []
    computed = Core.computed
    monkeypatch.setattr(Core, "computed", lambda *args: read.append(computed(*args)) or read[-1])
    progress, answer = told(url, prompt=f"First. {LONG}")
    total = answer[-1]["timings"]["prompt_n"]
    assert progress[0] | {"time_ms": 0} == {"total": total, "cache": 0, "processed": 0, "time_ms": 0}
    assert progress[-1]["processed"] == total == progress[-1]["total"] and len(progress) >= 2
    assert set(read) - {0, total} or len(progress) == 2, "what is told between is what the schedule counts"
    again, _ = told(url, prompt=f"First. {LONG}")
    assert 0 < again[0]["cache"] == again[0]["processed"] < total == again[-1]["processed"]


def test_who_does_not_ask_is_told_nothing(url: str) -> None:
    for fields in ({"return_progress": False}, {"return_progress": None}):
        assert told(url, prompt=LONG, **fields)[0] == []
    whole = httpx2.post(
        f"{url}/v1/completions",
        json={"prompt": "A", "max_tokens": 1, "return_progress": True},
        trust_env=False,
        timeout=60,
    )
    assert whole.status_code == 200 and "prompt_progress" not in whole.text, "as from llama-server"


def test_openais_client_reads_such_a_stream(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(trust_env=False))
    messages: Any = [{"role": "user", "content": LONG}]
    with client.chat.completions.create(
        model="m", messages=messages, max_tokens=3, stream=True, n=2, extra_body={"return_progress": True}
    ) as stream:
        chunks = list(stream)
    first = [chunk for chunk in chunks if getattr(chunk, "prompt_progress", None)]
    assert first == chunks[: len(first)] and len(first) >= 2 and first[0].choices[0].delta.content is None
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


@pytest.mark.parametrize(("path", "field"), [("/v1/responses", "input"), ("/v1/messages", "messages")])
def test_apis_whose_events_have_no_place_for_it_refuse_it(url: str, path: str, field: str) -> None:
    said: Any = "A" if field == "input" else [{"role": "user", "content": "A"}]
    body = {"model": "m", "max_tokens": 3, field: said, "return_progress": True}
    answer = httpx2.post(url + path, json=body, trust_env=False, timeout=60)
    assert answer.status_code == 400 and "return_progress" in answer.text


def test_of_a_published_context_it_is_told_how_it_came(edge: Any) -> None:
    edge.forget()
    fields: dict[str, Any] = {"context": "manual", "messages": [{"role": "user", "content": "How?"}]}
    came, answer = told(edge.url, "/v1/chat/completions", **fields)
    context, total = answer[-1]["timings"]["context_n"], came[-1]["total"]
    assert came[0]["cache"] == 0 and came[-1]["processed"] == total > context > 200
    there, _ = told(edge.url, "/v1/chat/completions", **fields)
    assert there[0]["cache"] == there[0]["processed"] == context and there[-1]["processed"] == total
