"""LlamaIndex, with OpenAILike."""

from typing import Any

import pytest

openai_like = pytest.importorskip("llama_index.llms.openai_like", reason="make clients")
from llama_index.core.llms import ChatMessage  # noqa: E402
from llama_index.core.tools import FunctionTool  # noqa: E402
from pydantic import BaseModel  # noqa: E402


class Part(BaseModel):
    """A part of the machine."""

    name: str
    code: int


def code_of(part: str) -> int:
    """The code of a part."""
    return 114


@pytest.fixture(scope="module")
def llm(site: Any) -> Any:
    return openai_like.OpenAILike(
        model=site.manual,
        api_base=site.v1,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=4096,
        temperature=0,
        max_tokens=60,
        max_retries=0,
    )


def test_chat(llm: Any) -> None:
    assert llm.chat([ChatMessage(role="user", content="What is the code of the pump?")]).message.content


def test_stream_chat(llm: Any) -> None:
    *_, last = llm.stream_chat([ChatMessage(role="user", content="What is the code of the pump?")])
    assert last.message.content


def test_complete(site: Any) -> None:
    llm = openai_like.OpenAILike(model=site.model, api_base=site.v1, api_key="none", is_chat_model=False, max_tokens=8)
    assert llm.complete("The capital of France is").text


def test_chat_with_tools(llm: Any) -> None:
    tool = FunctionTool.from_defaults(code_of)
    answer = llm.chat_with_tools([tool], "What is the code of the pump?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "code_of" and isinstance(call.tool_kwargs["part"], str)


def test_structured_predict(llm: Any) -> None:
    from llama_index.core.prompts import PromptTemplate

    given = llm.structured_predict(Part, PromptTemplate("What is {part}, and its code?"), part="the pump")
    assert isinstance(given, Part)
