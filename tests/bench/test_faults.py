from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.bench.faults import QUESTIONS, WEIGHTS, Document, Turn, schedule, standing

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, turns: int) -> list[Turn]:
    return list(schedule(seed, turns, 20, 90))


def published(turns: list[Turn]) -> dict[str, Document]:
    """What is there when the last of them is asked, checked step by step."""
    there: dict[str, Document] = {}
    versions: dict[str, int] = {}
    for number, turn in enumerate(turns):
        for name in turn.remove:
            assert there.pop(name).name == name
        for document in turn.publish:
            assert document.name not in there and document.version == versions.get(document.name, -1) + 1
            there[document.name], versions[document.name] = document, document.version
        assert there[turn.document.name] == turn.document, "what is asked for is there"
        if turn.replaces is not None and number + 1 < len(turns):
            assert turn.replaces.name == turn.document.name and turn.replaces.version == turn.document.version + 1
            there[turn.document.name], versions[turn.document.name] = turn.replaces, turn.replaces.version
    return there


@given(SEEDS, st.integers(0, 150), st.integers(0, 150))
def test_a_longer_run_begins_like_a_shorter_one(seed: int, some: int, more: int) -> None:
    assert drawn(seed, some + more)[:some] == drawn(seed, some)


@given(SEEDS)
def test_what_is_asked_for_is_published(seed: int) -> None:
    turns = drawn(seed, 200)
    assert [turn.index for turn in turns] == list(range(200))
    there = published(turns)
    assert len(there) >= 2
    for turn in turns:
        assert 20 <= turn.document.tokens <= 90 and 0 <= turn.document.start < 1
        assert 0 <= turn.question < QUESTIONS


@given(SEEDS)
def test_every_fault_sets_in_once_and_ends_once(seed: int) -> None:
    turns = drawn(seed, 200)
    current = None
    for turn in turns:
        if turn.fresh:
            current = turn.episode
        assert turn.episode == current
        assert not turn.after_s or turn.fresh
        if turn.publish or turn.remove:
            assert turn.index == 0 or turns[turn.index - 1].episode.kind == "calm"
        if turn.index and turn.fresh and turns[turn.index - 1].episode.kind != "calm":
            assert turns[turn.index - 1].last, "no fault is left behind"
        if turn.episode.kind in ("edge-kill", "replaced"):
            assert turn.fresh and turn.last
        assert (turn.replaces is not None) <= (turn.episode.kind in ("replaced", "disk-full"))
        assert (turn.episode.sleep_s > 0) == turn.episode.kind.endswith("sleep")


@given(SEEDS, st.integers(0, 149))
def test_any_turn_can_be_played_by_itself(seed: int, index: int) -> None:
    turns = drawn(seed, 150)
    alone = standing(iter(turns), index)
    assert {document.name: document for document in alone.publish} == published(turns[: index + 1])
    assert alone.fresh and not alone.remove
    assert (
        replace(alone, fresh=turns[index].fresh, publish=turns[index].publish, remove=turns[index].remove)
        == (turns[index])
    )


def test_there_are_all_faults() -> None:
    kinds = {turn.episode.kind for turn in drawn(1, 3_000)}
    assert kinds == {*WEIGHTS, "calm"}


def test_a_turn_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no turn 20"):
        standing(schedule(1, 20, 20, 90), 20)
