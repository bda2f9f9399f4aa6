"""What makes the KV rows of several quantisations of one model mean the same, as one digest: the model's *family*.

A quantisation rounds matrices. What it leaves alone is the same bits in each of them: the norms' weights (vectors in
32-bit floats, also where a checkpoint has them in bfloat16), the tokenizer, RoPE, and the shape of it all. So two files
of one family were quantised from the same weights, or from weights that differ in matrices only, as after a fine-tune
whose adapters were merged: which of its KV a model may read is measured, see `fit/family.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import blake3
import msgspec
import numpy as np
import numpy.typing as npt

from preread.engine import tensors
from preread.engine.gguf import Tensor, Value
from preread.engine.tensors import Parts
from preread.values import Family, Fingerprint, Geometry

Single = npt.NDArray[np.float32]

_NORM: Final = "_norm.weight"
_ROPE_FACTORS: Final = "rope_freqs.weight"
_THOUSANDTHS: Final = 1000


@dataclass(frozen=True, slots=True)
class Traits:
    """What a family is made of.

    Attributes:
        architecture: llama.cpp's name of it.
        geometry: of the KV cache.
        vocabulary: digest of the tokenizer.
        rope_near: whether the two halves of a rotated pair lie side by side.
        rope_base, rope_pairs: of the rotation.
        rope_scaling: what else changes its frequencies, as key and value.
        rope_factors: by which each pair's frequency is divided; none: by nothing.
        norm_epsilon: of the norms.
        norms: their weights, each with llama.cpp's name, sorted by name.
    """

    architecture: str
    geometry: Geometry
    vocabulary: Fingerprint
    rope_near: bool
    rope_base: float
    rope_pairs: int
    rope_scaling: tuple[tuple[str, str], ...]
    rope_factors: tuple[float, ...]
    norm_epsilon: float
    norms: Iterable[tuple[str, Single]]


def family(traits: Traits) -> Family | None:
    """The digest; None: the model has no norms with weights, so nothing tells it from another one of its shape."""
    norms, count = blake3.blake3(), 0
    for name, values in traits.norms:
        norms.update(name.encode() + b"\0" + np.ascontiguousarray(values, "<f4").tobytes())
        count += 1
    if not count:
        return None
    meaning = {
        "architecture": traits.architecture,
        "geometry": traits.geometry,
        "vocabulary": traits.vocabulary,
        "rope_near": traits.rope_near,
        "rope_base": _bits(traits.rope_base),
        "rope_pairs": traits.rope_pairs,
        "rope_scaling": traits.rope_scaling,
        # computed by whoever wrote the file, so not the same in the last bits
        "rope_factors": [round(factor * _THOUSANDTHS) for factor in traits.rope_factors],
        "norm_epsilon": _bits(traits.norm_epsilon),
        "norms": norms.hexdigest(),
        "layout": 1,
    }
    return Family(blake3.blake3(msgspec.json.encode(meaning, order="sorted")).hexdigest())


def traits_of(files: Parts, geometry: Geometry, vocabulary: Fingerprint, *, rope_near: bool) -> Traits:
    """The traits of a model's files, and of what llama.cpp found out about it.

    Raises:
        CorruptData: a file ends before its tensors do.
    """
    found = files[0][1].metadata
    architecture = files[0][1].text("general.architecture") or "unknown"
    scaling = f"{architecture}.rope.scaling."
    epsilon = found.get(f"{architecture}.attention.layer_norm_rms_epsilon")
    vectors = dict(tensors.plain(files, _is_trait))
    factors = vectors.pop(_ROPE_FACTORS, np.empty(0, np.float32))
    return Traits(
        architecture,
        geometry,
        vocabulary,
        rope_near,
        _number(found.get(f"{architecture}.rope.freq_base"), 10_000),
        int(_number(found.get(f"{architecture}.rope.dimension_count"), geometry.head_dim)) // 2,
        tuple((key.removeprefix(scaling), str(found[key])) for key in sorted(found) if key.startswith(scaling)),
        tuple(factors.tolist()),
        _number(found.get(f"{architecture}.attention.layer_norm_epsilon") if epsilon is None else epsilon, 0),
        tuple(sorted(vectors.items())),
    )


def _is_trait(tensor: Tensor) -> bool:
    return len(tensor.shape) == 1 and (tensor.name.endswith(_NORM) or tensor.name == _ROPE_FACTORS)


def _number(value: Value | None, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _bits(number: float) -> int:
    """A float of 32 bits, as an integer."""
    return int(np.float32(number).view(np.uint32))
