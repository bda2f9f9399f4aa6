"""Tool calls in what a model says: read as they come, however the text is cut, and nothing is lost."""

import json
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.edge.calls import Calls, random_id
from preread.edge.request import CallPart, Piece
from preread.engine.calls import CallFormat, _text

NAMES = ("fan", "get_weather", "a.b-c")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(), values, max_size=3).map(lambda value: json.dumps(value, ensure_ascii=False))
called = st.tuples(st.sampled_from(NAMES), arguments)


def pieces(text: str, cuts: Sequence[int]) -> Iterator[Piece]:
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for start, stop in pairwise(bounds):
        yield Piece(text[start:stop])


def read(form: CallFormat | None, text: str, cuts: Sequence[int] = ()) -> tuple[str, list[CallPart]]:
    """The text and the calls of an answer that comes in pieces."""
    ids = map(str, count())
    calls = Calls(form, NAMES, lambda: next(ids))
    told = [piece for each in pieces(text, cuts) if (piece := calls.read(each))]
    told += [piece] if (piece := calls.rest(None)) else []
    whole: dict[int, CallPart] = {}
    for part in (part for piece in told for part in piece.calls):
        begun = whole.get(part.index, CallPart(part.index))
        whole[part.index] = CallPart(
            part.index, begun.arguments + part.arguments, begun.id or part.id, begun.name or part.name
        )
    assert calls.count == len(whole)
    return "".join(piece.text for piece in told), [*whole.values()]


def expected(calls: Sequence[tuple[str, str]]) -> list[CallPart]:
    return [CallPart(i, arguments, str(i), name) for i, (name, arguments) in enumerate(calls)]


@given(st.sampled_from(CallFormat), called, st.lists(st.integers(0, 500), max_size=8))
def test_a_call_is_read_however_it_is_cut(form: CallFormat, call: tuple[str, str], cuts: list[int]) -> None:
    assert read(form, _text(form, *call), cuts) == ("", expected([call]))


@settings(max_examples=40)
@given(st.lists(called, min_size=1, max_size=4), st.lists(st.integers(0, 900), max_size=8))
def test_several_calls_and_text_before_them(calls: list[tuple[str, str]], cuts: list[int]) -> None:
    hermes = "Let me see.\n\n" + "\n".join(_text(CallFormat.HERMES, *call) for call in calls)
    assert read(CallFormat.HERMES, hermes, cuts) == ("Let me see.", expected(calls))
    listed = ", ".join(_text(CallFormat.MISTRAL, *call).removeprefix("[TOOL_CALLS] [")[:-1] for call in calls)
    assert read(CallFormat.MISTRAL, f"So: [TOOL_CALLS] [{listed}]", cuts) == ("So:", expected(calls))
    newer = "".join(_text(CallFormat.MISTRAL_ARGS, *call) for call in calls)
    assert read(CallFormat.MISTRAL_ARGS, f"So: {newer}", cuts) == ("So:", expected(calls))


@settings(max_examples=40)
@given(called, st.lists(st.integers(0, 500), max_size=8))
def test_a_call_may_stand_at_the_beginning_without_its_mark(call: tuple[str, str], cuts: list[int]) -> None:
    bare = _text(CallFormat.HERMES, *call).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert read(CallFormat.HERMES, bare, cuts) == ("", expected([call]))
    assert read(CallFormat.HERMES, "Hm. " + bare, cuts) == ("Hm. " + bare, [])


@given(st.sampled_from([None, *CallFormat]), st.text(), st.lists(st.integers(0, 100), max_size=8))
def test_text_without_calls_is_what_it_was(form: CallFormat | None, text: str, cuts: list[int]) -> None:
    assert read(form, text, cuts) == (text, [])


parts_of_calls = st.sampled_from(
    [*'<>{}[]",: \\\n', "<tool_call>", "name", "arguments", "[TOOL_CALLS]", "[ARGS]", "fan"]
)


@given(st.sampled_from(CallFormat), st.lists(parts_of_calls).map("".join), st.lists(st.integers(0, 100), max_size=8))
def test_whatever_is_said_is_read(form: CallFormat, text: str, cuts: list[int]) -> None:
    assert read(form, text, cuts) == read(form, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}'),
        ("<tool_call>\nnothing of the kind", "<tool_call>\nnothing of the kind"),
        ("A < b, <tool", "A < b, <tool"),
        ("<tool_call>" + "x" * 3000, "<tool_call>" + "x" * 3000),
        ("  blank ", "  blank "),
    ],
)
def test_what_is_no_call_stays_text(text: str, said: str) -> None:
    assert read(CallFormat.HERMES, text, range(0, len(text), 5)) == (said, [])


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came() -> None:
    said, calls = read(CallFormat.HERMES, '<tool_call>\n{"name": "fan", "arguments": {"speed": 3, "on')
    assert (said, calls) == ("", [CallPart(0, '{"speed": 3, "on', "0", "fan")])


def test_odds_are_kept_with_the_piece_that_they_came_with() -> None:
    calls, odds = Calls(CallFormat.HERMES, NAMES), ("odds",)
    held: Any = Piece("<tool", odds)  # type: ignore[arg-type]
    assert calls.read(held) == Piece("", odds)  # type: ignore[arg-type]
    assert calls.rest(None) == Piece("<tool")


def test_ids_are_what_mistrals_templates_take() -> None:
    assert len({random_id() for _ in range(100)}) == 100
    assert all(len(id) == 9 and id.isalnum() and id.isascii() for id in (random_id() for _ in range(100)))
