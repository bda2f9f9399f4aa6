"""What a large model's reading does for a small one: the bench runs through; a model is its own large one here."""

import json
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from preread.align.guide import Guide, Weights
from preread.align.guide_bytes import KeptGuide, Outcome
from preread.align.guide_bytes import dumps as dumps_guide
from preread.align.mapping_bytes import Kept, dumps
from preread.bench.guide import Options, bench
from preread.codec import profile_bytes
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.text import Text
from preread.testing.profile import plain_profile
from preread.values import Fingerprint

UNSEEN = Text("cubes", (" ".join(str(n * n * n % 9973) for n in range(1500)),))


@pytest.mark.long
def test_modes_are_compared_with_both_models_and_a_control(
    tiny_model: Path, tiny_mapping: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.npz").write_bytes(dumps(tiny_mapping))
    options, model = Options(UNSEEN, (tmp_path / "a.npz",), 4, 10), (tiny_model, "tiny")
    told: dict[str, Any] = bench(model, model, options, Console(width=150), nullcontext(lambda *_: None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    llm, slm, mapped = told["rows"]
    assert (llm["mode"], slm["mode"], mapped["mode"]) == ("llm", "slm", "mapped-4")
    assert slm["loss"] == pytest.approx(llm["loss"], abs=1e-3) and slm["dloss"] == 0 and slm["control_loss"] is None
    # What a model keeps of a text is mapped from itself nearly exactly, and from another text not at all.
    assert abs(mapped["dloss"]) < 0.02 and mapped["kl"] < 0.02
    assert mapped["control_loss"] is not None and mapped["dloss_ci"][0] <= mapped["dloss"] <= mapped["dloss_ci"][1]
    assert told["questions"] == 10 and 0 <= mapped["qa_exact"] <= 1 and mapped["qa_control"] is not None
    assert llm["qa_exact"] == slm["qa_exact"] and slm["qa_control"] is None
    assert (mapped["text"], mapped["bytes_per_token"]) == ("cubes", 2 * tiny_mapping.geometry.values_per_token)


@pytest.mark.long
def test_a_mapping_of_other_models_is_refused(tiny_model: Path, tiny_mapping: Kept, tmp_path: Path) -> None:
    other = replace(tiny_mapping, small=Fingerprint("0" * 64))
    (tmp_path / "b.npz").write_bytes(dumps(other))
    options, model = Options(UNSEEN, (tmp_path / "b.npz",), 4), (tiny_model, "tiny")
    with pytest.raises(UsageError, match="other models"):
        bench(model, model, options, Console(quiet=True), nullcontext(lambda *_: None))
    with pytest.raises(UsageError, match="cannot read"):
        bench(model, model, Options(UNSEEN, (tmp_path / "no.npz",), 4), Console(), nullcontext(lambda *_: None))


@pytest.mark.long
def test_a_guide_is_compared_with_its_control(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LlamaCpp.open(tiny_model, window_tokens=256)) as engine:
        shape, of = engine.spec.geometry, engine.spec.fingerprint
        width = engine.embeddings(np.zeros(1, np.int32)).shape[1]
    layers, heads, channels = shape.layers, 2 * shape.kv_heads, 2 * shape.kv_heads * shape.head_dim
    shapes = ((width,), (width, 3), (layers, 3, channels), (layers, channels))
    weights = Weights(*(np.zeros(one, np.float32) for one in shapes), np.ones((layers, heads), np.float32))
    nothing = KeptGuide(Guide(0, (4,), weights), of, of, shape, "a text", 1, Outcome(0, (0, 0), 0, (0, 0), 0, 1))
    wrong = replace(weights, bias=weights.bias + 1)
    control = replace(nothing, guide=Guide(0, (4,), wrong), control=True)
    for name, one in (("guide", nothing), ("control", control)):
        (tmp_path / name).write_bytes(dumps_guide(one))
    (tmp_path / "profile").write_bytes(profile_bytes.dumps(plain_profile(of, shape, width, {"b2": (0.05, 0.0)})))
    files = (tmp_path / name for name in ("guide", "control", "profile"))
    options = Options(UNSEEN, (), 4, 10, *files, "b2")
    model = tiny_model, "tiny"
    told: dict[str, Any] = bench(model, model, options, Console(quiet=True), nullcontext(lambda *_: None))
    capsys.readouterr()
    llm, slm, guided, through = told["rows"]
    # It changes nothing, and its control does.
    assert guided["mode"] == "guided" and guided["dloss"] == guided["kl"] == 0
    assert guided["control_loss"] > guided["loss"] + 0.1 and guided["qa_control_loss"] != guided["qa_loss"]
    assert guided["qa_loss"] == slm["qa_loss"] == pytest.approx(llm["qa_loss"], abs=1e-3)
    # What a rung leaves of it is a little worse, smaller, and has the same control.
    assert through["mode"] == "guided-b2" and 0 < through["kl"] < 0.1
    assert through["control_loss"] == guided["control_loss"] and through["qa_loss"] != guided["qa_loss"]
    assert through["bytes_per_token"] < guided["bytes_per_token"] == 2 * shape.values_per_token
    with pytest.raises(UsageError, match="is no control"):
        bench(
            model,
            model,
            replace(options, control=tmp_path / "guide"),
            Console(quiet=True),
            nullcontext(lambda *_: None),
        )
