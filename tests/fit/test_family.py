"""Gates: what reading another quantisation's KV costs is measured by the real engine, kept in a file, and found."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.engine.llamacpp import LlamaCpp
from preread.errors import CorruptData, UsageError
from preread.fit import family
from preread.fit.family import HALF, LOSSLESS, Quantised, Through
from preread.fit.sample import TAIL_TOKENS
from preread.fit.text import Text
from preread.testing.fits import GATE, LARGE, SMALL
from preread.testing.profile import plain_profile
from preread.testing.quantised import write_quantised

TEXT = Text("squares", (" ".join(str(n * n % 9973) for n in range(1500)),))
OWN, SOURCE, CHANGES = SMALL, LARGE, GATE.measured


def opened(path: Path) -> LlamaCpp:
    return LlamaCpp.open(path, window_tokens=1024, scored_tokens=TAIL_TOKENS)


@pytest.fixture(scope="module")
def engines(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LlamaCpp, LlamaCpp]]:
    """A coarse quantisation of the model of random weights, and that model."""
    coarse = write_quantised(tmp_path_factory.mktemp("coarse") / "coarse.gguf", tiny_model, "q4_0")
    with closing(opened(coarse)) as own, closing(opened(tiny_model)) as source:
        yield own, source


def test_a_gate_says_what_all_half_and_each_rung_of_the_others_kv_cost(engines: tuple[LlamaCpp, LlamaCpp]) -> None:
    own, source = engines
    width = own.embeddings(own.tokenize("a")).shape[1]
    profile = plain_profile(source.spec.fingerprint, source.spec.geometry, width, {"b4": (0.05, 0.0015)})
    told = list[tuple[int, int]]()
    gate = family.measured(
        own, Quantised(source), TEXT, lambda _, *at: told.append(at), 4, Through(profile, source.embeddings)
    )
    assert (gate.model, gate.source, gate.family) == (
        own.spec.fingerprint,
        source.spec.fingerprint,
        source.spec.family,
    )
    assert [change.what for change in gate.measured] == [LOSSLESS, HALF, "b4"]
    assert all(change.low <= change.dloss <= change.high and change.tokens == 4 * 127 for change in gate.measured)
    assert all(change.dloss != 0 for change in gate.measured)  # it is other KV, read at other places
    assert len({change.dloss for change in gate.measured}) == 3
    assert told == [(n, 4) for n in range(1, 5)]
    assert family.loads(family.dumps(gate)) == gate


def test_a_model_that_reads_the_same_kv_in_another_file_loses_nothing(tiny_model: Path, tmp_path: Path) -> None:
    same = tmp_path / "same.gguf"
    same.write_bytes(tiny_model.read_bytes() + b"\0")  # another file, with the same weights
    with closing(opened(same)) as own, closing(opened(tiny_model)) as source:
        gate = family.measured(own, Quantised(source), TEXT, lambda *_: None, 4)
    assert [(change.dloss, change.low, change.high) for change in gate.measured] == [(0, 0, 0)] * 2
    assert gate.loss == gate.source_loss


def test_only_another_quantisation_of_the_same_model_is_measured(
    engines: tuple[LlamaCpp, LlamaCpp], smollm: Path
) -> None:
    own, source = engines
    with pytest.raises(UsageError, match="the same model"):
        family.measured(own, Quantised(own), TEXT, lambda *_: None)
    with closing(opened(smollm)) as stranger, pytest.raises(UsageError, match="not quantisations of one model"):
        family.measured(own, Quantised(stranger), TEXT, lambda *_: None)
    width = own.embeddings(own.tokenize("a")).shape[1]
    others = plain_profile(own.spec.fingerprint, own.spec.geometry, width, {"b4": (0.05, 0.0015)})
    with pytest.raises(UsageError, match=r"not of .*, whose KV is to be read"):
        family.measured(own, Quantised(source), TEXT, lambda *_: None, 4, Through(others, own.embeddings))


# Files


@pytest.mark.parametrize(
    "broken",
    [
        {"measured": CHANGES[:1]},
        {"measured": (CHANGES[0], CHANGES[0], CHANGES[1])},
        {"measured": (msgspec.structs.replace(CHANGES[0], low=0.0), CHANGES[1])},
        {"source": OWN},
        {"text": ""},
        {"family": "d"},
    ],
    ids=["no half", "one twice", "an interval of nothing", "itself", "no text", "no digest"],
)
def test_a_file_that_makes_no_sense_is_refused(broken: dict[str, object]) -> None:
    data = msgspec.json.encode(msgspec.structs.asdict(GATE) | broken)
    with pytest.raises(CorruptData) as refused:
        family.loads(data)
    assert refused.value.reason == "family"


@given(data=st.binary(max_size=200))
def test_foreign_bytes_are_a_gate_or_corrupt_data(data: bytes) -> None:
    with pytest.raises(CorruptData):
        family.loads(data)


@given(at=st.integers(0, len(family.dumps(GATE)) - 1), byte=st.integers(0, 255))
def test_a_damaged_gate_is_a_gate_or_corrupt_data(at: int, byte: int) -> None:
    data = bytearray(family.dumps(GATE))
    data[at] = byte
    try:
        family.loads(bytes(data))
    except CorruptData as error:
        assert error.reason == "family"


def test_an_edge_finds_the_gates_of_its_model_and_those_it_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert family.found((), OWN) == ()
    usual = family.usual_path(GATE)
    usual.parent.mkdir(parents=True)
    usual.write_bytes(family.dumps(GATE))
    (usual.parent / "zz.json").write_text("{}")
    assert family.found((), OWN) == (GATE,)
    assert "is no gate" in caplog.text
    told = tmp_path / "told.json"
    newer = msgspec.structs.replace(GATE, loss=3.0)
    told.write_bytes(family.dumps(newer))
    assert family.found((told,), OWN) == (newer,)
    with pytest.raises(UsageError, match="another model"):
        family.found((told,), SOURCE)
    with pytest.raises(UsageError, match="make it with `preread fit family`"):
        family.found((tmp_path / "absent.json",), OWN)
