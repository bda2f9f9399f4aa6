"""The values of the fault proxy: what cannot be is refused, JSON is an inverse, chunking does not matter."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import UsageError
from preread.testing.toxics import (
    Blackout,
    Corrupt,
    Ending,
    Fault,
    HalfOpen,
    Link,
    Refuse,
    Reset,
    Slicer,
    Truncate,
    bite,
    fault_from_json,
    fault_to_json,
    link_from_json,
)

BYTES = bytes(range(251))
OFFSETS = st.integers(0, 60)
BITES = st.lists(
    st.one_of(
        st.builds(Reset, OFFSETS),
        st.builds(Truncate, OFFSETS),
        st.builds(Corrupt, OFFSETS, st.integers(1, 255), st.none() | st.integers(1, 20)),
    ),
    max_size=4,
)
FAULTS = st.one_of(
    st.builds(Reset, OFFSETS),
    st.builds(Truncate, OFFSETS),
    st.builds(Corrupt, OFFSETS, st.integers(1, 255), st.none() | st.integers(1, 20)),
    st.builds(Blackout, st.none() | st.floats(0, 9)),
    st.builds(Refuse),
    st.builds(HalfOpen),
    st.builds(Slicer, st.integers(1, 9), st.floats(0, 9)),
)


@given(BITES, st.lists(st.integers(1, 20), max_size=6))
def test_bite_does_not_depend_on_how_bytes_are_chunked(faults: list[Fault], sizes: list[int]) -> None:
    cuts = [fault.after_bytes for fault in faults if isinstance(fault, (Reset, Truncate))]
    expected = bytearray(BYTES[: min([sum(sizes), *cuts])])
    for fault in faults:
        if isinstance(fault, Corrupt):
            for index in range(fault.at_byte, len(expected), fault.every_bytes or 1_000):
                expected[index] ^= fault.mask
    passed, ending = b"", None
    for size in sizes:
        data, ending = bite(faults, len(passed), BYTES[len(passed) : len(passed) + size])
        passed += data
        if ending is not None:
            break
    assert passed == expected
    assert (ending in (Ending.RESET, Ending.CLOSE)) == bool(sizes and cuts and min(cuts) <= sum(sizes))


@given(FAULTS)
def test_faults_survive_json(fault: Fault) -> None:
    assert fault_from_json(json.loads(json.dumps(fault_to_json(fault)))) == fault


@given(st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(), max_size=2))
def test_json_that_is_no_fault_and_no_link(value: object) -> None:
    no_faults = [{"type": value}, {"type": "reset", "after_bytes": [value]}, {"type": "refuse", "x": value}]
    for each in [value, *no_faults]:
        with pytest.raises(UsageError):
            fault_from_json(each)
    for each in [value, {"mbps": [value]}, {"speed": value}]:
        with pytest.raises(UsageError):
            link_from_json(each)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Link(mbps=-1),
        lambda: Link(mbps=float("nan")),
        lambda: Link(rtt_ms=-1),
        lambda: Link(jitter_ms=float("inf")),
        lambda: Link(buffer_bytes=0),
        lambda: Reset(-1),
        lambda: Truncate(True),
        lambda: Corrupt(-1),
        lambda: Corrupt(0, mask=0),
        lambda: Corrupt(0, mask=256),
        lambda: Corrupt(0, every_bytes=0),
        lambda: Blackout(-1),
        lambda: Slicer(0, 1),
        lambda: Slicer(1, -1),
    ],
)
def test_values_that_cannot_be(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()
