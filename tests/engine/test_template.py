"""Templates as transformers renders them, and messages brought into a form that a template takes."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from preread.engine.chat import ChatTemplate
from preread.engine.marks import Controls
from preread.engine.template import compiled
from preread.errors import UsageError

USER, ASSISTANT, SYSTEM = ({"role": role, "content": f"{role} says"} for role in ("user", "assistant", "system"))
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "fan", "arguments": {"é": "<1>", "n": [2]}}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "fan", "content": '{"ok": true}'}
TALK = [SYSTEM, USER, ASSISTANT, USER, CALL, RESULT]

# Written for these tests, with what the templates of well-known families use.
TEMPLATES = {
    "generation tags, loops that end early (SmolLM3, Qwen3 for training)": """
{%- for m in messages -%}
  {%- if m.role == "tool" %}{% continue %}{% endif -%}
  {%- if loop.index0 > 3 %}{% break %}{% endif -%}
  <|im_start|>{{ m.role }}
  {%- if m.role == "assistant" %}{% generation %}{{ m.content }}{% set seen = 1 %}<|im_end|>{% endgeneration %}
  {%- else %}{{ m.content }}<|im_end|>{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
""",
    "tojson with arguments (Llama 3.1, Mistral, Granite)": """{{ bos_token }}
{%- if tools is not none %}TOOLS{{ tools | tojson(indent=4) }}{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}[CALLS]{{ m.tool_calls | map(attribute="function") | list | tojson }}
{{- m.tool_calls[0].function | tojson(ensure_ascii=true, sort_keys=true, separators=(",", ":")) }}
{%- elif m.role == "tool" %}[RESULT {{ m.tool_call_id }}]{{ m.content | trim | tojson }}
{%- else %}[{{ m.role | upper }}] {{ m.content.strip() }}{% endif %}
{%- endfor %}{{ eos_token }}
""",
    "namespaces, filters, methods, slices (Qwen 2.5, DeepSeek)": """
{%- set ns = namespace(last="", n=0) %}
{%- for m in messages | rejectattr("role", "equalto", "system") | list %}
    {%- set ns.n = ns.n + 1 %}
    {%- if m["role"] == "assistant" and m["content"] is string and "says" in m["content"] %}
        {{- "A:" + m["content"].split("says")[0].rstrip() + "|" }}
    {%- elif m.tool_calls is defined and m.tool_calls %}
        {%- for call in m.tool_calls %}{{ call.function.name }}={{ call.function.arguments.items() | list }}{% endfor %}
    {%- else %}{{ m["role"][0] }}:{{ m["content"][-4:] }}|{% endif %}
    {%- set ns.last = m["role"] %}
{%- endfor %}
{{ ns.last }} {{ ns.n }} {{ strftime_now("%Y") | length }} {{ missing }}{% if missing is defined %}no{% endif %}
""",
    "blocks that trim, macros (Gemma, Phi)": """
    {% macro turn(role, text) %}
<start_of_turn>{{ role }}
{{ text | trim }}<end_of_turn>
    {% endmacro %}
    {% for m in messages %}
        {% if m.role in ["user", "assistant"] %}
{{ turn("model" if m.role == "assistant" else m.role, m.content) }}
        {% endif %}
    {% endfor %}
""",
}


def variables(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True,
            "bos_token": "<s>", "eos_token": "</s>", **more}  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_is_rendered_as_transformers_renders_it(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="compares with transformers")
    given = variables(TALK)
    theirs = utils._compile_jinja_template(source).render(**given)
    assert compiled(source)(given) == theirs and "says" in theirs


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[0].content.missing() }}", "has no attribute"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{% generation %}x", "endgeneration"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(source: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        compiled(source)(variables(TALK))


def test_arguments_of_calls_are_json_however_a_template_writes_them() -> None:
    source = "{% set a = messages[4].tool_calls[0].function.arguments %}{{ a }}|{{ a | tojson }}|{{ '~' + a + '~' }}"
    json = '{"é": "<1>", "n": [2]}'
    assert compiled(source)(variables(TALK)) == f"{json}|{json}|~{json}~"


# Forms that templates take

STRICT = """
{%- for m in messages %}
{%- if (m.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("roles must alternate") }}{% endif %}
{%- if m.role == "system" %}{{ raise_exception("no system role") }}{% endif %}
{{- "<" + m.role + ">" + m.content }}{% if mood is defined %}({{ mood }}){% endif %}
{%- endfor %}"""
SILENT = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def rendered(source: str, messages: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> str:
    with closing(ChatTemplate(source, "", "", Controls(()), len)) as chat:
        return chat.render(messages, more or {}).text


@pytest.mark.parametrize("source", [STRICT, SILENT])
def test_a_system_text_goes_into_the_first_user_message_where_there_is_no_system_role(source: str) -> None:
    asked = [SYSTEM, USER, ASSISTANT, USER]
    assert rendered(source, asked) == "<user>system says\nuser says<assistant>assistant says<user>user says"
    assert rendered(source, [SYSTEM]) == "<user>system says"
    assert rendered(source, [USER, ASSISTANT, SYSTEM]) == "<user>user says<assistant>assistant says<user>system says"
    assert rendered("{{ messages[0].role }}{{ messages[0].content }}", asked) == "systemsystem says"
    with closing(ChatTemplate(source, "", "", Controls(()), len)) as chat:
        with pytest.raises(UsageError, match="publish the context as text"):
            chat.system_prefix("A manual.")


def test_messages_of_one_role_are_merged_only_where_the_template_refuses_them() -> None:
    assert rendered(STRICT, [USER, USER, ASSISTANT]) == "<user>user says\n\nuser says<assistant>assistant says"
    assert rendered(SILENT, [USER, USER]) == "<user>user says<user>user says"
    with pytest.raises(UsageError, match="roles must alternate"):
        rendered(STRICT, [ASSISTANT, USER])


def test_further_variables_reach_the_template_and_replace_none_of_ours() -> None:
    assert rendered(STRICT, [USER], {"mood": "calm", "messages": [], "add_generation_prompt": 5}) == (
        "<user>user says(calm)"
    )
