"""LangChain (langchain-openai's ChatOpenAI)."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest

langchain_openai = pytest.importorskip("langchain_openai", reason="make clients")
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from pydantic import BaseModel  # noqa: E402


class Part(BaseModel):
    """A part of the machine."""

    name: str
    kind: Literal["moving", "fixed"]


@tool
def code_of(part: str) -> int:
    """The code of a part."""
    return 114


@pytest.fixture(scope="module")
def chat(site: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        model=site.manual,
        base_url=site.v1,
        api_key="none",
        temperature=0,
        max_tokens=60,
        max_retries=0,
        stream_usage=True,
    )


def test_invoke(chat: Any) -> None:
    answer = chat.invoke([SystemMessage("Be short."), HumanMessage("What is the code of the pump?")])
    assert answer.content and answer.usage_metadata["output_tokens"] > 0


def test_stream_brings_usage(chat: Any) -> None:
    whole = None
    for chunk in chat.stream("What is the code of the pump?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content and whole.usage_metadata["output_tokens"] > 0


def test_bind_tools(chat: Any) -> None:
    calling = chat.bind_tools([code_of], tool_choice="code_of")
    asked = HumanMessage("What is the code of the pump?")
    answer = calling.invoke([asked])
    (call,) = answer.tool_calls
    assert call["name"] == "code_of" and isinstance(call["args"]["part"], str) and not answer.invalid_tool_calls
    after = chat.bind_tools([code_of]).invoke([asked, answer, ToolMessage("114", tool_call_id=call["id"])])
    assert isinstance(after, AIMessage) and (after.content or after.tool_calls)


def test_bind_tools_streamed(chat: Any) -> None:
    whole = None
    for chunk in chat.bind_tools([code_of], tool_choice="required").stream("The code of the pump?"):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert call["name"] == "code_of" and isinstance(call["args"]["part"], str)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_with_structured_output(chat: Any, method: str) -> None:
    asked = 'Describe the pump as JSON: {"name": "...", "kind": "moving" or "fixed"}'
    given = chat.with_structured_output(Part, method=method, include_raw=True).invoke(asked)
    if method == "json_mode":  # any object is JSON: whether it is a Part is up to the model
        assert given["raw"].content.lstrip().startswith("{")
    else:
        assert isinstance(given["parsed"], Part)


def test_use_responses_api(site: Any) -> None:
    chat = langchain_openai.ChatOpenAI(
        model=site.manual, base_url=site.v1, api_key="none", temperature=0, max_tokens=16, use_responses_api=True
    )
    assert chat.invoke("What is the code of the pump?").text


def test_the_programs_of_its_guide_run(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "langchain.md"
    programs = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    for program in programs:
        here = program.replace("http://127.0.0.1:8080/v1", site.v1).replace("preread@start", site.manual)
        exec(here, {"__name__": "guide"})
        assert capsys.readouterr().out.strip()
    assert len(programs) == 2
