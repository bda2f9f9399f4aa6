"""The bench with hostile clients, in small: the honest one is answered. How fast, the bench says, not a test."""

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from preread.bench.hostile import KINDS, Options, bench


@pytest.mark.long
@pytest.mark.timeout(300)  # a busy machine is slow
def test_honest_client_is_answered_among_hostile_ones(smollm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(smollm, "tiny", clients=2 * len(KINDS), rounds=1, questions=2, prompt_words=50)
    told = asyncio.run(bench(options, Console(quiet=True)))
    assert (told["bench"], told["clients"], told["questions"]) == ("hostile", 16, 2)
    peak_mib = told["peak_mib"]
    assert isinstance(peak_mib, int) and 0 < peak_mib < 1024
    assert '"ratio"' in capsys.readouterr().out
