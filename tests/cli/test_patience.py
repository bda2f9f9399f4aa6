"""When a cloud that cannot do something now is asked again, and when no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.cli import patience
from preread.cli.patience import AWAY_S, BUSY_S, Waited, patiently, pause_s
from preread.errors import (
    CorruptData,
    EngineError,
    Overloaded,
    PrereadError,
    RemoteError,
    TransportError,
    Unavailable,
    UsageError,
)

busy = st.builds(lambda after: Overloaded("busy", retry_after_s=after), st.floats(0, 600))
away = st.sampled_from([Unavailable("away"), TransportError("no answer")])


@given(st.lists(busy | away, min_size=1, max_size=400))
def test_however_it_answers_a_cloud_is_asked_again_after_a_second_or_more_and_not_for_ever(
    errors: list[PrereadError],
) -> None:
    waited, total_s = Waited(), 0.0
    for error in errors:
        again = pause_s(error, waited)
        if again is None:
            break
        pause, waited = again
        assert pause >= 1
        total_s += pause
    assert total_s <= AWAY_S + BUSY_S
    assert waited.away_s <= AWAY_S and waited.busy_s <= BUSY_S


def test_a_cloud_that_stays_away_is_asked_ever_less_often_and_then_no_more() -> None:
    waited, pauses = Waited(), list[float]()
    while (again := pause_s(Unavailable("away"), waited)) is not None:
        pause, waited = again
        pauses.append(pause)
    assert pauses[:6] == [1, 2, 4, 8, 16, 30] and set(pauses[6:]) == {30}
    assert AWAY_S - 30 < sum(pauses) <= AWAY_S


@pytest.mark.parametrize(
    "error", [UsageError("no"), RemoteError("no"), EngineError("no"), CorruptData("json", "no"), PrereadError("no")]
)
def test_what_asking_again_does_not_mend_is_the_answer(error: PrereadError) -> None:
    assert pause_s(error, Waited()) is None
    assert pause_s(error, Waited(away_s=1, away=1)) is None


def test_who_never_answered_is_not_waited_for_but_who_said_that_he_stops_is() -> None:
    silent = TransportError("cannot be reached")
    assert pause_s(silent, Waited()) is None
    for last in (Unavailable("stopping"), Overloaded("stopping", retry_after_s=10)):
        again = pause_s(last, Waited())
        assert again is not None and pause_s(silent, again[1]) is not None


def test_why_it_waits_is_told_once_and_the_last_error_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away: list[PrereadError] = [Unavailable("it stops"), TransportError("nobody"), TransportError("nobody")]
    slept, errors = list[float](), [*away, UsageError("too long")]
    monkeypatch.setattr(patience.time, "sleep", slept.append)

    def call() -> None:
        raise errors.pop(0)

    with pytest.raises(UsageError, match="too long"):
        patiently(call)
    assert slept == [1, 2, 4]
    assert capsys.readouterr().err == "it stops; again in 1 s\nnobody; again in 2 s\n"
