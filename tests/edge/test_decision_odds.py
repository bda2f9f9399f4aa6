"""What decisions are made of, without a model: orders, texts, probabilities, files."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.edge.decisions.odds import averaged, decidedness, expected
from preread.edge.decisions.question import (
    LETTERS,
    Option,
    Question,
    labelled,
    labels_of,
    orders_of,
    predicate,
    text_of,
)
from preread.errors import CorruptData, UsageError
from preread.fit import decisions as kept
from preread.fit.calibration import UNFITTED, Calibration, Scale, scaled
from preread.values import Fingerprint

OWN = Fingerprint("ab" * 32)
logs = st.floats(-30, 0)
scales = st.builds(Scale, st.floats(0.1, 20), st.floats(-5, 5))


def choice(count: int) -> Question:
    return Question("choice", None, "Which?", tuple(Option(n, f"option {n}") for n in range(count)))


@given(st.integers(2, 26))
def test_in_all_orders_each_option_stands_at_each_place_once(count: int) -> None:
    orders = orders_of(choice(count))
    assert len(orders) == count and orders[0] == tuple(range(count))
    for place in range(count):
        assert {order[place] for order in orders} == set(range(count))


@given(st.integers(2, 26), st.integers(1, 30))
def test_fewer_orders_are_so_many_of_them_and_as_far_apart_as_can_be(count: int, most: int) -> None:
    orders = orders_of(choice(count), most)
    assert len(set(orders)) == len(orders) == min(count, most)
    firsts = sorted(order[0] for order in orders)
    gaps = [(b - a) % count or count for a, b in zip(firsts, [*firsts[1:], firsts[0]], strict=True)]
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(2, 26))
def test_a_score_is_asked_up_and_down_so_that_each_level_stands_in_the_middle_on_average(count: int) -> None:
    asked = Question("score", None, "How much?", tuple(Option(n, str(n)) for n in range(count)))
    up, down = orders_of(asked)
    assert all(up.index(level) + down.index(level) == count - 1 for level in range(count))
    assert orders_of(asked, 1) == (up,)


@given(st.integers(2, 26), st.integers(0, 25))
def test_a_label_stands_before_the_option_that_it_counts_for(count: int, nth: int) -> None:
    asked = choice(count)
    orders = orders_of(asked)
    order = orders[nth % count]
    lines = text_of(asked, order).splitlines()
    assert lines[0] == "Which?" and len(lines) == count + 1
    for option, label in zip(asked.options, labelled(asked, order), strict=True):
        assert f"{label}. {option.line}" in lines
    assert labels_of(asked) == LETTERS[:count]


def test_a_predicates_order_is_that_of_its_last_line() -> None:
    asked = predicate("n", "It is so.", true="it is")
    texts = [text_of(asked, order) for order in orders_of(asked)]
    assert texts == ["It is so.\nYes: it is\nYes or No?", "It is so.\nYes: it is\nNo or Yes?"]
    assert {labelled(asked, order) for order in orders_of(asked)} == {("Yes", "No")}


@given(
    st.integers(2, 8).flatmap(
        lambda n: st.tuples(st.lists(logs, min_size=n, max_size=n), st.lists(logs, min_size=n, max_size=n))
    )
)
def test_a_preference_for_places_cancels_over_all_orders(drawn: tuple[list[float], list[float]]) -> None:
    """Whatever is added to the log-probability of each label, the same probabilities come out."""
    true, bias = drawn
    asked = choice(len(true))
    rows = [
        [true[option] + bias[LETTERS.index(label)] for option, label in enumerate(labelled(asked, order))]
        for order in orders_of(asked)
    ]
    found, plain = scaled(averaged(rows), Scale()), scaled(averaged([true]), Scale())
    assert found == pytest.approx(plain, abs=1e-9)


def test_what_orders_say_is_averaged_geometrically() -> None:
    rows = [[math.log(0.8), math.log(0.2)], [math.log(0.2), math.log(0.8)]]
    assert scaled(averaged(rows), Scale()) == pytest.approx([0.5, 0.5])
    rows = [[math.log(0.9), math.log(0.1)], [math.log(0.5), math.log(0.5)]]
    assert scaled(averaged(rows), Scale()) == pytest.approx([0.75, 0.25])  # odds √(9 · 1)


@given(st.lists(logs, min_size=2, max_size=26), scales)
def test_probabilities_sum_to_one_and_a_temperature_changes_no_choice(given_logs: list[float], scale: Scale) -> None:
    rescaled = scaled(averaged([given_logs]), scale)
    assert math.fsum(rescaled) == pytest.approx(1) and all(0 <= p <= 1 for p in rescaled)
    assert 0 <= decidedness(rescaled) <= 1 and -1e-9 <= expected(rescaled) <= len(given_logs) - 1 + 1e-9
    if len(given_logs) > 2:
        plain = scaled(averaged([given_logs]), Scale())
        assert plain[rescaled.index(max(rescaled))] == pytest.approx(max(plain))


def test_confidence_is_none_where_nothing_is_likelier_and_whole_where_one_is_certain() -> None:
    assert decidedness([0.25] * 4) == pytest.approx(0) and decidedness([1.0, 0.0]) == 1
    assert decidedness([0.0125, 0.9781, 0.0093]) == pytest.approx(0.8906, abs=1e-3)  # the example in Ollama's docs


@given(st.dictionaries(st.sampled_from(("predicate", "choice", "score")), scales), st.integers(1, 10**6))
def test_a_calibration_survives_its_file(found: dict, fitted: int) -> None:  # type: ignore[type-arg]
    calibration = Calibration(found, fitted)
    assert kept.loads(kept.dumps(calibration, OWN), OWN) == calibration


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 10_000,
        kept.dumps(Calibration({"choice": Scale(1.0)}, 5), OWN).replace(b"1.0", b"0.0"),
        kept.dumps(Calibration({"choice": Scale(1.0)}, 5), OWN).replace(b"1.0", b"1e999"),
        kept.dumps(Calibration({"choice": Scale(1.0)}, 5), OWN).replace(b"decisions 1", b"decisions 2"),
        kept.dumps(Calibration({"choice": Scale(1.0)}, 5), OWN).replace(b"choice", b"box"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        kept.loads(data, OWN)


def test_an_edge_takes_the_file_it_is_told_of_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = Calibration({"choice": Scale(2.0)}, 5)
    file = tmp_path / "fitted.json"
    file.write_bytes(kept.dumps(fitted, OWN))
    assert kept.found(file, OWN) == fitted
    with pytest.raises(UsageError, match="preread fit decisions"):
        kept.found(file, Fingerprint("cd" * 32))
    with pytest.raises(UsageError, match="preread fit decisions"):
        kept.found(tmp_path / "absent.json", OWN)
    monkeypatch.setattr(kept, "usual_path", lambda model: tmp_path / f"{model}.json")
    assert kept.found(None, OWN) == UNFITTED
    (tmp_path / f"{OWN}.json").write_bytes(b"nonsense")
    assert kept.found(None, OWN) == UNFITTED, "a file that nobody named keeps no edge from starting"
