"""A model in several files is one model."""

import struct
from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from preread.engine import gguf, model
from preread.engine.download import locate
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.testing.families import write_family

ALIGNMENT = 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    return write_family(tmp_path_factory.mktemp("split") / "whole.gguf", "llama")


def split(path: Path, folder: Path, count: int) -> list[Path]:
    """The same model in so many files, its tensors dealt out in order, with the keys that llama.cpp wants then."""
    data = path.read_bytes()
    header = gguf.parse(data)
    first = struct.pack("<Q", len(header.tensors[0].name)) + header.tensors[0].name.encode()
    (pair_count,) = struct.unpack_from("<Q", data, 16)
    pairs = data[24 : data.index(first)]
    ends = [tensor.offset_bytes for tensor in header.tensors[1:]] + [len(data) - header.data_start]
    each = -(-len(header.tensors) // count)
    paths = []
    for number in range(count):
        infos, bodies = b"", b""
        for tensor, end in list(zip(header.tensors, ends, strict=True))[number * each : (number + 1) * each]:
            infos += struct.pack("<Q", len(tensor.name)) + tensor.name.encode() + struct.pack("<I", len(tensor.shape))
            infos += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.kind, len(bodies))
            bodies += data[header.data_start + tensor.offset_bytes : header.data_start + end]
            bodies += bytes(-len(bodies) % ALIGNMENT)
        own = b"".join(
            struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IH", 2, value)
            for key, value in {"split.no": number, "split.count": count}.items()
        )
        own += struct.pack("<Q", 19) + b"split.tensors.count" + struct.pack("<Ii", 5, len(header.tensors))
        kept = pairs if number == 0 else b""
        counts = struct.pack("<IQQ", 3, min(each, len(header.tensors) - number * each), (pair_count if kept else 0) + 3)
        beginning = b"GGUF" + counts + kept + own + infos
        out = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
        out.write_bytes(beginning + bytes(-len(beginning) % ALIGNMENT) + bodies)
        paths.append(out)
    return paths


def test_any_part_means_the_whole_model(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path, 3)
    assert [locate(str(part)) for part in parts] == [parts[0]] * 3
    scores = []
    for path in (whole, parts[0]):
        with closing(LlamaCpp.open(path, window_tokens=128)) as engine:
            scores.append(engine.session.score(np.arange(1, 60, dtype=np.int32)))
    assert np.array_equal(*scores)


def test_a_fingerprint_is_of_all_parts(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path, 2)
    before = model.fingerprint_of(parts[0])
    data = bytearray(parts[1].read_bytes())
    data[-5] ^= 1
    parts[1].write_bytes(data)
    assert model.fingerprint_of(parts[0]) != before


def test_a_missing_part_is_named(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path, 2)
    parts[1].unlink()
    with pytest.raises(UsageError, match="m-00002-of-00002"):
        locate(str(parts[0]))
