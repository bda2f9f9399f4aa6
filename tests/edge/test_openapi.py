"""The description of the edge's API: of all that is served and of nothing else, and answers are as it says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from preread.edge import models
from preread.edge.app import create_app
from preread.edge.body import Refused
from preread.edge.edge import AsyncEdge
from preread.edge.openapi import OPERATIONS
from preread.testing.cloud import serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PLAIN = ("/page/", "/api/", "/v1/page")
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "n")


@pytest.fixture(scope="module")
def url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    edge = AsyncEdge(str(tiny_model), window_tokens=256, folder=tmp_path_factory.mktemp("edge"))
    with serving(create_app(edge)) as url:
        yield url


@pytest.fixture(scope="module")
def described(url: str) -> Any:
    return httpx2.get(f"{url}/openapi.json", trust_env=False).json()


@pytest.fixture(scope="module")
def schema(described: Any) -> Any:
    return schemathesis.openapi.from_dict(described)


def test_what_is_served_is_described_and_nothing_else() -> None:
    """But for the page, for what is named as being elsewhere, and for paths without /v1."""
    app = create_app(AsyncEdge("unopened.gguf"))
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and route.path not in models.ELSEWHERE and not route.path.startswith(PLAIN)
    } - {("GET", "/"), ("GET", "/v1"), ("POST", "/v1")}  # fmt: skip
    twice = {(method, path) for method, path in served if (method, f"/v1{path}") in served}
    assert {(operation.method, operation.path) for operation in OPERATIONS} == served - twice


def test_fields_of_bodies_are_described_but_not_those_that_are_refused(described: Any) -> None:
    schemas = described["components"]["schemas"]
    chat = schemas["Chat"]["properties"]
    assert {"messages", "context", "temperature", "tools"} <= chat.keys() and not chat.keys() & {
        *Refused.__struct_fields__
    }
    content = described["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize("examples", [3, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_answers_and_refusals_are_as_described(operation: Any, examples: int, url: str, schema: Any) -> None:
    """Asked for anything that the description of a body allows, within bounds of time."""
    told = schema[operation.path][operation.method]
    few = settings(
        max_examples=examples if operation.body else 1, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=[*HealthCheck],
    )  # fmt: skip

    with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:

        @few
        @given(case=told.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body = _bounded(case.body)
            sent = case.as_transport_kwargs(base_url=url)
            answer = client.request(
                sent["method"], sent["url"], json=sent.get("json"), params=sent.get("params"),
                headers={"Content-Type": "application/json"},
            )  # fmt: skip
            case.validate_response(answer, checks=CHECKS)

        check()


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    """Of few tokens."""
    few = {name: min(value, 3) for name, value in body.items() if name in LENGTHS and type(value) is int and value > 0}
    return {**body, "max_tokens": 2, **few}
