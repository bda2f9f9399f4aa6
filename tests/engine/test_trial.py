"""Model files of strangers are tried in a process of their own first: what makes llama.cpp abort ends nothing here."""

import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from preread.engine import trial
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError


@pytest.fixture
def tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """An empty cache, and the commands of the trials that were made."""
    commands: list[list[str]] = []
    run = subprocess.run

    def counting(command: list[str], **options: Any) -> "subprocess.CompletedProcess[bytes]":
        commands.append(command)
        return run(command, **options)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial.subprocess, "run", counting)
    return commands


def changed(model: Path, to: Path, key: str, value: bytes) -> Path:
    """A copy with another value, of as many bytes, behind a key of its metadata."""
    data = bytearray(model.read_bytes())
    at = data.index(key.encode()) + len(key) + 4
    data[at : at + len(value)] = value
    to.write_bytes(data)
    return to


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", struct.pack("<I", 0)),
        ("llama.attention.layer_norm_rms_epsilon", struct.pack("<f", float("nan"))),
    ],
)
def test_a_file_that_makes_llama_cpp_abort_is_refused_and_no_debugger_runs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[list[str]], key: str, value: bytes
) -> None:
    gdb = tmp_path / "bin" / "gdb"
    gdb.parent.mkdir()
    gdb.write_text(f"#!/bin/sh\ntouch {tmp_path}/gdb-ran\n")
    gdb.chmod(0o755)
    monkeypatch.setenv("PATH", str(gdb.parent), prepend=":")
    bad = changed(tiny_model, tmp_path / "bad.gguf", key, value)
    with pytest.raises(UsageError, match=r"no sound model file: llama.cpp ends on it \(SIGABRT\)"):
        LlamaCpp.open(bad, window_tokens=256)
    assert len(tries) == 1 and not (tmp_path / "gdb-ran").exists()


def test_a_sound_file_is_tried_once_and_again_when_it_has_changed(
    tiny_model: Path, tmp_path: Path, tries: list[list[str]]
) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(tiny_model.read_bytes())
    trial.check(model)
    trial.check(model)
    assert len(tries) == 1
    changed(model, model, "llama.block_count", struct.pack("<I", 0))
    with pytest.raises(UsageError):
        trial.check(model)
    assert len(tries) == 2


def test_files_of_registered_models_are_known_by_their_digest(
    smollm: Path, tries: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_MODELS", str(smollm.parent))
    trial.check(smollm)
    assert tries == []


def test_a_trial_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[list[str]]
) -> None:
    file = tmp_path / "slow.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(trial, "_WALL_S", 0.01)
    with pytest.raises(UsageError, match="does not end"):
        trial.check(file)
    assert len(tries) == 1
