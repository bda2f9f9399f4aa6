"""What a large model's reading does for a small one: the bench runs through; a model is its own large one here."""

import json
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preread.align.mapping_bytes import Kept, dumps
from preread.bench.guide import Options, bench
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.map import fit_mappings
from preread.fit.sample import TAIL_TOKENS
from preread.fit.text import Text
from preread.testing.tiny import write_tiny
from preread.values import Fingerprint

FITTED = Text("squares", (" ".join(str(n * n % 9973) for n in range(1500)),))
UNSEEN = Text("cubes", (" ".join(str(n * n * n % 9973) for n in range(1500)),))


@pytest.fixture(scope="module")
def tiny(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm)


@pytest.fixture(scope="module")
def kept(tiny: Path) -> Kept:
    with closing(LlamaCpp.open(tiny, window_tokens=1024, scored_tokens=TAIL_TOKENS)) as engine:
        (fit,) = fit_mappings(engine, engine, FITTED, (4,), lambda *_: None)
        of, shape = engine.spec.fingerprint, engine.spec.geometry
    return Kept(fit.mapping, of, of, shape, shape, FITTED.label, 0.0, 0.0, 1)


def test_modes_are_compared_with_both_models_and_a_control(
    tiny: Path, kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.npz").write_bytes(dumps(kept))
    options, model = Options(UNSEEN, (tmp_path / "a.npz",), 4), (tiny, "tiny")
    told: dict[str, Any] = bench(model, model, options, Console(width=150), nullcontext(lambda *_: None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    llm, slm, mapped = told["rows"]
    assert (llm["mode"], slm["mode"], mapped["mode"]) == ("llm", "slm", "mapped-4")
    assert slm["loss"] == pytest.approx(llm["loss"], abs=1e-3) and slm["dloss"] == 0 and slm["control_loss"] is None
    # What a model keeps of a text is mapped from itself nearly exactly, and from another text not at all.
    assert abs(mapped["dloss"]) < 0.01 and mapped["kl"] < 0.01
    assert mapped["control_loss"] is not None and mapped["dloss_ci"][0] <= mapped["dloss"] <= mapped["dloss_ci"][1]
    assert (mapped["text"], mapped["bytes_per_token"]) == ("cubes", 2 * kept.geometry.values_per_token)


def test_a_mapping_of_other_models_is_refused(tiny: Path, kept: Kept, tmp_path: Path) -> None:
    other = Kept(kept.mapping, Fingerprint("0" * 64), kept.large, kept.geometry, kept.large_geometry, "", 0.0, 0.0, 1)
    (tmp_path / "b.npz").write_bytes(dumps(other))
    options, model = Options(UNSEEN, (tmp_path / "b.npz",), 4), (tiny, "tiny")
    with pytest.raises(UsageError, match="other models"):
        bench(model, model, options, Console(quiet=True), nullcontext(lambda *_: None))
    with pytest.raises(UsageError, match="cannot read"):
        bench(model, model, Options(UNSEEN, (tmp_path / "no.npz",), 4), Console(), nullcontext(lambda *_: None))
