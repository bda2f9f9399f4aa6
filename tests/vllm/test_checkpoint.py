"""A checkpoint is what a GGUF file of the same model says, and every difference that changes KV is refused or told."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preread.engine import model, tensors
from preread.engine.model import Spec
from preread.errors import UsageError
from preread.testing.checkpoint import Change, Weights, write_checkpoint
from preread.testing.quantised import write_quantised
from preread.vllm.checkpoint import Checkpoint, identified
from preread.vllm.config import read

Make = Callable[[Change], Path]


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> Spec:
    loaded = model.load(tiny_model, trusted=True, mapped=True)
    try:
        return model.spec(loaded, tiny_model, "tiny", 0)
    finally:
        loaded.close()


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    """Write the model of random weights as a checkpoint, changed in some way."""

    def write(change: Change) -> Path:
        return write_checkpoint(tmp_path / "checkpoint", tiny_model, change)

    return write


def test_the_same_weights_are_known_bit_for_bit_in_whatever_order(make: Make, tiny_model: Path, spec: Spec) -> None:
    one, of = identified(make(lambda *_: None), tiny_model, "float32"), spec
    assert (one.family, one.vocabulary, one.geometry, one.near) == (of.family, of.vocabulary, of.geometry, True)
    assert one.same == of.fingerprint != one.fingerprint


def test_a_quantised_file_is_of_its_family_and_has_other_weights(make: Make, tiny_model: Path, tmp_path: Path) -> None:
    folder, coarse = make(lambda *_: None), write_quantised(tmp_path / "coarse.gguf", tiny_model, "q8_0")
    one, exact = identified(folder, coarse, "float32"), identified(folder, tiny_model, "float32")
    assert one.same is None
    assert (one.family, one.fingerprint) == (exact.family, exact.fingerprint)
    assert identified(folder, coarse, "bfloat16").fingerprint != one.fingerprint


def test_weights_that_differ_in_one_bit_are_not_the_same(make: Make, tiny_model: Path) -> None:
    def change(weights: Weights, *_: object) -> None:
        rows = weights["model.layers.3.self_attn.k_proj.weight"] = weights[
            "model.layers.3.self_attn.k_proj.weight"
        ].copy()
        rows[5, 7] = np.nextafter(rows[5, 7], np.float32(1))

    assert identified(make(change), tiny_model, "float32").same is None


def _norm(weights: Weights, *_: object) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"] * np.float32(1.0001)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_norm, "not one model"),
        (lambda w, c, v: c.update(rope_theta=500000.0), "not one model"),
        (lambda w, c, v: c.update(rms_norm_eps=1e-6), "not one model"),
        (lambda w, c, v: c.update(num_hidden_layers=7), "not one model"),
        (lambda w, c, v: c.update(architectures=["MistralForCausalLM"], head_dim=32), "not one model"),
        (lambda w, c, v: c.update(architectures=["GemmaForCausalLM"]), "GemmaForCausalLM: known are"),
        (lambda w, c, v: c.update(rope_scaling={"rope_type": "yarn", "factor": 4}), "'yarn'"),
        (lambda w, c, v: c.update(use_sliding_window=True), "only plain RoPE"),
        (lambda w, c, v: w.update({"model.layers.0.extra_layernorm.weight": w["model.norm.weight"]}), "not known here"),
        (lambda w, c, v: v.update({"another": v.pop(next(iter(v)))}), "differ in token 0"),
        (lambda w, c, v: v.pop(next(iter(v))), "differ in token 0"),
        (lambda w, c, v: v.update(more=len(v)), "differ in token 4096"),
        (lambda w, c, v: w.pop("model.embed_tokens.weight"), "no weights"),
        (lambda w, c, v: c.pop("num_attention_heads"), "config.json is not what it should be.*num_attention_heads"),
        (lambda w, c, v: c.update(num_attention_heads=0), "config.json is not what it should be"),
        (lambda w, c, v: c.update(architectures="LlamaForCausalLM"), "config.json is not what it should be"),
        (lambda w, c, v: v.update(one="two"), "tokenizer.json is not what it should be"),
    ],
)
def test_what_makes_another_model_is_refused_by_name(make: Make, tiny_model: Path, change: Change, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        identified(make(change), tiny_model, "float32")


def test_files_that_are_not_what_they_should_be_are_refused(make: Make, tiny_model: Path) -> None:
    folder = make(lambda *_: None)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(UsageError, match="not whole"):
        identified(folder, tiny_model, "float32")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="no safetensors file"):
        Checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="not what it should be"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "tensor",
    [3, {"dtype": "F32"}, {"dtype": "F32", "shape": [2, -1], "data_offsets": [0, 8]}]
    + [{"dtype": "F32", "shape": [2], "data_offsets": [start, 8]} for start in (-8, "0", None)],
)
def test_a_head_that_says_of_a_tensor_what_cannot_be_is_refused(make: Make, tensor: object) -> None:
    folder = make(lambda *_: None)
    head = json.dumps({"model.norm.weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(64))
    with pytest.raises(UsageError, match=r"model\.safetensors is not what it should be"):
        Checkpoint(folder)


def test_embeddings_of_a_file_that_is_cut_short_are_refused(make: Make) -> None:
    checkpoint = Checkpoint(make(lambda *_: None))
    for file in checkpoint.files:
        file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UsageError, match="not whole"):
        checkpoint.embeddings(np.array([3], np.int32))


def test_embeddings_are_the_files(make: Make, tiny_model: Path) -> None:
    ids = np.array([3, 1, 3], np.int32)
    files = tensors.parts(tiny_model)
    ((_, rows),) = tensors.plain(files, lambda one: one.name == "token_embd.weight")
    assert np.array_equal(Checkpoint(make(lambda *_: None)).embeddings(ids), rows[ids])


# The configuration


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"gguf": "m.gguf"}, "neither where to publish"),
        ({"store": "./store"}, "gguf"),
        ({"gguf": "m.gguf", "store": "./store", "rung": 3}, "rung"),
        ({"gguf": "m.gguf", "store": "./store", "shop": "x"}, "shop"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused_by_name(extra: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read(extra)


def test_a_configuration_says_what_is_not_said_by_default() -> None:
    config = read({"gguf": "~/m.gguf", "store": "./store", "rungs": ["lossless"], "gates": ["g.json"]})
    assert config.gguf == Path("~/m.gguf").expanduser() and config.gates == (Path("g.json"),)
    assert (config.cloud, config.rung, config.max_dloss) == (None, None, 0.01)
