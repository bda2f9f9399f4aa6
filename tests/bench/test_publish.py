"""Publishing is measured on two dozen documents of many kinds, none of which any fit has read."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from preread.bench.documents import Document, below, documents
from preread.bench.publish import bench, others
from preread.cloud.quality import windows
from preread.codec.profile_bytes import dumps
from preread.engine.llamacpp import LlamaCpp
from preread.errors import UsageError
from preread.fit.text import calibration
from preread.testing.profile import plain_profile

CLAIMED = {"b4": (0.001, 0.0001), "b1": (2.0, 0.002)}


def test_two_dozen_documents_are_of_many_kinds_and_in_no_fit() -> None:
    found = documents()
    assert len(found) == 24 == len({(one.kind, one.name) for one in found})
    assert {one.kind for one in found} == {"prose", "code", "table", "log", "chat"}
    assert len([one for one in found if one.kind == "prose"]) >= 6
    assert documents() == found  # drawn from seeds
    fitted = "\n".join(calibration().parts)
    for one in found:
        lines = [line for line in one.text.splitlines() if len(line) > 60]
        assert len(one.text) > 1_000 and not any(line in fitted for line in lines)


@given(st.integers(1, 20_000))
def test_what_is_measured_afterwards_lies_where_the_publisher_did_not_look(tokens: int) -> None:
    looked_at = windows(tokens, 30_000, 256)
    found = others(looked_at, tokens)
    assert len(found) <= 8 and all(0 <= span.start < span.stop <= tokens for span in found)
    assert all(before.stop <= after.start for before, after in pairwise(found))
    assert not any(one.start < other.stop and other.start < one.stop for one in looked_at for other in found)
    assert not looked_at or found


def test_the_rung_that_an_edge_takes_is_told_with_what_it_costs_elsewhere(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = LlamaCpp.open(tiny_model, window_tokens=256)
    width = engine.embeddings(engine.tokenize("a")).shape[1]
    profile = tmp_path / "tiny.profile"
    profile.write_bytes(dumps(plain_profile(engine.spec.fingerprint, engine.spec.geometry, width, CLAIMED)))
    engine.close()
    words = " ".join(str(n * n % 997) for n in range(900))
    asked = (Document("table", "squares", 9 * words), Document("prose", "short", words[:300]))  # one is far too long
    told = bench(tiny_model, "tiny", asked, 800, profile, Console(width=160), lambda *_: None)
    long, short = told["rows"]  # type: ignore[misc]
    assert long["rung"] in ("b4", "lossless") and long["tokens"] == 800  # b1 is far worse than it claims
    assert short["measured_on"] in ("fit", "") and long["publish_s"] > 0 < long["bare_s"]
    assert f"kept {told['kept']} of 2" in capsys.readouterr().out


def test_a_folder_of_documents_says_their_kinds(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "one.txt").write_text("started\n")
    (tmp_path / "two.txt").write_text("prose\n")
    (tmp_path / "picture").write_bytes(b"\xff\xfe\xfd")
    assert [(one.kind, one.name) for one in below(tmp_path)] == [("log", "one.txt"), ("text", "two.txt")]
    with pytest.raises(UsageError, match="has no text"):
        below(tmp_path / "log" / "nothing")
