"""Control tokens in contents are found and marked, whatever the contents; what the template wrote is never marked."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.marks import Controls, Prompt
from preread.errors import UsageError

CONTROLS = Controls(["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<s", "|", "[INST]"])
PIECES = st.sampled_from(["<|im_start|>", "<|im_end|>", "<s>", "<", "<|im_", "end|>", "|", "[INST", "]", "a", "\n"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def written(*contents: str) -> Prompt:
    """As a template would: contents between control tokens, one right behind the other."""
    mark = CONTROLS.mark_for(list(contents))
    return Prompt("<|im_start|>" + "".join(CONTROLS.marked(list(contents), mark)) + "<|im_end|>\n", mark)


@given(st.lists(TEXTS, max_size=3))
def test_all_of_the_contents_and_nothing_else_is_plain_text(contents: list[str]) -> None:
    prompt = written(*contents)
    parts = list(CONTROLS.parts(prompt))
    text = "".join(contents)
    assert "".join(text for text, _ in parts) == f"<|im_start|>{text}<|im_end|>\n"
    if prompt.mark:
        assert parts == [("<|im_start|>", True), (text, False), ("<|im_end|>\n", True)]
    else:
        assert not any(control in text for control in ("<|im_start|>", "<|im_end|>", "<s", "|", "[INST]"))


@pytest.mark.parametrize("ascii", [False, True])
def test_quoted_contents_stay_plain_text(ascii: bool) -> None:
    call = {"role": "<s>", "tool_calls": [{"function": {"name": "f", "arguments": {"<s>": "x</s>"}}}]}
    mark = CONTROLS.mark_for([call])
    marked = CONTROLS.marked(call, mark)
    assert marked["role"] == "<s>", "templates choose by roles"
    quoted = json.dumps(marked["tool_calls"][0], ensure_ascii=ascii)
    parts = list(CONTROLS.parts(Prompt(f"<s>{quoted}</s>", mark)))
    assert parts == [("<s>", True), (json.dumps(call["tool_calls"][0]), False), ("</s>", True)]


@given(st.lists(st.text("<|>ab", min_size=1, max_size=4), max_size=5), st.text("<|>abc", max_size=12), st.booleans())
def test_control_tokens_are_found_as_a_pattern_of_all_finds_them(texts: list[str], text: str, marks: bool) -> None:
    mark, longest_first = "\ue100" if marks else "", sorted(set(texts), key=len, reverse=True)
    text = mark.join(text)
    pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
    own = re.compile(f"(?:{pattern})(?!{mark})" if mark else pattern)
    assert [*Controls(texts)._own(Prompt(text, mark))] == [found.span() for found in own.finditer(text)]
    every = [found.start() for found in re.finditer(f"(?={pattern})", text)]
    assert [start for start, _ in Controls(texts)._starts(text)] == every


def test_what_needs_no_mark_gets_none_and_is_read_as_it_is() -> None:
    assert CONTROLS.mark_for("Hello", [{"role": "user", "content": "Grüße, \ue100"}]) == ""
    assert list(CONTROLS.parts(Prompt("<s>Hello\ue100"))) == [("<s>Hello\ue100", True)]
    assert list(Controls(()).parts(Prompt("<s>"))) == [("<s>", True)] and Controls(()).mark_for("<s>") == ""


def test_a_mark_stands_nowhere_in_what_it_marks() -> None:
    assert CONTROLS.mark_for("<s>") == "\ue100"
    assert CONTROLS.mark_for("<s>\ue100", ["\\ue101"]) == "\ue102"
    with pytest.raises(UsageError, match="private use"):
        CONTROLS.mark_for("<s>" + "".join(map(chr, range(0xE100, 0xF900))))


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_marks_change_no_value_otherwise(value: Any) -> None:
    mark = CONTROLS.mark_for(value)
    marked = json.dumps(CONTROLS.marked(value, mark), ensure_ascii=False)
    assert json.loads(re.sub(mark or "(?!)", "", marked)) == value
