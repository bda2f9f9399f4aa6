import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from preread.bench.states import Options, Report, bench
from preread.codec.state import state_rungs
from preread.errors import UsageError
from preread.fit.text import Text

TEXT = Text("parts", ("A pump is moved by a motor and a lid by a hose. " * 60,))


def quiet() -> AbstractContextManager[Report]:
    return nullcontext(lambda *_: None)


def test_states_go_through_real_bytes_and_what_that_costs_is_told(
    untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench(untrained, "a hybrid", Options(TEXT, (), 2, (64, 96), 16), Console(width=118), quiet())
    *shown, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == json.loads(json.dumps(result)) and any("KB a context" in line for line in shown)
    rows = {row["rung"]: row for row in json.loads(last)["rows"]}
    assert tuple(rows) == state_rungs()
    exact = rows["f32"]
    assert exact["kl"] == exact["dloss"] == 0 and exact["top1"] == 1 and 20 < exact["bits_per_value"] < 29
    kl = [row["kl"] for row in rows.values()]
    bits = [row["bits_per_value"] for row in rows.values()]
    assert kl == sorted(kl) and bits == sorted(bits, reverse=True) and kl[-1] > 0
    assert exact["bytes_per_context"] == pytest.approx(
        exact["bits_per_value"] / 32 * 3 * 4 * (2304 + 2 * 128 * 128), 0.01
    )


def test_a_model_without_states_and_an_unknown_codec_are_refused(smollm: Path, untrained: Path) -> None:
    with pytest.raises(UsageError, match="no layer is recurrent"):
        bench(smollm, "a model", Options(TEXT, (), 1, (64,), 8), Console(), quiet())
    with pytest.raises(UsageError, match="f8"):
        bench(untrained, "a hybrid", Options(TEXT, ("f8",), 1, (64,), 8), Console(), quiet())
