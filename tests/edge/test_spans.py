"""Spans tell where an answer's time went, in numbers, and cost nothing where nobody wants them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from preread import Edge
from preread.edge import spans
from preread.edge.app import create_app
from preread.testing.beliefs import slow_machine
from preread.values import ContextId

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs OpenTelemetry's SDK: pip install opentelemetry-sdk")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

SECRET = "My name is Zqxwyl Vrbntk."


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("preread"))
    return exporter


@pytest.fixture(scope="module")
def opened(tiny_model: Path, cloud: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    with Edge(str(tiny_model), cloud.url, rung="lossless", window_tokens=2048, folder=folder) as edge:
        edge.portal.call(edge.asynchronous.node.settled)
        yield edge


def asked(edge: Edge, content: str = SECRET, **fields: Any) -> dict[str, Any]:
    """The answer over HTTP to a question about the manual, which is not in the cache."""
    edge.portal.call(edge.asynchronous.node.forget)
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, "context": "manual"}

    async def post() -> dict[str, Any]:
        transport = httpx2.ASGITransport(create_app(edge.asynchronous))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return dict((await client.post("/v1/chat/completions", json=body | fields)).json())

    return edge.portal.call(post)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == f"preread.{name}"]


def noted(span: ReadableSpan, name: str) -> Any:
    return dict(span.attributes or {})[f"preread.{name}"]


def test_an_answer_about_a_streamed_context_is_one_trace(opened: Edge, exporter: InMemorySpanExporter) -> None:
    opened.asynchronous.node.beliefs = slow_machine()  # nothing is computed that can be streamed
    timings = asked(opened)["timings"]
    assert timings["way"] == "streamed"
    found = {name: named(exporter, name) for name in ("answer", "match", "plan", "prefill", "generate")}
    assert {name: len(of) for name, of in found.items()} == dict.fromkeys(found, 1)
    (answer,), (match,), (plan,), (prefill,), (generate,) = found.values()
    segments = noted(plan, "segments")
    for name in ("fetch", "decode", "inject"):
        assert len(named(exporter, name)) == segments > 0
        assert {span.parent and span.parent.span_id for span in named(exporter, name)} == {plan.context.span_id}
    for span in (match, plan, prefill, generate):
        assert span.parent is not None and span.parent.span_id == answer.context.span_id
    assert sum(noted(span, "bytes") for span in named(exporter, "fetch")) == noted(plan, "bytes")
    assert noted(plan, "context") == opened.asynchronous.node.contexts.named("manual").entry.context
    assert noted(match, "prompt_tokens") == timings["prompt_n"] + timings["cache_n"]
    assert noted(match, "shared_tokens") == timings["cache_n"]
    assert noted(prefill, "tokens") == timings["prompt_n"]
    assert noted(generate, "tokens") == 8
    for span in exporter.get_finished_spans():
        assert answer.start_time <= span.start_time + 5_000_000 and span.end_time <= answer.end_time
        assert span.status.is_ok or span.status.is_unset


def test_a_context_that_is_computed_is_prefilled(opened: Edge, exporter: InMemorySpanExporter) -> None:
    whole = len(opened.asynchronous.node.contexts.named("manual").tokens)
    opened.portal.call(opened.asynchronous.node.forget)
    opened.ask("?", context="manual", local=True, max_tokens=1)
    assert whole in [noted(span, "tokens") for span in named(exporter, "prefill")]
    assert not named(exporter, "fetch") and not named(exporter, "answer"), "there was no request over HTTP"


def test_spans_have_numbers_and_ids_and_nothing_of_what_is_said(opened: Edge, exporter: InMemorySpanExporter) -> None:
    answer = asked(opened)
    asked(opened, context="no such context " + SECRET)
    told = exporter.get_finished_spans()
    assert len(told) > 5
    known = opened.asynchronous.node.contexts.named("manual").entry.context
    for span in told:
        for name, value in (span.attributes or {}).items():
            assert isinstance(value, int | float) or (name, value) == ("preread.context", known)
        assert not span.events and not span.status.description
    written = " ".join(span.to_json() for span in told)
    assert "Zqxwyl" not in written and json.dumps(answer["choices"][0]["message"]["content"])[1:-1] not in written


def test_of_a_failure_no_more_is_told_than_that_there_was_one(exporter: InMemorySpanExporter) -> None:
    for opening in (spans.span, spans.story):
        with pytest.raises(ValueError), opening("failing"):
            raise ValueError(SECRET)
    for span in named(exporter, "failing"):
        assert not span.status.is_ok and not span.status.is_unset
        assert SECRET not in span.to_json() and not span.events
    assert len(named(exporter, "failing")) == 2


def test_without_the_package_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_tracer", None)
    with spans.story("one", ContextId("0" * 64)) as one, spans.span("two") as two:
        one.note(tokens=1)
        two.note(tokens=2)
        spans.past("three", time.monotonic(), tokens=3)
    blocked = (
        "import sys; sys.modules['opentelemetry'] = None; from preread.edge import app, spans; print(spans._tracer)"
    )
    run = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "None"


def test_without_a_provider_nothing_is_recorded_either() -> None:
    with spans.story("one", ContextId("0" * 64)) as one, spans.span("two") as two:
        assert one._span is None and two._span is None
