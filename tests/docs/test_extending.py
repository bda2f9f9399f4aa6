"""The code of docs/extending.md does what the page says: `TestRaw`, which is collected here, is the page's own."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from docsite import markdown

from preread.documents.converter import Unfit
from preread.edge.forms.form import Head
from preread.edge.openai import Bounds, read_chat
from preread.edge.request import Done, Piece, Timings
from preread.edge.sources import NotHeld
from preread.values import ObjectRef
from preread.wire.digest import object_id

PAGE = Path(__file__).parents[2] / "docs/extending.md"
BLOCKS = [block for block in markdown.code(PAGE.read_text()) if block.language == "python"]


def ran(begin: str, **names: Any) -> dict[str, Any]:
    """What the page's only block with this text in it defines."""
    (block,) = (block for block in BLOCKS if begin in block.text)
    names["__name__"] = "extending"
    exec(compile("\n" * block.line + block.text, str(PAGE), "exec"), names)
    return names


TestRaw = ran("class Raw:")["TestRaw"]


def test_what_a_model_file_is_taken_for(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran("no_injection", path=tiny_model)
    geometry, template = capsys.readouterr().out.splitlines()
    assert "layers=8" in geometry and "can be streamed" in geometry and template == "it has a chat template"


def test_a_source_gives_what_it_has_and_only_that() -> None:
    right, other = object_id(b"right"), object_id(b"other")
    stick = ran("class Stick:")["Stick"]({right: b"right", other: b"wrong"})
    refs = [ObjectRef("segments", id, 5) for id in (right, other, object_id(b"absent"))]
    assert asyncio.run(stick.get(refs[0])) == b"right" and stick.holds(refs[0]) and not stick.holds(refs[2])
    for ref in refs[1:]:
        with pytest.raises(NotHeld):
            asyncio.run(stick.get(ref))
    assert stick.received_bytes == 5


def test_a_document_becomes_text() -> None:
    subtitles = ran("def subtitles")["subtitles"]
    assert subtitles(
        b"1\r\n00:00:01,000 --> 00:00:02,000\r\nGood\r\nday.\r\n\r\n2\n00:00:03,000 --> 00:00:04,000\nBye\n"
    ) == ("Good\nday.\nBye")
    with pytest.raises(Unfit):
        subtitles(b"no subtitles")


def test_an_api_writes_answers_in_its_own_form() -> None:
    call = read_chat(b'{"messages": [{"role": "user", "content": "?"}]}', Bounds(100, 100, 10), 7)
    form = ran("class Lines:")["Lines"](Head("id", 0, "tiny", call))
    pieces, done = (Piece("Good "), Piece("day.")), Done("stop", 1, Timings())
    assert form.whole([(pieces, done), (pieces[1:], done)]) == b"Good day.\nday.\n"
    assert form.event(1, pieces[1]) == b'data: {"choice":1,"text":"day."}\n\n'
    assert form.event(0, done) == b'data: {"finish":"stop"}\n\n' and form.failing({}) == b"data: {}\n\n"


def test_every_block_of_the_page_is_run_here() -> None:
    begins = ("class Raw:", "no_injection", "class Stick:", "def subtitles", "class Lines:")
    assert [sum(begin in block.text for begin in begins) for block in BLOCKS] == [1] * len(begins)
