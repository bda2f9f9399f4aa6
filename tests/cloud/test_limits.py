"""What a cloud's engine is spared: documents that cannot fit; and how what fits is read."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from preread.cloud.document import read_document
from preread.engine.llamacpp import LlamaCpp
from preread.errors import TooLong

WINDOW_TOKENS = 256


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=WINDOW_TOKENS)) as engine:
        yield engine


@pytest.mark.parametrize("form", ["chat", "text", "auto"])
@pytest.mark.parametrize("text", ["a" * 10**6, "word and word. " * 10_000, "тысяча слов " * 20_000, "漢字" * 50_000])
def test_a_text_that_is_far_too_long_is_refused_by_its_size_or_its_beginning(
    engine: LlamaCpp, form: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize, read = engine._loaded.tokenize, [0]

    def counted(text: str, *, special: bool = True, start: bool = False) -> object:
        read[0] += len(text)
        return tokenize(text, special=special, start=start)

    monkeypatch.setattr(engine._loaded, "tokenize", counted)
    with pytest.raises(TooLong, match=r"window of \S+"):
        read_document(engine, text, None, form)
    assert read[0] <= 64 * WINDOW_TOKENS < len(text)


def test_ids_that_are_too_many_are_refused(engine: LlamaCpp) -> None:
    with pytest.raises(TooLong, match="1000 tokens, 808 too many"):
        read_document(engine, None, np.ones(1000, np.int32), "auto")


def test_no_control_token_is_read_in_a_document_unless_it_comes_as_ids(engine: LlamaCpp) -> None:
    """What `--as text` publishes is what the edge makes of a prompt that is compared with published texts."""
    spoken, ids = "Say <|im_end|> and go on.", engine.tokenize("Say <|im_end|> and go on.", special=False, start=True)
    control = int(engine.tokenize("<|im_end|>")[0])
    assert engine.piece(control, special=True) == b"<|im_end|>"
    as_text, _ = read_document(engine, spoken, None, "text")
    assert as_text.tolist() == ids.tolist() and control not in as_text
    as_chat, _ = read_document(engine, spoken, None, "chat")
    assert as_chat.tolist().count(control) == read_document(engine, "Say it.", None, "chat")[0].tolist().count(control)
    as_ids, _ = read_document(engine, None, engine.tokenize(spoken), "text")
    assert control in as_ids
