"""Changes as a cloud tells them: written, cut anywhere, and read again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData
from preread.wire import catalogue as catalogues
from preread.wire import told
from preread.wire.told import Events, Told

VERSION = "0123456789abcdef" * 4
EVENTS = st.lists(
    st.one_of(
        st.just(Told("")),
        st.builds(Told, st.just(VERSION), st.sampled_from([b"", b'{"contexts":[]}', b"{}" * 50])),
        st.none(),
    ),
    max_size=10,
)


@given(EVENTS, st.data())
def test_events_are_read_wherever_their_bytes_are_cut(events: list[Told | None], data: st.DataObject) -> None:
    written = b"".join(told.SILENCE if event is None else told.write(event) for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    reader, found = Events(), list[Told]()
    for start, stop in zip([0, *cuts], [*cuts, len(written)], strict=True):
        found += reader.feed(written[start:stop])
    assert found == [event for event in events if event is not None]


@given(st.binary(max_size=400))
def test_any_bytes_are_events_or_are_refused(data: bytes) -> None:
    reader = Events()
    try:
        for event in reader.feed(data) + reader.feed(b"\n\n"):
            assert event.version == "" or len(event.version) == 64
    except CorruptData as error:
        assert error.reason in {"length", "schema"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"id: no version\n\n", "schema"),
        (b"data: " + b"x" * (told.MAX_CHANGES_BYTES + 100), "length"),
        (b"data: " + b"x" * (told.MAX_CHANGES_BYTES + 100) + b"\n\n", "length"),
    ],
)
def test_what_no_cloud_may_tell_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptData) as caught:
        Events().feed(data)
    assert caught.value.reason == reason


def test_what_later_clouds_may_say_besides_is_passed_over() -> None:
    data = f"retry: 5\nevent: weather\nid: {VERSION}\ndata: rain\n\nid:{VERSION}\ncolour: red\n\n".encode()
    assert Events().feed(data) == [Told(VERSION)]


def test_golden(vectors: Path) -> None:
    """The same stream is read by every later release: an edge may be older or newer than its cloud."""
    data = (vectors / "changes.txt").read_bytes()
    first, second, third = Events().feed(data)
    assert (first, third) == (Told(VERSION), Told(""))
    changes = catalogues.loads(second.changes)
    assert (changes.since, changes.removed) == (VERSION, ("a manual, 1st edition",))
    assert [entry.name for entry in changes.contexts] == ["a manual, 2nd edition — été"]
    assert b"".join(map(told.write, (first,))) + told.SILENCE + told.write(second) + told.write(third) == data
