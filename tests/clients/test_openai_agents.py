"""openai-agents, with models for chats and responses."""

import asyncio
from typing import Any

import pytest

agents = pytest.importorskip("agents", reason="make clients")
if not hasattr(agents, "Runner"):
    pytest.skip("make clients", allow_module_level=True)
import openai  # noqa: E402
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner  # noqa: E402
from pydantic import BaseModel  # noqa: E402

agents.set_tracing_disabled(True)


class Part(BaseModel):
    name: str
    code: int


@agents.function_tool
def code_of(part: str) -> str:
    """The code of a part."""
    return "114"


def agent(site: Any, kind: Any = OpenAIChatCompletionsModel, **more: Any) -> Any:
    client = openai.AsyncOpenAI(base_url=site.v1, api_key="none")
    settings = ModelSettings(temperature=0, max_tokens=80, **more.pop("settings", {}))
    return Agent("Help", model=kind(site.manual, client), model_settings=settings, **more)


def test_text(site: Any) -> None:
    assert Runner.run_sync(agent(site), "What is the code of the pump?").final_output


def test_output_type(site: Any) -> None:
    assert isinstance(Runner.run_sync(agent(site, output_type=Part), "Describe the pump.").final_output, Part)


def test_a_tool_is_called_and_its_result_read(site: Any) -> None:
    stop = "stop_on_first_tool"  # a small model would call it again and again
    asking = agent(site, tools=[code_of], settings={"tool_choice": "required"}, tool_use_behavior=stop)
    result = Runner.run_sync(asking, "What is the code of the pump?", max_turns=4)
    kinds = [item.type for item in result.new_items]
    assert "tool_call_item" in kinds and "tool_call_output_item" in kinds and result.final_output == "114"


def test_streamed(site: Any) -> None:
    async def events() -> list[Any]:
        result = Runner.run_streamed(agent(site), "What is the code of the pump?")
        return [event async for event in result.stream_events()]

    assert any(event.type == "raw_response_event" for event in asyncio.run(events()))


def test_responses(site: Any) -> None:
    assert Runner.run_sync(agent(site, OpenAIResponsesModel), "What is the code of the pump?").final_output
