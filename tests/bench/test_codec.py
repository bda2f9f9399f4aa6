import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from preread.bench.codec import Options, Report, bench
from preread.bench.through import cut
from preread.bench.ttft import text as prose
from preread.codec.profile_bytes import dumps
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.text import Text
from preread.testing.profile import plain_profile

TEXT = Text("prose", (prose()[:20_000],))


def a_profile(smollm: Path, folder: Path) -> Path:
    engine = LlamaCpp.open(smollm, window_tokens=256)
    width = engine.embeddings(np.zeros(1, np.int32)).shape[1]
    profile = plain_profile(engine.spec.fingerprint, engine.spec.geometry, width, {"near": (0.02, 0), "far": (0.5, 0)})
    engine.close()
    path = folder / "a.profile"
    path.write_bytes(dumps(profile))
    return path


def quiet() -> AbstractContextManager[Report]:
    return nullcontext(lambda *_: None)


@pytest.mark.long
def test_rungs_and_other_schemes_go_through_real_bytes(
    smollm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rungs = ("lossless", "near", "far", "llama-q8_0", "llama-q4_0", "kivi-2")
    profile = a_profile(smollm, tmp_path)
    options = Options(TEXT, rungs, 1, (64, 96), 8, profile, tmp_path / "rates.svg")
    bench(smollm, "a model", options, Console(width=118), quiet())
    *shown, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert any("KL" in line for line in shown) and (tmp_path / "rates.svg").exists()
    assert (result["bench"], result["model"], result["text"]) == ("codec", "a model", "prose")
    rows = {(row["rung"], row["context_tokens"]): row for row in result["rows"]}
    assert set(rows) == {(rung, count) for rung in rungs for count in (None, 64, 96)}
    for count in (None, 64, 96):
        exact = rows["lossless", count]
        assert exact["kl"] == exact["dloss"] == 0 and exact["top1"] == 1
        assert exact["encode_tokens_s"] > 0 and exact["decode_tokens_s"] > 0
        assert 0 < rows["near", count]["kl"] < rows["far", count]["kl"]
        assert 0 < rows["near", count]["kl"] < rows["kivi-2", count]["kl"]
        assert 0 < rows["llama-q8_0", count]["kl"] < rows["llama-q4_0", count]["kl"]
        assert rows["llama-q4_0", count]["bits_per_value"] == 4.5
        assert rows["llama-q4_0", count]["decode_tokens_s"] is None
        bits = [rows[rung, count]["bits_per_value"] for rung in ("lossless", "near", "far")]
        assert bits == sorted(bits, reverse=True)
        assert 2.5 < rows["kivi-2", count]["bits_per_value"] < 3.5  # headers and short groups count


def test_windows_do_not_overlap_and_cover_the_text(smollm: Path) -> None:
    engine = LlamaCpp.open(smollm, window_tokens=256)
    try:
        text = " ".join(str(number) for number in range(3000))
        tokens = engine.tokenize(text, special=False)
        windows = cut(engine, Text("numbers", (text,)), 5, 200, 56)
        starts = [int(np.flatnonzero(np.all(np.lib.stride_tricks.sliding_window_view(tokens, 256) == w, axis=1))[0])
                  for w in windows]  # fmt: skip
        assert starts[0] == 0 and starts[-1] == len(tokens) - 256
        assert min(np.diff(starts)) >= 256 and np.ptp(np.diff(starts)) <= 1
        with pytest.raises(UsageError, match=f"{100 * 256 - len(tokens):,} too few for 100 windows"):
            cut(engine, Text("numbers", (text,)), 100, 200, 56)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": ("lossless", "b77"), "profile": Path("absent.profile")}, "absent.profile"),
        ({"plot": Path("rates.bmp")}, "--plot"),
        ({"windows": 1000, "rungs": ("lossless",)}, "too few"),
    ],
)
def test_what_cannot_be_measured_is_refused(smollm: Path, changes: dict[str, object], message: str) -> None:
    options = Options(**{"text": TEXT, "context_tokens": (64,), "tail": 16} | changes)
    with pytest.raises(UsageError, match=message):
        bench(smollm, "a model", options, Console(), quiet())
