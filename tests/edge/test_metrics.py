"""What /metrics tells: numbers that Prometheus reads, that add up, and nothing of what was said."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from preread.edge.app import create_app
from preread.edge.edge import AsyncEdge
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.testing.cloud import serving

WINDOW_TOKENS = 2048


@dataclass(frozen=True)
class Watched:
    """An edge and what it tells over HTTP."""

    url: str
    edge: AsyncEdge

    def text(self) -> str:
        answer = httpx2.get(f"{self.url}/metrics")
        assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return answer.text

    def numbers(self) -> dict[tuple[str, ...], float]:
        """Every sample: (its name, its labels' values) → its value."""
        found = {}
        for family in text_string_to_metric_families(self.text()):
            assert family.documentation and family.type in ("gauge", "counter", "histogram")
            for sample in family.samples:
                key = (sample.name, *sample.labels.values())
                assert key not in found
                found[key] = sample.value
        return found

    def ask(self, content: str, context: str | None = "manual", max_tokens: int = 8) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "temperature": 0}
        body |= {} if context is None else {"context": context}
        answer = httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        return dict(answer.json())


@pytest.fixture(scope="module")
def watched(tiny_model: Path, cloud: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("edge")
    edge = AsyncEdge(str(tiny_model), cloud.url, rung="lossless", window_tokens=WINDOW_TOKENS, folder=folder)
    with serving(create_app(edge)) as url:
        yield Watched(url, edge)


def grown(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float], *key: str) -> float:
    return after[key] - before.get(key, 0.0)


def test_tokens_and_answers_are_those_of_the_answers_timings(watched: Watched) -> None:
    watched.ask("Hello.")  # brings the context
    before = watched.numbers()
    answers = [watched.ask(f"{n}. Where is part {n * n}?", "manual" if n % 2 else None) for n in range(4)]
    after = watched.numbers()
    timings = [answer["timings"] for answer in answers]
    ended = sum(answer["choices"][0]["finish_reason"] == "stop" for answer in answers)
    assert grown(before, after, "preread_tokens_total", "prompt") == sum(t["prompt_n"] for t in timings) > 40
    assert grown(before, after, "preread_tokens_total", "answer") == sum(t["predicted_n"] for t in timings) + ended
    assert grown(before, after, "preread_tokens_total", "context") == 0
    assert grown(before, after, "preread_steps_total") >= len(answers)
    for way in ("resident", "none"):
        assert grown(before, after, "preread_answers_total", way) == 2
        assert grown(before, after, "preread_time_to_first_token_seconds_count", way) == 2
        seconds = sum(t["ttft_ms"] for t in timings if t["way"] == way) / 1e3
        assert grown(before, after, "preread_time_to_first_token_seconds_sum", way) == pytest.approx(seconds, rel=0.01)
    assert grown(before, after, "preread_time_per_output_token_seconds_count") == len(answers)


def test_a_context_that_is_computed_or_comes_is_counted(watched: Watched, cloud: Any) -> None:
    cloud.publish("leaflet", "The red lamp means that the tank is empty. " * 12)
    before = watched.numbers()
    timings = watched.ask("Which?", "leaflet")["timings"]
    after = watched.numbers()
    received = grown(before, after, "preread_received_bytes_total", "cloud")
    computed = grown(before, after, "preread_tokens_total", "context")
    assert received >= timings["bytes_received"]
    assert computed >= timings["context_n"] - timings["cache_n"]
    assert received or computed
    assert grown(before, after, "preread_answers_total", timings["way"]) == 1


def test_cells_are_of_contexts_and_conversations_when_everybody_has_left(watched: Watched) -> None:
    asking = [threading.Thread(target=watched.ask, args=(f"{n}?", None, 100)) for n in range(6)]
    for one in asking:
        one.start()
    seen = []
    while any(one.is_alive() for one in asking):
        seen.append(watched.numbers())
    assert max(now["preread_requests_running",] + now["preread_requests_waiting",] for now in seen) > 0
    assert max(now["preread_kv_cells", "requests"] for now in seen) > 0
    end_s, now = time.monotonic() + 60, watched.numbers()
    while now["preread_requests_running",] and time.monotonic() < end_s:
        now = watched.numbers()
    assert now["preread_requests_running",] == now["preread_requests_waiting",] == 0
    assert now["preread_contexts_loading",] == now["preread_kv_cells", "requests"] == 0
    assert now["preread_kv_cells", "contexts"] > 0 and now["preread_kv_cells", "conversations"] > 0
    cells = {of: now["preread_kv_cells", of] for of in ("contexts", "conversations", "requests", "free")}
    engine = watched.edge.node.engine
    assert sum(cells.values()) == engine.cells and min(cells.values()) >= 0
    assert now["preread_kv_bytes", "engine"] == engine.kv_memory_bytes
    contexts = len(watched.edge.node.core.residents())
    assert 0 < now["preread_sequences_free",] < len(engine.sequences) - contexts, "conversations have some"


def test_nothing_of_what_is_said_or_asked_about_is_told(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    secret = f"Zq{secrets.token_hex(8)}"
    with caplog.at_level("DEBUG"):
        answer = watched.ask(f"My name is {secret}.")["choices"][0]["message"]["content"]
    (logged,) = (record for record in caplog.records if record.name == "preread.edge.metrics")
    assert logged.fields["predicted_n"] > 0 and all(
        isinstance(value, int | float | str) for value in logged.fields.values()
    )
    assert secret not in caplog.text and json.dumps(answer)[1:-1] not in caplog.text
    told = watched.text()
    assert secret not in told and "manual" not in told and json.dumps(answer)[1:-1] not in told
    known = watched.edge.node.contexts.named("manual").entry.context
    assert known[:12] not in told, "which contexts are asked about is told to nobody either"
    assert "127.0.0.1" not in told


def test_where_keys_are_set_metrics_need_one(watched: Watched, edge: Any) -> None:
    access = Access(Keys.of(["asker", "read:reader"], "ask"))

    async def status(key: str | None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        transport = httpx2.ASGITransport(create_app(edge.opened, access))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/metrics", headers=headers)).status_code

    assert [edge.run(lambda key=key: status(key)) for key in (None, "reader", "asker")] == [401, 403, 200]
