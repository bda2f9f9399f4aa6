"""Well-known models: what is told of them, and that docs/models.md says what the command prints."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from preread.cli.models import app
from preread.engine.known import known
from preread.engine.memory import verdict

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("name", "token_bytes", "state_bytes"),
    [
        ("Qwen2.5-0.5B", 24 * 2 * 2 * 64 * 2, 0),
        ("gemma-4-E2B", 3 * 2 * 512 * 2, 0),
        ("Qwen3.5-0.8B", 6 * 2 * 2 * 256 * 2, 18 * 4 * (2048 * 128 + 3 * (2048 + 2 * 16 * 128))),
        ("DeepSeek-V2-Lite", 27 * (512 + 64) * 2, 0),
    ],
)
def test_what_a_well_known_model_keeps(name: str, token_bytes: int, state_bytes: int) -> None:
    memory = verdict(known()[name]).memory
    assert memory is not None
    assert (memory.token_bytes, memory.state_bytes) == (token_bytes, state_bytes)


@pytest.mark.parametrize("name", known())
def test_every_well_known_model_is_of_a_known_kind(name: str) -> None:
    assert verdict(known()[name]).way in ("streams", "computed")


def test_the_page_about_models_has_the_table_that_the_command_prints() -> None:
    told = CliRunner().invoke(app, ["families", "--markdown"]).stdout
    assert told.startswith("| model |") and told in (DOCS / "models.md").read_text(), (
        "what is streamed has changed: put what `preread models families --markdown` prints into docs/models.md"
    )
