"""The doctor's measurements against a real model and cloud, and its verdicts on made-up ones."""

from pathlib import Path
from typing import Any

import pytest

from preread.cli import checkout, doctor
from preread.compiled import vector_bits
from preread.edge.doctor import Engine, Link, RungCost, examine, verdict
from preread.edge.machine import Machine
from preread.engine.attention import attends_in_tiles
from preread.engine.model import Spec
from preread.errors import UsageError
from preread.store.egress import CloudLink
from preread.values import Fingerprint, Geometry

SPEC = Spec(
    "m",
    "llama",
    Fingerprint("f" * 64),
    Fingerprint("0" * 64),
    None,
    Geometry(1, 1, 1),
    1,
    1,
    1,
    1,
    True,
    1.0,
    0,
    (None,),
    None,
)
ENGINE = Engine(SPEC, 2, None, 100.0, 50.0)
RUNGS = (RungCost("q8", 10_000, True, 1e6), RungCost("q4", 5_000, True, 5e5))


@pytest.mark.parametrize(
    ("link", "told"),
    [
        (None, "faster than 8 Mbit/s (q8), 4 Mbit/s (q4)"),
        (Link("c", note="nothing"), "faster than 8 Mbit/s (q8)"),
        (Link("c", bytes_s=2e6), "pays: this link carries 16 Mbit/s, so a long context at rung q8 is here 2.0 times"),
        (Link("c", bytes_s=7.5e5), "at rung q4 is here 1.5 times"),
        (Link("c", bytes_s=1e5), "does not pay: this link carries 0.8 Mbit/s"),
    ],
)
def test_verdict_compares_the_link_with_break_even(link: Link | None, told: str) -> None:
    assert told in verdict(ENGINE, link, RUNGS)


def test_verdict_on_a_model_that_cannot_be_streamed() -> None:
    assert "never streamed: the reason" in verdict(Engine(SPEC, 2, "the reason", 100.0, 50.0), None, RUNGS)


def test_everything_is_measured(cloud: Any, tiny_model: Path) -> None:
    report = examine(tiny_model, "tiny", CloudLink(cloud.url), cloud.url)
    assert report.engine.no_injection is None
    assert report.engine.tiles == attends_in_tiles(vector_bits())
    assert report.engine.prefill_tokens_s > 0 and report.engine.decode_tokens_s > 0
    assert report.link and report.link.problem is None and report.link.rtt_s and report.link.bytes_s
    assert [cost.rung for cost in report.rungs if cost.measured] == ["lossless", "q8"]
    for cost in report.rungs:
        assert cost.break_even_bytes_s == pytest.approx(report.engine.prefill_tokens_s * cost.bytes_per_token)
    sizes = [cost.bytes_per_token for cost in report.rungs]
    assert sizes == sorted(sizes, reverse=True)


def test_cloud_that_is_not_there_is_a_finding(tiny_model: Path) -> None:
    report = examine(tiny_model, "tiny", CloudLink("http://127.0.0.1:1"), "http://127.0.0.1:1")
    assert report.link and report.link.problem and not any(cost.measured for cost in report.rungs)


def test_what_a_native_build_would_use_is_what_this_one_does_not() -> None:
    cpu = ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    machine = Machine("cpu", 2, cpu, None, "3.11", "0.1", "llama.cpp", ("SSE3", "AVX2", "FMA"), prebuilt=True)
    assert machine.unused == ("avx512f", "avx512_vnni"), "AMX faults on some machines, and is never used"
    assert "which has avx512f, avx512_vnni besides" in doctor._prebuilt(machine)
    compiled = Machine("cpu", 2, cpu, None, "3.11", "0.1", "llama.cpp", ("AVX2", "AVX512", "AVX512_VNNI"))
    assert not compiled.unused and not compiled.prebuilt
    assert not any(name == "" for name, _ in doctor._machine(compiled))


def test_llama_cpp_is_compiled_only_in_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkout, "_ROOT", tmp_path)
    with pytest.raises(UsageError, match="is compiled in a checkout"):
        doctor._compile()
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts/install"
    for code in (1, 0):
        script.write_text(f"#!/bin/sh\n[ $1 = native ] && exit {code}\n")
        script.chmod(0o700)
        if code:
            with pytest.raises(UsageError, match="could not be compiled"):
                doctor._compile()
        else:
            doctor._compile()
