"""`preread fit`: what is refused before the work begins, and that interrupted work leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preread.align.guide import Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.taught_bytes import Taught
from preread.cli.fitting import _print_ladder, _print_path, _splits
from preread.cli.teaching import print_guide, print_lesson
from preread.errors import UsageError
from preread.fit.align import Alignment
from preread.fit.teach import Lesson
from preread.testing.profile import plain_profile
from preread.values import ContextId, Fingerprint, Geometry, KVBlock, Span

COMMAND = [sys.executable, "-c", "from preread.cli import main; main()"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--text", "{tmp}/absent.txt"], "absent.txt cannot be read"),
        (["--out", "{tmp}/absent/profile"], "its folder does not exist"),
        (["--store", "/dev/null/store"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    preread: Callable[..., Any], tmp_path: Path, arguments: list[str], told: str
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    store = [] if "--store" in given else ["--store", str(tmp_path / "store")]
    ran = preread("fit", "codec", "--model", str(tmp_path / "no-model.gguf"), *store, *given)
    assert ran.code == 1 and told in ran.err and "no-model" not in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--text", "{tmp}/absent.txt"], "absent.txt cannot be read"), (["--plot", "{tmp}/align.bmp"], "--plot writes")],
)
def test_alignment_that_cannot_be_shown_is_refused_before_models_are_loaded(
    preread: Callable[..., Any], tmp_path: Path, arguments: list[str], told: str
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    ran = preread("fit", "align", "--llm", str(tmp_path / "no.gguf"), "--slm", str(tmp_path / "no.gguf"), *given)
    assert ran.code == 1 and told in ran.err and "no.gguf" not in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--text", "{tmp}/absent.txt"], "absent.txt cannot be read"),
        (["--out", "{tmp}/absent/map.npz"], "its folder does not exist"),
    ],
)
def test_a_mapping_that_cannot_be_kept_is_refused_before_models_are_loaded(
    preread: Callable[..., Any], tmp_path: Path, arguments: list[str], told: str
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    ran = preread("fit", "map", "--llm", str(tmp_path / "no.gguf"), "--slm", str(tmp_path / "no.gguf"), *given)
    assert ran.code == 1 and told in ran.err and "no.gguf" not in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["study", "{tmp}/absent.txt"], "absent.txt cannot be read"),
        (["study", "{tmp}/document.txt", "--out", "{tmp}/absent/it.study"], "its folder does not exist"),
    ],
)
def test_a_study_that_cannot_be_kept_is_refused_before_models_are_loaded(
    preread: Callable[..., Any], tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "document.txt").write_text("The pump has code 107.")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    ran = preread("fit", *given, "--llm", str(tmp_path / "no.gguf"), "--slm", str(tmp_path / "no.gguf"))
    assert ran.code == 1 and told in ran.err and "no.gguf" not in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{tmp}/absent.txt"], "absent.txt cannot be read"),
        (["{tmp}/document.txt"], "cannot read {tmp}/document.txt.study"),
        (["{tmp}/document.txt", "--study", "{tmp}/document.txt"], "this is no study"),
    ],
)
def test_a_lesson_without_its_files_is_refused_before_models_are_loaded(
    preread: Callable[..., Any], tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "document.txt").write_text("The pump has code 107.")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    ran = preread("fit", "teach", *given, "--slm", str(tmp_path / "no.gguf"))
    told = told.format(tmp=tmp_path) if find_spec("torch") else "pip install 'preread[cloud]'"
    assert ran.code == 1 and told in ran.err and "no.gguf" not in ran.err and ran.out == ""


def test_a_lesson_is_shown_with_its_curve_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = KVBlock(Span(0, 1), Span(0, 1), np.zeros((1, 1, 1, 2), np.float16), np.zeros((1, 1, 1, 2), np.float16))
    ids, of = ContextId("c" * 64), Fingerprint("f" * 64)
    taught = Taught(block, ids, ContextId("d" * 64), of, of, -0.1, (-0.15, -0.05), 27, 584)
    print_lesson("small", "manual.txt", Lesson(taught, 0.45, 0.25, ((0, 0.45), (20, 0.35))), tmp_path / "a.taught")
    head, first, second, said, line = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "STEPS" and first.split() == ["0", "0.4500"] and second.split() == ["20", "0.3500"]
    assert said.startswith("exact 0.4500, taught 0.3500 [-0.1500, -0.0500], large model 0.2500")
    told = json.loads(line)
    assert (told["control"], told["dloss"], told["gap_closed"], told["exchanges"]) == (True, -0.1, 0.5, 27)


def test_a_guide_is_shown_with_its_control_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="fitting a guide needs PyTorch: pip install 'preread[cloud]'")
    from preread.fit.guide import Fit

    one, of = np.zeros((1, 1), np.float32), Fingerprint("f" * 64)
    rows = (np.zeros(shape, np.float32) for shape in ((1, 1, 4), (1, 4), (1, 2)))
    weights = Weights(one[0], one, *rows)
    outcome = Outcome(-0.1, (-0.15, -0.05), 0.04, (0.01, 0.07), 0.4, 900)
    kept = KeptGuide(Guide(0, (5,), weights), of, of, Geometry(1, 1, 2), "manuals", 20, outcome)
    control = replace(kept, outcome=replace(outcome, dloss=-0.06), control=True)
    print_guide("small", "large", Fit(kept, control, ((0, 1.5, 1.5), (20, 1.4, 1.44))), tmp_path / "a.npz")
    head, first, second, said, line = capsys.readouterr().out.splitlines()
    assert (
        head.split()[0] == "DOCUMENTS" and first.split() == ["0", "1.5000", "1.5000"] and second.split()[-1] == "1.4400"
    )
    assert said.startswith(
        "guided -0.1000 [-0.1500, -0.0500], control -0.0600, gain over it +0.0400 [+0.0100, +0.0700]"
    )
    told = json.loads(line)
    assert (told["gain"], told["gain_over_control"], told["control_dloss"]) == (0.04, 0.1, -0.06)


@pytest.mark.parametrize("command", ["teach", "guide"])
def test_help_says_how_to_get_pytorch(preread: Callable[..., Any], command: str) -> None:
    assert "pip install 'preread[cloud]'" in preread("fit", command, "--help").out


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed")
def test_a_guide_without_pytorch_is_refused_before_models_are_loaded(preread: Callable[..., Any]) -> None:
    ran = preread("fit", "guide", "--llm", "no.gguf", "--slm", "no.gguf")
    assert ran.code == 1 and "pip install 'preread[cloud]'" in ran.err and "no.gguf" not in ran.err


def test_splits_are_layers_of_the_small_model() -> None:
    assert _splits("0,12, 12", 24) == (0, 12)
    for wrong in ("24", "-1", "half"):
        with pytest.raises(UsageError, match="--split"):
            _splits(wrong, 24)


def test_path_is_shown_layer_by_layer_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _print_path(Alignment("small", "large", "a text", 100, np.array([[0.9, 0.2], [0.31234, 0.5]]), (0, 1)))
    head, first, second, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["SMALL", "LARGE", "SIMILARITY"]
    assert (first.split(), second.split()) == (["0", "0", "0.900"], ["1", "1", "0.500"])
    assert json.loads(line) == {
        "fit": "align", "slm": "small", "llm": "large", "text": "a text", "tokens": 100, "path": [0, 1],
        "similarity": [[0.9, 0.2], [0.3123, 0.5]],
    }  # fmt: skip


def test_ladder_is_shown_with_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    rungs = {"b4": (0.1, 0.00012), "b0.9": (2.0, 0.25)}
    _print_ladder(plain_profile(Fingerprint("f" * 64), Geometry(2, 1, 8), 4, rungs))
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split("   ")[0] == "RUNG" and "LOSS RISES BY" in head
    assert first.split() == ["b4", "4.00", "16", "B", "+0.0001", "0.0001", "90.0%", "1,000", "tokens"]
    assert second.startswith("b0.9") and "+0.2500" in second


@pytest.mark.long
def test_ctrl_c_leaves_nothing_behind(smollm: Path, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREREAD_")}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PREREAD_MODELS": str(smollm.parent)}
    arguments = ["fit", "codec", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "profile")]
    with subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, text=True) as fitting:
        try:
            assert fitting.stderr is not None
            assert "habits" in (said := fitting.stderr.readline()), said + fitting.stderr.read()
            fitting.send_signal(signal.SIGINT)
            assert fitting.wait(60) == 130
            assert "Traceback" not in fitting.stderr.read()
        finally:
            fitting.kill()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
