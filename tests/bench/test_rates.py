import re
from pathlib import Path

import numpy as np
import pytest

from preread.bench import plot
from preread.bench.load import Row as LoadRow
from preread.bench.rates import Row, Sample, at_equal_kl, bits_at, curves, row, scheme
from preread.bench.ttft import Row as TtftRow
from preread.errors import UsageError
from preread.fit.align import Alignment
from preread.fit.quality import Score


def made(rung: str, bits: float, kl: float) -> Row:
    return Row(rung, None, bits, bits * 10, kl / 4, (0.0, kl / 2), kl, (kl / 2, kl * 2), 0.9, None, None)


ROWS = [
    made("lossless", 13.0, 0.0), made("b2", 2.0, 0.01), made("b1", 1.0, 0.04), made("q4", 3.0, 0.01),
    made("kivi-4", 4.5, 0.01), made("kivi-2", 2.5, 0.16),
    made("llama-q8_0", 8.5, 0.001), made("llama-q4_0", 4.5, 0.002),
]  # fmt: skip


def sample(window: int, tokens: int, bits: float, dloss: float, seconds: float | None) -> Sample:
    score = Score(np.full(3, dloss), np.full(4, 2 * dloss), np.array([True, True, True, False]))
    return Sample(window, tokens, bits, 100 * bits, score, seconds, seconds)


def test_rungs_make_curves_by_scheme() -> None:
    found = curves(ROWS)
    assert {name: [of.rung for of in curve] for name, curve in found.items()} == {
        "preread": ["b1", "b2"], "unfitted": ["q4"], "KIVI-like": ["kivi-2", "kivi-4"],
        "llama.cpp": ["llama-q4_0", "llama-q8_0"],
    }  # fmt: skip
    assert scheme("cachegen-fine") == "CacheGen-like"


def test_bits_are_interpolated_over_log_kl() -> None:
    ours = curves(ROWS)["preread"]
    assert bits_at(ours, 0.02) == pytest.approx(1.5)
    assert bits_at(ours, 0.01) == pytest.approx(2.0)


def test_nothing_is_extrapolated() -> None:
    found = curves(ROWS)
    assert bits_at(found["preread"], 0.5) == 1.0
    assert bits_at(found["llama.cpp"], 0.05) == 4.5
    assert bits_at(found["preread"], 0.005) is None


def test_equal_kl_is_against_the_best_of_the_others_and_not_against_our_old_rungs() -> None:
    found = at_equal_kl(ROWS, 0.02)
    assert found.best == "KIVI-like"
    assert found.ours_bits == pytest.approx(1.5) and found.best_bits == pytest.approx(4.0)
    assert found.ratio == pytest.approx(4 / 1.5)
    assert at_equal_kl(ROWS[:3], 0.02).ratio is None and at_equal_kl(ROWS[3:], 0.02).ratio is None


def test_a_row_takes_all_lengths_or_one_and_windows_as_units() -> None:
    samples = [sample(0, 512, 2.0, 0.1, 1.0), sample(0, 2048, 1.0, 0.3, 1.0), sample(1, 512, 2.2, 0.1, 2.0)]
    every, short = row("b2", samples), row("b2", samples, 512)
    assert every.context_tokens is None and short.context_tokens == 512
    assert every.bits_per_value == pytest.approx(5.2 / 3, abs=1e-4) and short.bits_per_value == pytest.approx(2.1)
    assert every.dloss == pytest.approx(0.5 / 3, abs=1e-6) and short.kl == pytest.approx(0.2)
    assert every.dloss_ci == pytest.approx((0.1, 0.2)) and short.dloss_ci == pytest.approx((0.1, 0.1))
    assert every.top1 == 0.75 and every.encode_tokens_s == 512 and short.decode_tokens_s == 384
    assert row("llama-q8_0", [sample(0, 512, 8.5, 0.0, None)]).decode_tokens_s is None


@pytest.mark.parametrize("suffix", plot.FORMATS)
def test_the_picture_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rates{suffix}"
    plot.check(path)
    plot.draw(ROWS, "a model", path)
    assert path.stat().st_size > 5_000


def test_the_picture_of_an_alignment_is_written(tmp_path: Path) -> None:
    found = Alignment("small", "large", "a text", 100, np.random.default_rng(0).random((4, 6)), (0, 1, 3, 5))
    plot.draw_alignment(found, tmp_path / "align.svg")
    assert (tmp_path / "align.svg").stat().st_size > 5_000
    with pytest.raises(UsageError, match="cannot write"):
        plot.draw_alignment(found, tmp_path / "absent" / "align.png")


def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="png"):
        plot.check(tmp_path / "rates.txt")
    with pytest.raises(UsageError, match="no folder"):
        plot.check(tmp_path / "absent" / "rates.png")


def test_times_to_first_token_are_drawn_over_the_links_rate(tmp_path: Path) -> None:
    def row(mbps: float, rtt_ms: float, rung: str) -> TtftRow:
        times_s, ratios = (8.0, 0.1, 0.5, 0.4, (), 90 / (mbps + 9), 1.0), (1.1, 1.0, 0.1, 1.0, 8.0)
        return TtftRow(mbps, rtt_ms, 1000, 32, rung, 900, *times_s, *ratios, True, "streamed")

    rows = [row(m, rtt_ms, rung) for m in (0.0, 5.0, 100.0) for rtt_ms in (5.0, 80.0) for rung in ("lossless", "b1.2")]
    plot.draw_ttft(rows, "a model", tmp_path / "ttft.svg")
    drawn = (tmp_path / "ttft.svg").read_text()
    assert drawn.count("#7d8590") > 5 and "fill: #ffffff" not in drawn, "it is seen on light pages and on dark ones"


def test_the_picture_of_rates_says_how_many_bytes_are_saved_and_what_exact_ones_take(tmp_path: Path) -> None:
    plot.draw(ROWS, "a model", tmp_path / "rates.svg")
    told = re.findall(r"<!-- (.*?) -->", (tmp_path / "rates.svg").read_text())
    ratio = at_equal_kl(ROWS, 0.02).ratio
    assert f"{ratio:.1f} × fewer bytes" in told and {"lossless, exact", "float16, exact"} <= {*told}


def test_requests_that_were_not_answered_are_in_the_picture_of_load(tmp_path: Path) -> None:
    def row(system: str, rps: float, failed: int) -> LoadRow:
        times = (rps, 32 * rps, rps, 3 * rps, 0.1, 0.5, None, 1000.0, 32.0)
        return LoadRow(system, "warm", None, rps, 100, failed, *times, {}, 1.0)

    rows = [row("preread", 0.5, 0), row("preread", 1.0, 0), row("llama-server", 0.4, 0), row("llama-server", 0.5, 7)]
    plot.draw_load(rows, "a model", tmp_path / "load.svg")
    drawn = (tmp_path / "load.svg").read_text()
    told = re.findall(r"<!-- (.*?) -->", drawn)
    assert {"7 of 100 not answered", "preread, median", "llama-server, 99th percentile"} <= {*told}
    assert drawn.count("#7d8590") > 5 and "fill: #ffffff" not in drawn
