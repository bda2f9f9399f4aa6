"""instructor, in the modes that people use with servers of their own."""

from typing import Any

import pytest

instructor = pytest.importorskip("instructor", reason="make clients")
import openai  # noqa: E402
from pydantic import BaseModel  # noqa: E402


class Part(BaseModel):
    """A part of the machine."""

    name: str
    code: int


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "JSON", "MD_JSON"])
def test_create(site: Any, mode: str) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=site.v1, api_key="none"), mode=instructor.Mode[mode])
    messages = [{"role": "user", "content": "What is the pump's name and code?"}]
    asked = {"model": site.manual, "messages": messages, "temperature": 0, "max_tokens": 80, "max_retries": 2}
    assert isinstance(client.chat.completions.create(response_model=Part, **asked), Part)


def test_create_partial(site: Any) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=site.v1, api_key="none"), mode=instructor.Mode.TOOLS)
    messages = [{"role": "user", "content": "What is the pump's name and code?"}]
    asked = {"model": site.manual, "messages": messages, "temperature": 0, "max_tokens": 80}
    *_, last = client.chat.completions.create_partial(response_model=Part, **asked)
    assert isinstance(last.code, int)
