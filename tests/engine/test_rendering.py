"""Chat templates are programs by strangers: whatever one does ends, within limits, and in an error that says so."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from preread.engine import rendering
from preread.engine.chat import ChatTemplate
from preread.engine.marks import Controls, Prompt
from preread.engine.rendering import Apart, Here, renderer
from preread.errors import PrereadError, UsageError

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{{ bos_token }}"
CHAT = {"messages": [{"role": "user", "content": 'Grüße "\n'}], "bos_token": "<s>"}


@pytest.fixture
def apart() -> Iterator[Apart]:
    with closing(Apart(CHATML)) as renderer:
        yield renderer


def rendered_apart(source: str) -> str:
    with closing(Apart(source)) as renderer:
        return renderer.render(CHAT)


def test_a_child_renders_as_this_process_does_and_is_kept(apart: Apart) -> None:
    assert apart.render(CHAT) == Here(CHATML).render(CHAT) == '<|user|>Grüße "\n<s>'
    child = apart._child
    assert apart.render(CHAT) and apart._child is child


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{% set x = namespace(t='ab' * 1000) %}{% for i in range(99999) %}{% set x.t = x.t + x.t %}{% endfor %}",
        "{{ 'x' * 300000000 }}",
        "{{ 'x' * 3000000 }}",
    ],
    ids=["time", "memory by doubling", "memory at once", "a long prompt"],
)
def test_what_takes_too_much_is_ended(source: str) -> None:
    with pytest.raises(UsageError, match=r"chat template (takes more|makes more|.*: MemoryError)"):
        rendered_apart(source)


def test_memory_is_bounded_where_the_prompt_that_comes_of_it_would_be_short() -> None:
    assert rendered_apart("{{ ('x' * 1000000) | length }}") == "1000000"
    with pytest.raises(UsageError, match=r"chat template (takes more|.*: MemoryError)"):
        rendered_apart("{{ ('x' * 600000000) | length }}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('only one system message') }}", "only one system message"),
        ("{% for %}", "cannot be read"),
        ("{{ messages | map(attribute='x') | first | upper | int('a') }}{{ [] | max.x() }}", "chat template"),
        ("{% if " + "(" * 5000 + "1" + ")" * 5000 + " %}{% endif %}", "chat template"),
    ],
)
def test_every_error_of_a_template_says_whose_it_is(source: str, said: str) -> None:
    for render in (rendered_apart, lambda source: Here(source).render(CHAT)):
        with pytest.raises(PrereadError, match=said):
            render(source)


def test_a_child_that_was_ended_is_replaced(apart: Apart) -> None:
    assert apart.render(CHAT)
    assert apart._child is not None
    apart._child._process.kill()
    with pytest.raises(UsageError, match="takes more than"):
        apart.render(CHAT)
    assert apart.render(CHAT)


def test_a_child_ends_with_its_parent(apart: Apart) -> None:
    apart.render(CHAT)
    assert apart._child is not None
    apart._child._socket.close()  # as the system does when a process ends, however it does
    assert apart._child._process.wait(20) == 0


def test_a_child_has_no_keys_of_this_process(monkeypatch: pytest.MonkeyPatch, apart: Apart) -> None:
    monkeypatch.setenv("PREREAD_API_KEYS", "secret-1")
    apart.render(CHAT)
    assert apart._child is not None
    with open(f"/proc/{apart._child._process.pid}/environ", "rb") as file:
        assert b"secret-1" not in file.read()


def test_only_templates_that_are_known_are_rendered_in_this_process() -> None:
    assert isinstance(renderer(CHATML), Apart)
    with pytest.raises(UsageError, match="too many"):
        renderer("{{ messages }}" + " " * 2_800_000)
    with pytest.raises(UsageError, match="no chat template can be given"):
        Apart(CHATML).render({"messages": ["\ud800", os]})


def test_a_chat_is_rendered_apart_unless_its_template_is_known() -> None:
    with closing(ChatTemplate(CHATML, "<s>", "</s>", Controls(()), len)) as chat:
        assert chat.render([{"role": "user", "content": "Hello"}]) == Prompt("<|user|>Hello<s>")
        assert isinstance(chat._renderer, rendering.Apart)
