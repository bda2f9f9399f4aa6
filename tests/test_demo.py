"""What `make demo` and README's walk publish can be published, whatever is written into it."""

from contextlib import closing
from pathlib import Path

from preread import demo
from preread.engine.llamacpp import LlamaCpp

ROOM_TOKENS = 512
"""For the template around it, the question and the answer."""


def test_the_manual_fits_the_window_of_the_model_that_reads_it(smollm: Path) -> None:
    with closing(LlamaCpp.open(smollm)) as engine:
        tokens = len(engine.tokenize(demo._MANUAL.read_text()))
        assert tokens + ROOM_TOKENS <= engine.spec.window_tokens, "move a part to another page"
