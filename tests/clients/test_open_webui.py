"""Open WebUI in front of an edge, through its own API: `scripts/clients --open-webui`."""

import json
import os
import urllib.request
from typing import Any

import pytest

WEBUI = os.environ.get("PREREAD_TESTED_WEBUI", "")
pytestmark = pytest.mark.skipif(not WEBUI, reason="scripts/clients --open-webui")


def asked(path: str, body: Any = None, token: str = "") -> bytes:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{WEBUI}{path}", data, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def token() -> str:
    return str(json.loads(asked("/api/v1/auths/signin", {"email": "", "password": ""}))["token"])


def test_models_are_listed(site: Any, token: str) -> None:
    names = {model["id"] for model in json.loads(asked("/api/models", token=token))["data"]}
    assert {site.model, site.manual} <= names


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(site: Any, token: str, stream: bool) -> None:
    body = {
        "model": site.manual,
        "messages": [{"role": "user", "content": "What is the code of the pump?"}],
        "max_tokens": 12,
        "stream": stream,
    }
    answer = asked("/api/chat/completions", body, token)
    if stream:
        assert answer.rstrip().endswith(b"data: [DONE]") and answer.count(b"chat.completion.chunk") > 2
    else:
        assert json.loads(answer)["choices"][0]["message"]["content"]
