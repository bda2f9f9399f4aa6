"""What teaching did: the bench runs through, in the real engine, on KV that is a little better or worse than exact."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from preread.align import study_bytes, taught_bytes
from preread.align.exchanges import Exchange
from preread.align.study_bytes import Study
from preread.align.taught_bytes import Taught
from preread.bench.taught import Options, bench
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.values import ContextId, Fingerprint, Span
from preread.wire.digest import context_id

TEXT = "PUMP_CODE = 107\nFAN_CODE = 114\n# Both are changed every three weeks."
OTHER = ContextId("e" * 64)


@pytest.fixture(scope="module")
def files(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Taught, Path]:
    """The taught KV is that of a text that says the answers as well; the control's is exact but for noise."""
    folder = tmp_path_factory.mktemp("taught")
    with closing(LlamaCpp.open(smollm, window_tokens=256, scored_tokens=TAIL_TOKENS)) as engine:
        chat = engine.chat
        assert chat is not None
        tokens = engine.tokenize_prompt(chat.system_prefix(TEXT))
        exchanges = []
        for part, code in (("pump", 107), ("fan", 114), ("pump", 107)) * 3:
            asked = chat.after_system([{"role": "user", "content": f"Which code has the {part}?"}])
            prompt = engine.tokenize_prompt(asked, start=False)
            answer = np.concatenate([engine.tokenize(f"It has code {code}."), engine.tokenize(chat.eos)])
            rows = np.zeros((len(answer), 1), np.float32)
            exchanges.append(Exchange(prompt, answer, answer[:, None], rows, rows[:, 0]))
        of = engine.spec.fingerprint
        study = Study(context_id(of, tokens), of, Fingerprint("b" * 64), tuple(exchanges))
        engine.session.prefill(tokens)
        exact = engine.session.export(Span(0, len(tokens)), Span(0, engine.spec.geometry.layers))
        taught = Taught(exact, study.context, study.context, of, study.large, -0.1, (-0.2, -0.1), 2, 10)
        noise = np.random.default_rng(0).normal(size=exact.v.shape) * exact.v.astype(np.float32).std() / 2
        worse = replace(exact, v=(exact.v + noise).astype(np.float16))
    (folder / "a.study").write_bytes(study_bytes.dumps(study))
    (folder / "a.taught").write_bytes(taught_bytes.dumps(taught))
    (folder / "c.taught").write_bytes(taught_bytes.dumps(replace(taught, block=worse, studied=OTHER)))
    return study, taught, folder


@pytest.mark.long
def test_modes_are_compared_with_a_control(
    smollm: Path, files: tuple[Study, Taught, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files[2]
    options = Options(TEXT, folder / "a.study", folder / "a.taught", folder / "c.taught")
    told: dict[str, Any] = bench((smollm, "smollm"), options, Console(width=150))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(told))
    llm, slm, taught = told["rows"]
    assert (llm["mode"], slm["mode"], taught["mode"]) == ("llm", "slm", "taught") and told["exchanges"] == 2
    assert told["questions"] == 2 and llm["qa_exact"] is None
    assert slm["qa_exact"] == taught["qa_exact"] in (0, 0.5, 1) and taught["qa_control"] in (0, 0.5, 1)
    # It is exact KV that is called taught here: it changes nothing, and the control is worse.
    assert llm["loss"] == 0 and slm["dloss"] == 0 and abs(taught["dloss"]) < 1e-6
    gap = slm["loss"] - llm["loss"]
    assert taught["gain_over_control"] == pytest.approx((taught["control_loss"] - taught["loss"]) / gap, abs=1e-6)
    assert taught["gain_over_control"] > 0 and slm["gain_over_control"] is None
    low, high = taught["gain_ci"]
    assert low - 1e-9 <= taught["gain_over_control"] <= high + 1e-9


@pytest.mark.long
def test_files_that_do_not_belong_together_are_refused(smollm: Path, files: tuple[Study, Taught, Path]) -> None:
    study, _, folder = files
    good = Options(TEXT, folder / "a.study", folder / "a.taught")
    (folder / "o.study").write_bytes(study_bytes.dumps(replace(study, context=OTHER)))
    for options, why in (
        (replace(good, document="Another text."), "do not belong together"),
        (replace(good, study=folder / "o.study"), "do not belong together"),
        (replace(good, taught=folder / "c.taught"), "do not belong together"),
        (replace(good, control=folder / "a.taught"), "a control is"),
        (replace(good, study=folder / "none"), "cannot read"),
    ):
        with pytest.raises(UsageError, match=why):
            bench((smollm, "smollm"), options, Console(quiet=True))
