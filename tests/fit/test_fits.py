"""What a file of a fit is said to be: each kind by its own parser, and foreign bytes refused with a reason."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align import guide_bytes, mapping_bytes, taught_bytes
from preread.align.taught_bytes import Taught
from preread.errors import CorruptData
from preread.fit import fits
from preread.testing.fits import FILES, GUIDE, LARGE, MAPPING, SMALL
from preread.values import ContextId, KVBlock, Span
from preread.wire import fits as wire
from preread.wire.digest import object_id
from preread.wire.fits import Fit, Fits


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_is_recognised_and_tells_whose_it_is_and_what_it_is_worth(kind: wire.FitKind) -> None:
    data = FILES[kind]
    fit = fits.described(data)
    assert (fit.kind, fit.id, fit.size_bytes, fit.fingerprint) == (kind, object_id(data), len(data), SMALL)
    assert fit.large == (LARGE if kind in ("map", "guide", "family") else None)
    assert wire.loads(wire.dumps(Fits((fit,)))).fits == (fit,)


def test_what_a_fit_was_measured_to_be_worth_is_told_as_its_file_says() -> None:
    told = {
        kind: [
            (one.what, one.dloss_micronats, one.interval_micronats, one.tokens) for one in fits.described(data).measured
        ]
        for kind, data in FILES.items()
    }
    assert told == {
        "codec": [("b4", 1500, None, 1000)],
        "map": [("mapped from layer 1 on", 12_000, None, 512)],
        "guide": [
            ("guided", -30_000, (-50_000, -10_000), 600),
            ("beyond its control", -20_000, (-30_000, -10_000), 600),
        ],
        "decisions": [],
        "family": [("lossless", -20_000, (-30_000, -10_000), 508), ("half", -10_000, (-20_000, 4000), 508)],
    }
    assert fits.described(FILES["decisions"]).text == "120 questions with known answers"


def test_text_of_a_fit_is_one_line_whatever_is_in_it() -> None:
    odd = mapping_bytes.dumps(replace(MAPPING, text="a\x1b[2J\nb\u202e" + "c" * 9000))
    told = fits.described(odd).text
    assert told.startswith("a [2J b c") and len(told) <= 256 and told.isprintable()
    assert fits.described(mapping_bytes.dumps(replace(MAPPING, text="\n"))).text == "unknown"


def test_what_is_of_use_only_where_it_was_made_is_refused() -> None:
    with pytest.raises(CorruptData, match="a guide's control") as refused:
        fits.described(guide_bytes.dumps(replace(GUIDE, control=True)))
    assert refused.value.reason == "kind"
    half = np.zeros((2, 1, 3, 4), np.float16)
    block = KVBlock(Span(0, 3), Span(0, 2), half, half)
    of = ContextId("c" * 64)
    taught = taught_bytes.dumps(Taught(block, of, of, SMALL, LARGE, 0.0, (0.0, 0.0), 1, 1))
    with pytest.raises(CorruptData, match="preread-taught") as refused:
        fits.described(taught)
    assert refused.value.reason == "kind"


@pytest.mark.parametrize("data", [b"", b"{}", b"PRPF", b"PK\x03\x04", b"x" * 99, b"{" + b"[" * 100_000])
def test_what_is_no_fit_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        fits.described(data)


@pytest.mark.parametrize("dloss", [1e9, -1e300])
def test_a_loss_that_cannot_be_is_refused(dloss: float) -> None:
    with pytest.raises(CorruptData) as refused:
        fits.described(mapping_bytes.dumps(replace(MAPPING, dloss=dloss)))
    assert refused.value.reason == "range"
    with pytest.raises(CorruptData) as refused:
        fits.described(mapping_bytes.dumps(replace(MAPPING, tokens=-1)))
    assert refused.value.reason == "range"


def test_a_calibration_that_is_too_large_is_refused_though_it_parses() -> None:
    data = FILES["decisions"] + b" " * 70_000
    with pytest.raises(CorruptData) as refused:
        fits.described(data)
    assert refused.value.reason == "length"


@given(st.sampled_from(list(FILES)), st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1))
def test_damaged_files_are_described_or_refused_and_what_is_described_can_be_listed(
    kind: wire.FitKind, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(FILES[kind])
    for at, value in damage:
        data[at % len(data)] = value
    try:
        fit = fits.described(bytes(data))
    except CorruptData:
        return
    assert wire.loads(wire.dumps(Fits((fit,)))).fits == (fit,) and fit.id == object_id(bytes(data))


@given(st.binary(max_size=200))
def test_foreign_lists_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        wire.loads(data)


FIT = fits.described(FILES["guide"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "preread-catalogue"}, "format"),
        ({"version": 2}, "version"),
        ({"fits": [json.loads(wire.dumps(Fits((FIT,))))["fits"][0]] * 2}, "name"),
        ({"more": 1}, "schema"),
        ({"fits": [{}]}, "schema"),
    ],
)
def test_a_list_that_is_none_is_refused_by_reason(change: dict[str, object], reason: str) -> None:
    plain = json.loads(wire.dumps(Fits((FIT,)))) | change
    with pytest.raises(CorruptData) as refused:
        wire.loads(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    assert refused.value.reason == reason


def test_a_list_as_long_as_it_may_be_keeps_its_bound() -> None:
    line, most = "😀" * 256, 10**12
    rungs = [wire.Measured("b" * 16, -most, 2**53, (-most, -most))] * wire.MAX_MEASURED
    longest = Fit(
        "guide", object_id(b""), wire.MAX_FIT_BYTES, SMALL, line, tuple(rungs), LARGE, line, line,
        "2026-11-29T12:00:00Z"
    )  # fmt: skip
    written = wire.dumps(Fits((longest,)))
    assert wire.loads(written).fits == (longest,)
    assert len(written) * wire.MAX_FITS <= wire.MAX_FITS_BYTES
