"""The log of names: whatever is done in whatever order, the last change and its base say all."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.errors import CorruptData
from preread.testing.cloud import FINGERPRINT
from preread.values import ContextId, ObjectId
from preread.wire import log
from preread.wire.catalogue import Entry
from preread.wire.digest import object_id
from preread.wire.fields import SizedId
from preread.wire.log import Base, BaseRef, Change, Dated, Edit, State

ME = "0123456789abcdef"
names = st.sampled_from([f"name {number}" for number in range(40)])
edits = st.builds(Edit, publish=st.none(), remove=names) | st.builds(
    lambda name, at, sweeping: Edit(dated(name, at), None, sweeping), names, st.integers(0, 9), st.booleans()
)


def dated(name: str, at: int = 1) -> Dated:
    id = ObjectId(object_id(f"{name} {at}".encode()))
    entry = Entry(name, ContextId(id), "text", FINGERPRINT, FINGERPRINT, "m", 1, SizedId(id, 9), SizedId(id, 9))
    return Dated(entry, at)


def written(state: State) -> BaseRef:
    data = log.dumps(state.whole())
    return BaseRef(object_id(data), len(data), state.number)


def go_on(state: State, edit: Edit, *, anew: bool) -> State:
    """As a writer does, through what is written."""
    base = written(state) if anew else None if state.last is None else state.last.base
    change = log.following(state, ME, edit, base)
    based = log.loads_base(log.dumps(state.whole())) if anew else state.based
    return log.after(based, log.loads(log.dumps(change), state.number + 1))


@settings(max_examples=50)
@given(st.lists(st.tuples(edits, st.booleans())), st.sets(names))
def test_the_last_change_says_what_all_changes_did(done: list[tuple[Edit, bool]], before: set[str]) -> None:
    state = log.started(Base(tuple(dated(name) for name in sorted(before))))
    published = {name: dated(name) for name in before}
    removed: list[str] = []
    for number, (edit, anew) in enumerate(done, 1):
        state = go_on(state, edit, anew=anew or log.is_due(state))
        if edit.remove is not None:
            published.pop(edit.remove, None)
            removed = [*(one for one in removed if one != edit.remove), edit.remove]
        if edit.publish is not None:
            published[edit.publish.entry.name] = edit.publish
            removed = [one for one in removed if one != edit.publish.entry.name]
        assert state.number == number and state.sweeping == edit.sweeping
        assert state.contexts == published and list(state.removed) == removed
    assert state.last is None or len(state.last.contexts) <= log.FEWEST_CHANGES + 1


@settings(max_examples=5)
@given(st.integers(0, 400))
def test_a_change_stays_small_beside_its_base(count: int) -> None:
    state = log.started(Base(tuple(dated(f"{number:04}") for number in range(count))))
    most = 0
    for number in range(60):
        state = go_on(state, Edit(dated(f"new {number}")), anew=log.is_due(state))
        assert state.last is not None
        most = max(most, len(state.last.contexts))
    assert most <= max(log.FEWEST_CHANGES, (2 * (count + 60)) ** 0.5) + 1


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("schema", {"number": 3}),
        ("name", {"removed": ("a", "a")}),
        ("name", {"removed": ("a/b",)}),
        ("name", {"contexts": (dated("a"),), "removed": ("a",)}),
        ("schema", {"writer": "me"}),
        ("schema", {"sweeps": -1}),
    ],
)
def test_what_is_no_change_is_refused(reason: str, damage: dict[str, object]) -> None:
    change = msgspec.structs.replace(Change(2, ME, 0, None), **damage)
    with pytest.raises(CorruptData) as caught:
        log.loads(log.dumps(change), 2)
    assert caught.value.reason == reason


@given(st.binary(max_size=200))
def test_bytes_that_are_no_log_are_refused(data: bytes) -> None:
    for read in (lambda: log.loads(data, 1), lambda: log.loads_base(data)):
        with pytest.raises(CorruptData):
            read()
