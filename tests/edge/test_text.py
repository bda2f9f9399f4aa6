from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.edge.request import Piece, TokenOdds
from preread.edge.text import Writer
from preread.engine.sampling import Sampled


@dataclass
class Bytes:
    """Stands where the engine stands: a token is a byte."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])


def written(data: bytes, stop: tuple[str, ...] = (), sizes: int = 1) -> tuple[list[str], Writer]:
    writer = Writer(Bytes(), stop)  # type: ignore[arg-type]
    pieces = []
    for i in range(0, len(data), sizes):
        if piece := writer.write(Sampled(0, data[i : i + sizes], False)):
            pieces.append(piece.text)
        if writer.finished:
            break
    if piece := writer.rest():
        pieces.append(piece.text)
    return pieces, writer


@given(st.text(max_size=40), st.integers(1, 5))
def test_text_comes_through_whole_and_never_in_broken_characters(text: str, sizes: int) -> None:
    pieces, writer = written(text.encode(), sizes=sizes)
    assert "".join(pieces) == text
    assert writer.finish == "length"


@given(st.text("ab-", max_size=30), st.lists(st.text("ab-", min_size=1, max_size=4), max_size=3), st.integers(1, 3))
def test_stop_texts_end_the_answer_and_are_not_part_of_it(text: str, stop: list[str], sizes: int) -> None:
    pieces, writer = written(text.encode(), tuple(stop), sizes)
    out = "".join(pieces)
    assert text.startswith(out)
    assert not any(end in out for end in stop)
    hits = [(text.find(end) + len(end), text.find(end)) for end in stop if end in text]
    if hits:
        _, start = min(hits)  # of the one that is whole first
        assert writer.finish == "stop"
        assert len(out) <= start + sizes and (sizes > 1 or out == text[: len(out)])
    else:
        assert out == text


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    writer = Writer(Bytes(), ("END",))  # type: ignore[arg-type]
    assert writer.write(Sampled(0, b"so E", False)) == Piece("so ")
    assert writer.write(Sampled(0, b"N", False)) is None
    assert writer.write(Sampled(0, b"d", False)) == Piece("ENd")


def test_the_models_own_end() -> None:
    writer = Writer(Bytes(), ())  # type: ignore[arg-type]
    assert writer.write(Sampled(2, b"", True)) is None
    assert writer.finished and writer.rest() is None


def test_a_character_cut_by_the_end_is_replaced() -> None:
    pieces, _ = written("é".encode()[:1])
    assert pieces == ["\ufffd"]


def test_odds_go_with_the_text_that_they_made() -> None:
    writer = Writer(Bytes(), ())  # type: ignore[arg-type]
    assert writer.write(Sampled(0xC3, b"\xc3", False, -1.0)) is None
    piece = writer.write(Sampled(0xA9, b"\xa9", False, -2.0, ((0x41, -0.5),)))
    assert piece is not None and piece.text == "é"
    assert [odds.logprob for odds in piece.odds] == [-1.0, -2.0]
    assert piece.odds[1].top == (TokenOdds(0x41, "A", b"A", -0.5),)
    assert piece.odds[0].data == b"\xc3" and piece.odds[0].text == "\ufffd"


@pytest.mark.parametrize("stop", [(), ("",)])
def test_no_stop_text_stops_nothing(stop: tuple[str, ...]) -> None:
    assert written(b"abc", stop)[0] == ["a", "b", "c"]
