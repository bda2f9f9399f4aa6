"""What `make demo` and the first steps publish can be published, whatever is written into it."""

from contextlib import closing
from pathlib import Path

import pytest

from preread import demo
from preread.engine.llamacpp import LlamaCpp

ROOM_TOKENS = 512
"""For the template around it, the question and the answer."""

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("document", [demo._HANDBOOK, DOCS / "quickstart.md", DOCS / "operations.md"])
def test_a_document_of_the_first_steps_fits_the_window_of_the_model_that_reads_it(smollm: Path, document: Path) -> None:
    with closing(LlamaCpp.open(smollm)) as engine:
        tokens = len(engine.tokenize(document.read_text()))
        assert tokens + ROOM_TOKENS <= engine.spec.window_tokens, "move a part to another page"


def test_the_demonstrations_question_is_about_its_document() -> None:
    text, _ = demo._document(None)
    assert "Ines Haller" in demo.QUESTION and "Ines Haller" in text and "telephone is 417" in text
