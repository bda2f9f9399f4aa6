"""The edge's page: what it tells of the last answers, to whom, and what it tells nobody."""

import asyncio
import json
import re
from typing import Any

import httpx2
import pytest

from preread.edge import history, page
from preread.edge.app import create_app
from preread.page import routes
from preread.page.kvmap import CLOUD, HERE, RESIDENT
from preread.page.values import Answer
from preread.store.auth import Keys
from preread.store.guard import Access

SECRET = "zanzibar"


def ask(edge: Any, context: str | None = "manual", **fields: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": f"What is {SECRET}?"}],
        "max_tokens": 3,
        "temperature": 0,
        **fields,
    }
    body |= {} if context is None else {"context": context}
    answer = httpx2.post(f"{edge.url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text


def newest(edge: Any, caller: str = "127.0.0.1") -> Answer:
    residents = edge.opened.residents

    async def look() -> tuple[Answer, ...]:
        found: tuple[Answer, ...] = residents.history.of(caller, residents.node.refinement, 1)
        return found

    (answer,) = edge.run(look)
    assert isinstance(answer, Answer)
    return answer


def get(edge: Any, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(f"{edge.url}{path}", headers=headers, trust_env=False, timeout=60)


def test_a_streamed_context_came_from_the_cloud_cell_by_cell_and_the_next_time_it_was_resident(edge: Any) -> None:
    edge.forget()
    ask(edge)
    first = newest(edge)
    assert first.kv is not None and first.kv.complete and first.kv.rung == "lossless"
    assert set("".join(first.kv.cells)) == {CLOUD.letter} and first.context == "manual"
    manifest = edge.opened.node.contexts.named("manual").manifest
    assert (first.kv.chunks, first.kv.layers) == (manifest.chunks, tuple(group.layers for group in manifest.groups))
    assert first.ttft_ms == pytest.approx(sum(part.ms for part in first.parts))
    assert "load" in {part.key for part in first.parts} and first.received_bytes > 0 and not first.live
    ask(edge)
    second = newest(edge)
    assert second.kv is not None and set("".join(second.kv.cells)) == {RESIDENT.letter}
    assert second.before is not None and "came from the cloud at lossless" in second.before
    assert second.number > first.number and second.question_tokens == first.question_tokens


def test_what_is_computed_here_says_so_and_why(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    edge.forget()
    cut = property(lambda _: "somebody cut the cable", lambda *_: None)  # whatever a sync finds meanwhile
    monkeypatch.setattr(type(edge.opened.node.contexts), "unreachable", cut, raising=False)
    ask(edge)
    answer = newest(edge)
    assert answer.kv is not None and set("".join(answer.kv.cells)) == {HERE.letter}
    assert answer.reason is not None and "cut the cable" in answer.reason
    assert {part.key for part in answer.parts} <= {"queue", "here", "question"}
    edge.forget()


def test_an_answer_without_a_context_has_no_map(edge: Any) -> None:
    ask(edge, None)
    assert newest(edge).kv is None and newest(edge).context is None and newest(edge).question_tokens > 0


def test_uses_and_hits_are_counted_for_each_context(edge: Any) -> None:
    edge.forget()
    counted, context = edge.opened.residents.history, edge.opened.node.contexts.entry("manual").context
    used, hits = counted.used[context], counted.hits[context]
    ask(edge)
    ask(edge)
    assert (counted.used[context] - used, counted.hits[context] - hits) == (2, 1)


def test_nothing_that_was_asked_or_answered_is_on_the_page_or_in_memory_behind_it(edge: Any) -> None:
    ask(edge)
    for path in ("/", "/page/state"):
        assert SECRET not in get(edge, path).text
    kept = edge.opened.residents.history
    assert SECRET not in repr(kept._past) and kept._live == []


def test_a_caller_sees_no_answers_of_others(edge: Any) -> None:
    ask(edge)

    async def of_another() -> tuple[Answer, ...]:
        found: tuple[Answer, ...] = edge.opened.residents.history.of("10.0.0.7", None, 10)
        return found

    assert edge.run(of_another) == ()


def test_no_more_answers_are_kept_than_are_said(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edge.opened.residents.history._past.maxlen == history.MOST
    monkeypatch.setattr(history, "_MOST_CONTEXTS", 1)
    ask(edge)
    kept = edge.opened.residents.history
    assert max(map(len, (kept.used, kept.hits, kept._came))) <= 1


def test_the_page_allows_nothing_from_elsewhere_and_nothing_inline(edge: Any) -> None:
    page = get(edge, "/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["cache-control"] == "no-store"
    tags = re.sub(r'"[^"]*"', '""', page.text)
    assert not re.search(r"<script(?![^>]*src=)|<style|<[^>]* (?:style|on\w+)=", tags)
    for name, media in routes.FILES.items():
        file = get(edge, f"/page/{name}")
        assert file.headers["content-type"] == media and "content-security-policy" in file.headers
    for other in ("/page/routes.py", "/page/..%2froutes.py", "/page/nothing"):
        assert get(edge, other).status_code == 404
    assert httpx2.post(f"{edge.url}/", json={}, trust_env=False).status_code == 405


def test_the_page_tells_names_of_contexts_tiers_link_queue_and_batch(edge: Any) -> None:
    ask(edge)
    state = get(edge, "/page/state").json()
    assert set(state) == {"choices", "latest", "earlier", "contexts", "machine"}
    assert "manual" in state["choices"] and "in the engine&#39;s cache" in state["contexts"]
    assert "can be reached" in state["machine"] and "tokens a step" in state["machine"]
    assert all(part in get(edge, "/").text for part in state["latest"].split("\n") if "sentence" in part)


def test_events_tell_all_first_and_then_what_changes_as_it_comes(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_LATER_S", 0.05)  # a fast machine is done with it within a second
    monkeypatch.setattr(page, "_SOON_S", 0.05)
    edge.forget()
    seen: list[dict[str, str]] = []

    async def watch() -> None:
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=60) as client,
            client.stream("GET", f"{edge.url}/page/events") as response,
        ):
            assert response.headers["content-type"].startswith("text/event-stream")
            asking: asyncio.Task[None] | None = None
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                seen.append(json.loads(line[6:]))
                if asking is None:
                    asking = asyncio.create_task(asyncio.to_thread(ask, edge, max_tokens=40))
                if asking.done() and 'class="live"' not in (last := seen[-1].get("latest", "")) and "came" in last:
                    return

    asyncio.run(asyncio.wait_for(watch(), 60))
    assert set(seen[0]) == {"choices", "latest", "earlier", "contexts", "machine"}
    later = [event["latest"] for event in seen[1:] if "latest" in event]
    assert any('class="live"' in html for html in later), "it was not told while it came"
    assert "came from the cloud at lossless" in later[-1] and 'class="live"' not in later[-1]
    assert all(len(event) < 5 for event in seen[1:]), "what has not changed was told again"


def test_who_watches_too_often_is_refused(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_WATCHERS", 2)

    async def main() -> int:
        transport = httpx2.ASGITransport(create_app(edge.opened))
        status = 0

        async def one() -> None:
            nonlocal status
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
                status = max(status, (await client.get("/page/events")).status_code)

        watching = [asyncio.create_task(one()) for _ in range(2)]
        while not status:
            await asyncio.sleep(0.01)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        return status

    assert edge.run(main) == 429


def test_where_there_are_keys_the_page_is_empty_and_what_is_in_it_needs_one(edge: Any) -> None:
    ask(edge)

    async def main() -> list[tuple[int, str]]:
        app = create_app(edge.opened, Access(Keys.of(["one", "two", "three", "read:reader", "visitor"], "ask")))
        transport, told = httpx2.ASGITransport(app), []
        async with httpx2.AsyncClient(transport=transport, base_url="http://edge.elsewhere") as client:
            for path, key in (
                ("/", ""), ("/page/page.css", ""), ("/page/state", ""), ("/page/events", ""),
                ("/page/state", "reader"), ("/page/state", "visitor"),
            ):  # fmt: skip
                answer = await client.get(path, headers={"Authorization": f"Bearer {key}"} if key else {})
                told.append((answer.status_code, answer.text))
        return told

    shell, style, state, events, reader, asker = edge.run(main)
    assert shell[0] == style[0] == asker[0] == 200 and state[0] == events[0] == 401 and reader[0] == 403
    assert "data-locked" in shell[1] and "manual" not in shell[1] and "smollm" not in shell[1]
    assert "manual" in json.loads(asker[1])["contexts"]
    assert "Nothing was asked yet" in json.loads(asker[1])["latest"], "others' answers are not told"
