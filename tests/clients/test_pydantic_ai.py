"""pydantic-ai, with its OpenAI models for chats and responses."""

from typing import Any

import pytest

pydantic_ai = pytest.importorskip("pydantic_ai", reason="make clients")
from pydantic import BaseModel  # noqa: E402
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

SETTINGS = {"temperature": 0.0, "max_tokens": 80}


class Part(BaseModel):
    """A part of the machine."""

    name: str
    code: int


@pytest.fixture(scope="module")
def model(site: Any) -> Any:
    return OpenAIChatModel(site.manual, provider=OpenAIProvider(base_url=site.v1, api_key="none"))


def test_text(model: Any) -> None:
    result = Agent(model, instructions="Be short.", model_settings=SETTINGS).run_sync("What is the code of the pump?")
    assert result.output and result.usage.output_tokens > 0


def test_streamed(model: Any) -> None:
    result = Agent(model, model_settings=SETTINGS).run_stream_sync("What is the code of the pump?")
    assert "".join(result.stream_text(delta=True))


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput, PromptedOutput])
def test_output(model: Any, kind: Any) -> None:
    agent = Agent(model, output_type=kind(Part), model_settings=SETTINGS, retries=2)
    assert isinstance(agent.run_sync("What is the pump's name and code?").output, Part)


def test_a_tool_is_offered(model: Any) -> None:
    called = []
    agent = Agent(model, output_type=ToolOutput(Part), model_settings=SETTINGS, retries=2)

    @agent.tool_plain
    def code_of(part: str) -> int:
        """The code of a part."""
        called.append(part)
        return 114

    try:
        output = agent.run_sync("Look up the code of the pump.", usage_limits=pydantic_ai.UsageLimits(request_limit=4))
        assert isinstance(output.output, Part)
    except pydantic_ai.UsageLimitExceeded:
        assert called and all(isinstance(part, str) for part in called)  # a small model calls again and again


def test_responses(site: Any) -> None:
    model = OpenAIResponsesModel(site.manual, provider=OpenAIProvider(base_url=site.v1, api_key="none"))
    assert Agent(model, model_settings=SETTINGS).run_sync("What is the code of the pump?").output
