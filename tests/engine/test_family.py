"""Families: quantisations of one model share a digest that no other model has, and a file's tensors are read right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preread.engine import model, tensors
from preread.engine.family import Traits, family, traits_of
from preread.engine.gguf import Tensor
from preread.engine.model import Spec
from preread.errors import CorruptData
from preread.testing.quantised import Quantisation, write_quantised
from preread.values import Fingerprint, Geometry


def spec_of(path: Path) -> Spec:
    loaded = model.load(path, trusted=True, mapped=True)
    try:
        return model.spec(loaded, path, path.stem, 0)
    finally:
        loaded.close()


@pytest.mark.parametrize("to", ["bf16", "q8_0", "q4_0", "q2_k"])
def test_a_quantisation_has_the_family_of_its_source_and_a_fingerprint_of_its_own(
    to: Quantisation, tiny_model: Path, tmp_path: Path
) -> None:
    source, other = spec_of(tiny_model), spec_of(write_quantised(tmp_path / "other.gguf", tiny_model, to))
    assert source.family is not None
    assert other.family == source.family
    assert other.fingerprint != source.fingerprint


def test_real_models_are_of_families_of_their_own(smollm: Path, qwen: Path, tiny_model: Path) -> None:
    assert len({spec_of(path).family for path in (smollm, qwen, tiny_model)} - {None}) == 3


@pytest.fixture(scope="module")
def traits(tiny_model: Path) -> Traits:
    found = traits_of(tensors.parts(tiny_model), Geometry(8, 1, 64), Fingerprint("f" * 64), rope_near=True)
    return replace(found, norms=tuple(found.norms))


def test_what_a_file_says_of_itself_is_in_its_traits(traits: Traits) -> None:
    assert (traits.architecture, traits.rope_base, traits.rope_pairs) == ("llama", 10_000.0, 32)
    assert traits.norm_epsilon == np.float32(1e-5)
    names = [name for name, _ in traits.norms]
    assert names == sorted(names) and len(names) == 2 * 8 + 1
    assert all(values.shape == (256,) and (values == 1).all() for _, values in traits.norms)


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": "qwen2"},
        {"geometry": Geometry(9, 1, 64)},
        {"vocabulary": Fingerprint("e" * 64)},
        {"rope_near": False},
        {"rope_base": 1e6},
        {"rope_pairs": 16},
        {"rope_scaling": (("type", "yarn"),)},
        {"rope_factors": (1.0, 8.0)},
        {"norm_epsilon": 1e-6},
        {"norms": (("output_norm.weight", np.full(256, np.nextafter(np.float32(1), np.float32(2)))),)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_trait_makes_another_family(traits: Traits, other: dict[str, object]) -> None:
    assert family(replace(traits, **other)) not in (None, family(traits))  # type: ignore[arg-type]


def test_factors_that_differ_by_rounding_only_make_no_other_family(traits: Traits) -> None:
    one = replace(traits, rope_factors=(1.0, 3.1415927, 8.0))
    assert family(one) == family(replace(one, rope_factors=(1.0, 3.1415930, 8.0)))


def test_a_model_without_norms_is_of_no_family(traits: Traits) -> None:
    assert family(replace(traits, norms=())) is None


def test_tensors_of_every_float_type_are_read_as_they_were_written(tiny_model: Path, tmp_path: Path) -> None:
    def key(tensor: Tensor) -> bool:
        return tensor.name == "blk.0.attn_k.weight"

    ((_, exact),) = tensors.plain(tensors.parts(tiny_model), key)  # float16
    ((_, rounded),) = tensors.plain(tensors.parts(write_quantised(tmp_path / "bf16.gguf", tiny_model, "bf16")), key)
    assert exact.shape == (64, 256)
    assert 0 < np.abs(rounded - exact).max() <= np.abs(exact).max() / 256
    assert not list(tensors.plain(tensors.parts(write_quantised(tmp_path / "q8.gguf", tiny_model, "q8_0")), key))


def test_a_file_that_ends_too_early_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model.read_bytes()[:1_000_000])
    with pytest.raises(CorruptData, match="it is not whole"):
        traits_of(tensors.parts(cut), Geometry(8, 1, 64), Fingerprint("f" * 64), rope_near=True)
