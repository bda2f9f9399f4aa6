import ctypes
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.codec import fitted, product, symbols
from preread.codec import profile_bytes as profile
from preread.codec.base import Codec, Payload
from preread.codec.fitted import Fitted, apart
from preread.codec.groups import layer_groups
from preread.codec.lossless_rows import find_late
from preread.codec.product import synthesised
from preread.codec.profile import Basis, FittedRung, Prepared, Profile, Steps, prepare, synthesis
from preread.codec.rope import Rope, rotate, unrotate
from preread.codec.symbols import CLASSES, LEVELS, Coder, read, write
from preread.errors import CorruptData, UsageError
from preread.fit import tables
from preread.testing.codec import CodecContract, sample_block
from preread.testing.profile import plain_profile
from preread.values import Fingerprint, Geometry, Half, KVBlock, Span

MODEL = Fingerprint("f" * 64)
VECTORS = Path(__file__).parent.parent / "vectors"


@cache
def prepared(geometry: Geometry, group_layers: int, step: float, tokens: int = 1024) -> Prepared:
    """A made-up profile with a basis that is no identity, features that matter, and rotation."""
    source, of_tokens = np.random.default_rng(5), np.random.default_rng(6)
    plain = plain_profile(MODEL, geometry, 16, {"finer": (step / 8, 0.0), "thin": (step, 0.0)})
    groups = layer_groups(geometry.layers, group_layers)
    widths = [2 * len(layers) * geometry.kv_heads * geometry.head_dim for layers in groups]
    bases = []
    for width in widths:
        rows = np.linalg.qr(source.normal(size=(width, width)))[0].astype(np.float32)
        scales = np.abs(rows).max(axis=1) / 127
        bases.append(
            Basis(
                source.normal(size=width).astype(np.float32),
                np.geomspace(4, 0.25, width, dtype=np.float32),
                np.rint(rows / scales[:, None]).astype(np.int8),
                scales.astype(np.float32),
                source.integers(-127, 127, (3, width), np.int8),
                np.full(3, 1e-3, np.float32),
            )
        )
    classes = tuple((np.arange(width) % CLASSES).astype(np.uint8) for width in widths)
    fewer = tuple(row[: len(row) - 3] for row in classes)
    thin = replace(plain.rungs[1], older=Steps(step, classes), recent=Steps(step / 2, classes), bias=(0.04, 0.02))
    finer = replace(plain.rungs[0], older=Steps(step / 8, fewer), recent=Steps(step / 8, classes), base="thin")
    rope = Rope(False, np.array([0.1 / 1.5**i for i in range(geometry.head_dim // 2)], np.float32))
    made = replace(
        plain,
        groups=groups,
        bases=tuple(bases),
        rungs=(finer, thin),
        ropes=(rope,) * geometry.layers,
        features=of_tokens.normal(size=(16, 3)).astype(np.float16),
    )
    return prepare(profile.loads(profile.dumps(made)), of_tokens.normal(size=(tokens, 16)).astype(np.float32))


@dataclass(frozen=True)
class OfAnyShape:
    """The codec under test with a profile that fits whatever block comes: the contract tries many shapes."""

    index: int
    rung: str
    version: str = fitted.VERSION

    def encode(self, block: KVBlock) -> bytes:
        _, heads, _, dim = block.k.shape if block.k.ndim == 4 else (1, 1, 1, 4)
        ready = prepared(Geometry(block.layers.stop, heads, dim), len(block.layers), 0.02)
        return Fitted(ready, self.index).encode(block)

    def decode(self, payload: Payload, tokens: Span, layers: Span, geometry: Geometry) -> KVBlock:
        ready = prepared(
            geometry, max(1, min(layers.stop - layers.start, geometry.layers)), 0.02, max(1024, tokens.stop)
        )
        return Fitted(ready, self.index).decode(payload, tokens, layers, geometry)


class TestFitted(CodecContract):
    largest_error = 1.0

    def _assert_close(self, sent: Half, got: Half) -> None:
        """A basis spreads the errors of coefficients; rounding to float16 adds its own."""
        error = np.abs(got.astype(np.float64) - sent.astype(np.float64))
        assert error.max() <= 0.2 + np.abs(sent).max() * 2**-10 and error.mean() <= 0.03

    @pytest.fixture(params=[(1, "thin"), (0, "finer")], ids=["alone", "refining"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        return OfAnyShape(*request.param)


GEOMETRY = Geometry(5, 2, 8)


def test_sinks_come_back_exactly_and_only_they() -> None:
    codec = Fitted(prepared(GEOMETRY, 2, 0.5), 1)
    block = sample_block((2, 2, 64, 8))
    back = codec.decode(codec.encode(block), block.tokens, block.layers, GEOMETRY)
    assert np.array_equal(back.k[:, :, :4], block.k[:, :, :4]) and np.array_equal(back.v[:, :, :4], block.v[:, :, :4])
    assert not np.array_equal(back.k[:, :, 4:8], block.k[:, :, 4:8])


@pytest.mark.parametrize("tokens", [1, 3, 4, 5])
def test_contexts_of_hardly_more_than_sinks(tokens: int) -> None:
    codec = Fitted(prepared(GEOMETRY, 2, 0.01), 1)
    block = sample_block((2, 2, tokens, 8))
    payload = codec.encode(block)
    back = codec.decode(payload, block.tokens, block.layers, GEOMETRY)
    assert np.array_equal(back.k[:, :, : min(tokens, 4)], block.k[:, :, : min(tokens, 4)])
    with pytest.raises(CorruptData):
        codec.decode(payload + b"\0", block.tokens, block.layers, GEOMETRY)


def test_the_last_group_may_be_smaller() -> None:
    codec = Fitted(prepared(GEOMETRY, 2, 0.01), 1)
    block = sample_block((1, 2, 32, 8), first_layer=4)
    back = codec.decode(codec.encode(block), block.tokens, block.layers, GEOMETRY)
    assert np.abs(back.v.astype(np.float32) - block.v).max() < 0.1


def test_thinner_rungs_take_fewer_bytes_and_err_more() -> None:
    block = sample_block((2, 2, 256, 8), first_token=8)
    sizes, errors = [], []
    for step in (0.05, 0.2, 0.8):
        codec = Fitted(prepared(GEOMETRY, 2, step), 1)
        payload = codec.encode(block)
        back = codec.decode(payload, block.tokens, block.layers, GEOMETRY)
        sizes.append(len(payload))
        errors.append(float(np.square(back.v.astype(np.float32) - block.v).mean()))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
    # a uniform quantiser's step²/12 over the mean weight of V here, and some for choosing cheap symbols
    assert errors[0] < 0.05**2 / 12 * 2.2 * 1.6


def test_recent_tokens_are_finer_wherever_chunks_are_cut() -> None:
    ready, whole = prepared(GEOMETRY, 2, 0.5, tokens=64), sample_block((2, 2, 64, 8))
    codec = Fitted(ready, 1)
    for start, stop in ((0, 64), (0, 40), (40, 64), (55, 64), (56, 64), (57, 64)):
        at = (slice(None), slice(None), slice(start, stop))
        block = KVBlock(Span(start, stop), whole.layers, whole.k[at].copy(), whole.v[at].copy())
        back = codec.decode(codec.encode(block), block.tokens, block.layers, GEOMETRY)
        errors = np.square(back.v.astype(np.float32) - block.v).mean(axis=(0, 1, 3))
        recent = np.arange(start, stop) >= 64 - 8
        if recent.any() and not recent.all():
            assert errors[recent].mean() < errors[~recent & (errors > 0)].mean() / 1.5
    assert ready.profile.recent_tokens == 8


@pytest.mark.parametrize("tokens", [3, 64, 200])
def test_in_a_long_context_a_part_is_recent(tokens: int) -> None:
    profile_ = replace(prepared(GEOMETRY, 2, 0.5).profile, recent_part=10)
    ready = prepare(profile_, np.random.default_rng(1).normal(size=(tokens, 16)).astype(np.float32))
    assert ready.recent == {3: 4, 64: 64 - 8, 200: 200 - 20}[tokens]


def _with_late_sinks(at: dict[int, float]) -> tuple[Prepared, KVBlock]:
    """A context whose V is small at some tokens, and a profile that lets two of a block be lossless."""
    ready = prepared(GEOMETRY, 2, 0.5)
    block = sample_block((2, 2, 64, 8))
    v = np.where(np.abs(block.v) < 1, 1, block.v).astype(np.float16)
    for token, share in at.items():
        v[:, :, token] = share
    return replace(ready, profile=replace(ready.profile, late_sinks=2)), replace(block, v=v)


@pytest.mark.parametrize("index", [0, 1], ids=["refining", "alone"])
def test_late_sinks_come_back_exactly_and_cost_their_own_bytes_only(index: int) -> None:
    ready, block = _with_late_sinks({2: 0.01, 20: 0.02, 40: 0.03, 50: 0.01})
    codec = Fitted(ready, index)
    payload = codec.encode(block)
    back = codec.decode(payload, block.tokens, block.layers, GEOMETRY)
    exact = [t for t in range(64) if np.array_equal(back.k[:, :, t], block.k[:, :, t])]
    assert exact == [0, 1, 2, 3, 20, 50], "the context's first four, and the two smallest of the others"
    assert np.array_equal(back.v[:, :, exact], block.v[:, :, exact])
    plain = Fitted(replace(ready, profile=replace(ready.profile, late_sinks=0)), index).encode(block)
    assert len(payload) < len(plain) + 200


def test_late_sinks_lie_where_their_places_can_be_written() -> None:
    v = np.ones((1, 1, (1 << 16) + 9, 1), np.float16)
    v[:, :, [5, (1 << 16) - 1, (1 << 16) + 5]] = 0.01
    assert find_late(v, 0, 8).tolist() == [5, (1 << 16) - 1], "the last would be taken for 5"


def test_blocks_without_late_sinks_say_so_in_a_byte() -> None:
    ready, block = _with_late_sinks({})
    plain = Fitted(replace(ready, profile=replace(ready.profile, late_sinks=0)), 1).encode(block)
    assert len(Fitted(ready, 1).encode(block)) == len(plain) + 1
    assert find_late(np.zeros((1, 1, 5, 4), np.float16), 0, 2).tolist() == [0, 1], "a V of zeros is no error"


@pytest.mark.parametrize(
    "places", [[3, 20], [20, 20], [50, 20], [20, 64], [20, 30, 40], [65535, 1]], ids=lambda places: str(places)
)
def test_late_sinks_where_none_can_be_are_corrupt(places: list[int]) -> None:
    ready, block = _with_late_sinks({20: 0.02, 50: 0.01})
    codec = Fitted(ready, 1)
    payload = codec.encode(block)
    right = b"\x02" + np.array([20, 50], "<u2").tobytes()
    wrong = bytes([len(places)]) + np.array(places, "<u2").tobytes()
    assert payload.count(right) == 1
    with pytest.raises(CorruptData):
        codec.decode(payload.replace(right, wrong), block.tokens, block.layers, GEOMETRY)
    for stop in range(payload.index(right), payload.index(right) + 12):
        with pytest.raises(CorruptData):
            codec.decode(payload[:stop], block.tokens, block.layers, GEOMETRY)


@pytest.mark.parametrize(("repeated", "sinks"), [(1, 4), (4, 4), (9, 9), (80, 64)])
def test_tokens_that_repeat_the_first_one_are_sinks(repeated: int, sinks: int) -> None:
    profile_ = replace(prepared(GEOMETRY, 2, 0.5).profile, sink_runs=True)
    embeddings = np.random.default_rng(1).normal(size=(80, 16)).astype(np.float32)
    embeddings[:repeated] = embeddings[0]
    ready, block = prepare(profile_, embeddings), sample_block((2, 2, 80, 8))
    back = Fitted(ready, 1).decode(Fitted(ready, 1).encode(block), block.tokens, block.layers, GEOMETRY)
    exact = [np.array_equal(back.v[:, :, t], block.v[:, :, t]) for t in range(80)]
    assert ready.sinks == sinks and exact == [t < sinks for t in range(80)]


def test_embeddings_of_the_different_tokens_are_enough() -> None:
    known = replace(prepared(GEOMETRY, 2, 0.5).profile, sink_runs=True)
    different = np.random.default_rng(1).normal(size=(7, 16)).astype(np.float32)
    places = np.array([3, 3, 3, 3, 3, 0, 6, 3, 1])
    whole, short = prepare(known, different[places]), prepare(known, different, places)
    assert np.allclose(whole.features, short.features, atol=1e-5) and len(short.turns[0][0]) == len(places)
    assert (short.sinks, short.recent) == (whole.sinks, whole.recent) == (5, 5)


def test_a_refining_rung_is_its_base_and_better() -> None:
    ready, block = prepared(GEOMETRY, 2, 0.4), sample_block((2, 2, 64, 8))
    alone, refining = Fitted(ready, 1), Fitted(ready, 0)
    base, both = alone.encode(block), refining.encode(block)
    assert bytes(apart(both)[0]) == base
    errors = [
        np.square(
            codec.decode(payload, block.tokens, block.layers, GEOMETRY).v.astype(np.float32)[:, :, 4:]
            - block.v[:, :, 4:]
        ).mean()
        for codec, payload in ((alone, base), (refining, both))
    ]
    assert errors[1] < errors[0] / 8


@pytest.mark.parametrize("tokens", [3, 20])
def test_a_base_of_another_length_is_corrupt(tokens: int) -> None:
    codec, block = Fitted(prepared(GEOMETRY, 2, 0.4), 0), sample_block((2, 2, tokens, 8))
    base, finer = map(bytes, apart(codec.encode(block)))
    wrong = [(base + b"\0", finer), (base[:-1], finer), (base, finer + b"\0"), (base, finer[:-1]), (finer, base)]
    for pair in wrong:
        with pytest.raises(CorruptData):
            codec.decode(fitted.joined(*pair), block.tokens, block.layers, GEOMETRY)
    for stump in (b"", b"\0", b"\xff" * 4, fitted.joined(base, finer)[: len(base)]):
        with pytest.raises(CorruptData):
            codec.decode(stump, block.tokens, block.layers, GEOMETRY)


def test_a_block_that_is_no_layer_group_is_refused() -> None:
    codec = Fitted(prepared(GEOMETRY, 2, 0.1), 1)
    with pytest.raises(UsageError, match="layer group"):
        codec.encode(sample_block((2, 2, 16, 8), first_layer=1))
    with pytest.raises(CorruptData, match="layer group"):
        codec.decode(b"", Span(0, 16), Span(1, 3), GEOMETRY)


def test_tokens_that_were_not_prepared_are_refused() -> None:
    codec = Fitted(prepared(GEOMETRY, 2, 0.1, tokens=20), 1)
    with pytest.raises(UsageError, match="20 tokens"):
        codec.encode(sample_block((2, 2, 16, 8), first_token=8))


def test_prediction_from_the_token_is_used() -> None:
    """With another context's features, the same bytes mean other values."""
    one = prepared(GEOMETRY, 2, 0.05)
    other = replace(one, features=one.features[::-1].copy())
    block = sample_block((2, 2, 32, 8), first_token=16)
    payload = Fitted(one, 1).encode(block)
    back = Fitted(other, 1).decode(payload, block.tokens, block.layers, GEOMETRY)
    assert np.abs(back.v.astype(np.float32) - block.v).max() > 0.3


@cache
def coder() -> Coder:
    """Tables fitted on Laplacian coefficients of all classes."""
    source, deviations = np.random.default_rng(2), np.exp2((np.arange(CLASSES) - 6) / 2)
    classes = np.arange(CLASSES, dtype=np.uint8)[::-1].copy()
    y = source.laplace(size=(2000, CLASSES)) * deviations[::-1] / np.sqrt(2)
    return tables.tables([(np.rint(y).astype(np.int16), classes)])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_symbols_come_back(data: st.DataObject) -> None:
    tokens, components = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 70))
    spread = data.draw(st.sampled_from([0.1, 1.0, 20.0, 1e5]))
    source = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    y = (spread * source.standard_cauchy((tokens, components))).astype(np.float32)
    classes = source.integers(0, CLASSES, components, np.uint8)
    with_tables = data.draw(st.sampled_from([coder(), tables.start()]))
    coded, found = write(y, classes, with_tables, (0.05, 0.02))
    assert np.array_equal(read(coded, tokens, classes, with_tables), found)
    assert (np.abs(found) <= np.floor(np.clip(np.abs(y), 0, 32000) + 0.5)).all()  # what is rounded away only saves bits
    assert (np.sign(found) * np.sign(y) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_symbols_of_changed_bytes_are_corrupt_or_others(data: st.DataObject) -> None:
    source = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    classes = np.sort(source.integers(0, CLASSES, 40, np.uint8))[::-1].copy()
    y = (source.laplace(size=(6, 40)) * np.exp2((classes - 6.0) / 2)).astype(np.float32)
    coded, found = write(y, classes, coder(), (0.05, 0.02))
    broken = bytearray(coded)
    place = data.draw(st.integers(0, len(coded) - 1))
    broken[place] ^= data.draw(st.integers(1, 255))
    try:
        assert read(bytes(broken), 6, classes, coder()).shape == found.shape
    except CorruptData as error:
        assert error.reason == "length"
    for cut in (coded[:place], coded + b"\0"):
        with pytest.raises(CorruptData):
            read(cut, 6, classes, coder())


def test_symbols_cost_about_their_entropy() -> None:
    source = np.random.default_rng(1)
    deviations = np.geomspace(4, 0.3, 64)
    y = source.laplace(size=(2048, 64)).astype(np.float32) * deviations.astype(np.float32) / np.float32(np.sqrt(2))
    classes = np.clip(np.rint(2 * np.log2(deviations)) + 6, 0, CLASSES - 1).astype(np.uint8)
    coded, found = write(y, classes, coder(), (0.0, 0.0))
    entropy = 0.0
    for column in found.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        entropy -= len(column) * float((share * np.log2(share)).sum())
    assert 8 * len(coded) < 1.03 * entropy


def test_what_lies_around_tells_what_comes() -> None:
    """Coefficients that are large together, as those of a token are, take fewer bits than the same in any order."""
    source = np.random.default_rng(3)
    loud = np.exp(source.normal(size=(600, 1)))
    y = (source.laplace(size=(600, 128)) * loud).astype(np.float32)
    classes = np.full(128, 7, np.uint8)
    fitted_to = tables.tables([(np.rint(y[:300]).astype(np.int16), classes)])
    mixed = source.permuted(y[300:], axis=0)
    together, apart_ = (len(write(part, classes, fitted_to, (0, 0))[0]) for part in (y[300:], mixed))
    assert together < 0.95 * apart_


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_foreign_bytes_are_corrupt(junk: bytes) -> None:
    codec = Fitted(prepared(GEOMETRY, 2, 0.1, tokens=64), 1)
    with pytest.raises(CorruptData):
        codec.decode(junk, Span(0, 32), Span(0, 2), GEOMETRY)


@pytest.mark.parametrize("weak", [0, 4, 12, 999])
@pytest.mark.parametrize("loudest", [0.0, 1.0, 1e4])
def test_the_product_is_right_with_vectors_of_any_width(loudest: float, weak: int, vector_bits: int) -> None:
    source = np.random.default_rng(4)
    basis = prepared(GEOMETRY, 2, 0.1).profile.bases[0]
    to = synthesis(basis)
    a = source.normal(size=(12, len(to.scales))).astype(np.float32) * (source.random((12, len(to.scales))) < 0.3)
    a[:, 0] *= loudest
    a[3] = 0
    rows = np.vstack([basis.predicted(), basis.vectors(len(basis.rows))])
    exact = basis.mean + a[:, : len(rows)].astype(np.float64) @ rows
    strong = max(0, len(to.scales) - weak)
    got = synthesised(a, to, strong)
    near = np.abs(got[:, : exact.shape[1]] - exact).max(axis=1)
    most = np.abs(exact - basis.mean).max(axis=1)
    if weak:  # their rounding, at most half of 1/127 of the largest for each row
        parts = np.abs(a[:, strong : len(rows), None] * rows[strong:])
        most = 40 * (most + weak * parts.max(axis=(1, 2), initial=0))
    assert (near <= 1e-4 * most + 1e-6).all()


def test_sums_of_products_are_the_same_with_vectors_of_any_width(
    built: Callable[..., ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX-512's are computed by hand besides, on every processor. What is left of floats may round in another way."""
    source = np.random.default_rng(5)
    to = synthesis(prepared(GEOMETRY, 2, 0.1).profile.bases[0])
    a = source.normal(size=(12, len(to.scales))).astype(np.float32) * (source.random((12, len(to.scales))) < 0.3)

    def found(bits: int) -> npt.NDArray[np.float32]:
        monkeypatch.setenv("PREREAD_VECTOR_BITS", str(bits))
        return np.stack([synthesised(a, to, strong) for strong in range(0, len(to.scales) + 1, 4)])

    plain, *wider = (found(bits) for bits in (128, 256, 512))
    without = {"avx512f,avx512bw,avx512vnni": "avx2", '"avx512bw"': '"avx2"', '"avx512vnni"': '"avx2"', "v4": "v3"}
    by_hand = built(
        Path(product.__file__).parent,
        ("synthesis.c", "analysis.c"),
        without,
        f"-include{Path(__file__).parent / 'avx512_by_hand.h'}",
    )
    monkeypatch.setattr(product, "library", lambda name: by_hand)
    assert by_hand.preread_synthesis.argtypes is None
    for other in (*wider, found(512)):
        assert np.allclose(other, plain, rtol=1e-6, atol=1e-6 * np.abs(plain).max())
    assert by_hand.preread_synthesis.argtypes is not None, "it was computed by hand"


def test_what_int8_adds_to_the_error_is_a_small_part_of_what_the_step_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, tokens, layers = Geometry(2, 2, 32), Span(64, 128), Span(0, 2)
    ready = prepared(geometry, 2, 20.0)
    thin = ready.profile.rungs[1]
    calm = replace(thin, older=replace(thin.older, classes=(np.full(256, 2, np.uint8),)))
    codec = Fitted(replace(ready, profile=replace(ready.profile, rungs=(calm,))), 0)
    assert fitted._large(calm.older, 0, ready.profile.coder) == 0
    block = sample_block((2, 2, 64, 32), 64)
    payload = codec.encode(block)
    rows = codec.decode(payload, tokens, layers, geometry).v.astype(np.float32)
    monkeypatch.setattr(fitted, "_FEWEST_WEAK", 10**6)
    exact = codec.decode(payload, tokens, layers, geometry).v.astype(np.float32)
    added, made = np.square(rows - exact).mean(), np.square(exact - block.v.astype(np.float32)).mean()
    assert 0 < added < 0.005 * made


def test_components_are_weak_from_the_last_on_whose_symbols_are_large() -> None:
    coder = _golden_profile().coder
    large, small = int(np.argmax(coder.means)), int(np.argmin(coder.means))
    coder = replace(coder, means=np.where(np.arange(CLASSES) == large, 1000, 100).astype(np.uint16))
    of = lambda *classes: fitted._large(Steps(1.0, (np.array(classes, np.uint8),)), 0, coder)  # noqa: E731
    assert (of(small, small), of(large, small, small), of(small, large, small)) == (0, 1, 2)


@pytest.mark.parametrize("strong", [0, 4, 999])
@pytest.mark.parametrize("size", [1e-38, 1e38, np.inf, np.nan])
def test_coefficients_that_no_scale_fits_add_nothing(size: float, strong: int) -> None:
    """A profile's numbers are finite, but not their products: no conversion to an integer may be left undefined."""
    basis = prepared(GEOMETRY, 2, 0.1).profile.bases[0]
    to = synthesis(basis)
    a = np.zeros((6, len(to.scales)), np.float32)
    a[1], a[2, 0] = size, 1
    a[3, -1] = np.nan
    x = synthesised(a, replace(to, scales=np.ones_like(to.scales)), min(strong, len(to.scales)))
    assert np.array_equal(x[3], x[0])
    assert np.array_equal(x[1], x[0]) and np.array_equal(x[0], to.means) and not np.array_equal(x[2], to.means)


def test_golden_payload() -> None:
    """Symbols are integers: every machine reads the same ones, for ever."""
    lines = (VECTORS / "symbols.txt").read_text().splitlines()
    coded, classes = bytes.fromhex(lines[0]), np.array(lines[1].split(), np.uint8)
    expected = np.array([line.split() for line in lines[2:]], np.int16)
    assert np.array_equal(read(coded, len(expected), classes, _golden_profile().coder), expected)


def _golden_profile() -> Profile:
    return profile.loads((VECTORS / "profile.bin").read_bytes())


def test_golden_rows(vector_bits: int) -> None:
    """Rows may differ by what float32 rounds, and no more."""
    lines = (VECTORS / "rows.txt").read_text().splitlines()
    ready = prepare(_golden_profile(), np.linspace(-1, 1, 6 * 16, dtype=np.float32).reshape(6, 16))
    for index, (coded, k, v) in enumerate(zip(lines[::3], lines[1::3], lines[2::3], strict=True)):
        back = Fitted(ready, index).decode(bytes.fromhex(coded), Span(0, 6), Span(0, 1), Geometry(2, 1, 4))
        for half, expected in ((back.k, k), (back.v, v)):
            assert np.allclose(half.ravel(), np.array(expected.split(), np.float32), atol=2e-3, rtol=2e-3)


def test_golden_profile() -> None:
    data = (VECTORS / "profile.bin").read_bytes()
    known = profile.loads(data)
    assert profile.dumps(known) == data
    assert isinstance(known, Profile) and known.geometry == Geometry(2, 1, 4) and known.rungs[1].name == "thin"


@pytest.mark.parametrize(("name", "late_sinks"), [("4", 0), ("late", 2)])
def test_golden_profiles_of_several_rotations(name: str, late_sinks: int, vector_bits: int) -> None:
    data = (VECTORS / f"profile-{name}.bin").read_bytes()
    known = profile.loads(data)
    assert profile.dumps(known) == data and known.groups == (Span(0, 1), Span(1, 3))
    assert [len(rope.frequencies) for rope in known.ropes] == [2, 1, 0] and known.late_sinks == late_sinks
    ready = prepare(known, np.linspace(-1, 1, 6 * 16, dtype=np.float32).reshape(6, 16))
    coded, *halves = (VECTORS / f"rows-{name}.txt").read_text().splitlines()
    back = Fitted(ready, 1).decode(bytes.fromhex(coded), Span(0, 6), Span(1, 3), known.geometry)
    for half, expected in zip((back.k, back.v), halves, strict=True):
        assert np.allclose(half.ravel(), np.array(expected.split(), np.float32), atol=2e-3, rtol=2e-3)


def _small() -> bytes:
    return profile.dumps(prepared(Geometry(2, 1, 4), 1, 0.1).profile)


@pytest.mark.parametrize(("part", "runs", "version"), [(0, False, b"2"), (16, False, b"3"), (0, True, b"3")])
def test_profiles_come_back(part: int, runs: bool, version: bytes) -> None:
    data = profile.dumps(replace(profile.loads(_small()), recent_part=part, sink_runs=runs))
    back = profile.loads(data)
    assert profile.dumps(back) == data and (back.recent_part, back.sink_runs) == (part, runs)
    assert b'"version":' + version + b"}" in data
    with pytest.raises(CorruptData, match="version"):
        profile.loads(data.replace(b'"version":' + version, b'"version":5'))
    if version == b"3":
        with pytest.raises(CorruptData, match="version 2 has neither"):
            profile.loads(data.replace(b'"version":3', b'"version":2'))


def uneven(step: float = 0.02, tokens: int = 256) -> Prepared:
    """Five layers in groups of two, one and two; the third rotates by other angles, and the fourth not at all."""
    even = prepared(GEOMETRY, 2, step).profile
    first = Rope(False, even.ropes[0].frequencies)
    second, none = Rope(False, first.frequencies[:2] / 7), Rope(False, first.frequencies[:0])
    known = replace(
        even,
        groups=(Span(0, 2), Span(2, 3), Span(3, 5)),
        ropes=(first, first, second, none, first),
        bases=tuple(even.bases[n] for n in (0, 2, 1)),
        rungs=tuple(_swapped(rung) for rung in even.rungs),
    )
    embeddings = np.random.default_rng(6).normal(size=(tokens, 16)).astype(np.float32)
    return prepare(profile.loads(profile.dumps(known)), embeddings)


def _swapped(rung: FittedRung) -> FittedRung:
    older, recent = (
        replace(steps, classes=tuple(steps.classes[n] for n in (0, 2, 1))) for steps in (rung.older, rung.recent)
    )
    return replace(rung, older=older, recent=recent)


def test_layers_that_rotate_by_other_angles_come_back() -> None:
    ready = uneven()
    codec, shape = Fitted(ready, 0), (5, 2, 96, 8)
    whole = sample_block(shape, first_token=100)
    for layers in ready.profile.groups:
        at = slice(layers.start, layers.stop)
        block = KVBlock(whole.tokens, layers, whole.k[at], whole.v[at])
        back = codec.decode(codec.encode(block), block.tokens, layers, GEOMETRY)
        for half, sent in ((back.k, block.k), (back.v, block.v)):
            assert np.abs(half.astype(np.float32) - sent).max() < 0.1
    assert ready.profile.group(Span(2, 4)) is None and ready.profile.group(Span(3, 5)) == 2


def test_each_layer_is_un_rotated_by_its_own_angles() -> None:
    """K of the same vector before rotation at every position costs no more than one token."""
    ready = uneven(0.5)
    upright = np.random.default_rng(3).normal(size=(5, 2, 1, 8)).astype(np.float32)
    turned = rotate(np.broadcast_to(upright, (5, 2, 256, 8)).copy(), Span(0, 256), ready.profile.ropes)
    back = unrotate(turned, Span(0, 256), ready.profile.ropes)
    np.testing.assert_allclose(back, np.broadcast_to(upright, back.shape), atol=1e-5)
    assert np.array_equal(turned[3], np.broadcast_to(upright[3], turned[3].shape)), "this layer does not rotate"
    assert not np.allclose(turned[2, ..., :4], rotate(turned[2:3], Span(0, 256), ready.profile.ropes[:1])[0, ..., :4])
    assert len({id(turn) for turn in ready.turns}) == 3, "angles are worked out once for each rotation"


def test_a_profile_of_several_rotations_is_of_version_4() -> None:
    known = uneven().profile
    data = profile.dumps(known)
    back = profile.loads(data)
    assert b'"version":4}' in data and profile.dumps(back) == data
    assert back.groups == known.groups
    for mine, its in zip(back.ropes, known.ropes, strict=True):
        assert np.array_equal(mine.frequencies, its.frequencies) and mine.near == its.near
    assert back.ropes[0] is back.ropes[1] is back.ropes[4] and back.ropes[2] is not back.ropes[3]
    late = profile.dumps(replace(prepared(GEOMETRY, 2, 0.5).profile, late_sinks=3))
    assert b'"version":4}' in late and profile.loads(late).late_sinks == 3
    for older in (b"2", b"3"):
        for newer in (data, late):
            with pytest.raises(CorruptData, match="version"):
                profile.loads(newer.replace(b'"version":4', b'"version":' + older))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("groups", b"[2,1,1]"), ("groups", b"[2,1,3]"), ("groups", b"[0,3,2]"), ("groups", b"[3,1,1]"),
        ("layer_rotations", b"[0,0,1,3,0]"), ("layer_rotations", b"[0,0,1,2]"), ("layer_rotations", b"[]"),
        ("rotations", b"[4,2,1]"), ("rotations", b"[2,2,2]"), ("rotations", b"[5,2,0]"),
        ("rotations", b"[4,2,0,0,0,0,0,0,0]"),
    ],
)  # fmt: skip
def test_a_profile_whose_layers_do_not_fit_its_groups_or_rotations_is_corrupt(field: str, value: bytes) -> None:
    data = profile.dumps(uneven().profile)
    (length,) = struct.unpack_from("<I", data, 4)
    head = re.sub(rf'"{field}":\[[^\]]*\]'.encode(), f'"{field}":'.encode() + value, data[8 : 8 + length])
    assert head != data[8 : 8 + length]
    with pytest.raises(CorruptData):
        profile.loads(data[:4] + struct.pack("<I", len(head)) + head + data[8 + length :])


def test_profile_cut_or_extended_is_corrupt() -> None:
    data = _small()
    for broken in [*(data[:stop] for stop in range(len(data))), data + b"\0"]:
        with pytest.raises(CorruptData):
            profile.loads(broken)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_profile_with_a_changed_byte_is_read_or_corrupt(place: int, byte: int) -> None:
    data = bytearray(_small())
    data[place % len(data)] = byte
    try:
        known = profile.loads(bytes(data))
    except CorruptData:
        return
    assert sum(len(basis.rows) for basis in known.bases) <= len(data)
    codec = Fitted(prepare(known, np.ones((16, 16), np.float32)), 0)
    with pytest.raises(CorruptData):
        codec.decode(b"\0" * 64, Span(0, 16), Span(0, 1), known.geometry)


@pytest.mark.parametrize("field", ["layers", "kv_heads", "head_dim", "group_layers", "feature_count", "pairs"])
@pytest.mark.parametrize("number", [0, -1, 2**15, 2 * 10**7, 2**62])
def test_profile_that_claims_to_be_huge_is_refused_at_once(field: str, number: int) -> None:
    data = _small()
    (length,) = struct.unpack_from("<I", data, 4)
    head = re.sub(rf'"{field}":\d+'.encode(), f'"{field}":{number}'.encode(), data[8 : 8 + length])
    assert head != data[8 : 8 + length]
    broken = data[:4] + struct.pack("<I", len(head)) + head + data[8 + length :]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData):
            profile.loads(broken)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -1.0, 0.0])
def test_profile_with_impossible_numbers_is_corrupt(poison: float) -> None:
    known = prepared(Geometry(2, 1, 4), 1, 0.1).profile
    weight = known.bases[0].weight.copy()
    weight[0] = poison
    bad_basis = replace(known.bases[0], weight=weight)
    bad_rung = replace(known.rungs[1], recent=replace(known.rungs[1].recent, step=poison))
    for bad in (replace(known, bases=(bad_basis, *known.bases[1:])), replace(known, rungs=(bad_rung,))):
        with pytest.raises(CorruptData):
            profile.loads(profile.dumps(bad))


def test_profile_with_impossible_tables_or_bases_is_corrupt() -> None:
    known = prepared(Geometry(2, 1, 4), 1, 0.1).profile
    good = known.coder
    frequencies, levels = good.frequencies.copy(), good.levels.copy()
    frequencies[3, 15] += 1
    levels[0, 0] = LEVELS
    silent = good.frequencies.copy()
    silent[0, -1], silent[0, 15] = 0, silent[0, 15] + silent[0, -1]
    finer, thin = known.rungs
    for bad in (
        replace(known, coder=Coder(good.means, good.levels, frequencies)),
        replace(known, coder=Coder(good.means, levels, good.frequencies)),
        replace(known, coder=Coder(good.means, good.levels, silent)),
        replace(known, rungs=(replace(finer, base="absent"), thin)),
        replace(known, rungs=(replace(finer, base="finer"), thin)),
        replace(known, rungs=(finer, replace(thin, base="finer"))),
    ):
        with pytest.raises(CorruptData):
            profile.loads(profile.dumps(bad))


def test_symbols_that_no_table_has_are_written_plainly() -> None:
    y, classes = np.array([[31999.0, -700.0, 17.0, 0.0]], np.float32), np.array([23, 4, 0, 0], np.uint8)
    coded, found = write(y, classes, tables.start(), (0.0, 0.0))
    assert found.tolist() == [[31999, -700, 17, 0]]
    assert np.array_equal(symbols.read(coded, 1, classes, tables.start()), found)
