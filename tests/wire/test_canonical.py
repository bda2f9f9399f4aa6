import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.wire import canonical

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(codec="utf-8"))
KEYS = st.text(st.characters(codec="utf-8"), max_size=8)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10)


class Pair(msgspec.Struct, frozen=True):
    b: int
    a: str = "é"


def test_one_way_to_write() -> None:
    assert canonical.dumps(Pair(1)) == '{"a":"é","b":1}'.encode()
    assert (
        canonical.dumps({"b": [1, None], "a": {"z": True, "y": '"\n'}}) == rb'{"a":{"y":"\"\n","z":true},"b":[1,null]}'
    )


@given(TREES)
def test_round_trip(tree: Any) -> None:
    assert canonical.loads(canonical.dumps(tree), object, 2**20) == tree


@pytest.mark.parametrize("value", [1.0, {"a": [1, 2.5]}, (math.nan,), {"a": object()}, "\ud800"])
def test_what_has_no_one_way_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        canonical.dumps(value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b'{"a":"x","b":1}\n', "json"),
        (b'{"a":"x", "b":1}', "json"),
        (b'{"b":1,"a":"x"}', "json"),
        (b'{"b":1}', "json"),
        (b'{"a":"x","b":1,"c":2}', "json"),
        (b'{"a":"x","a":"x","b":1}', "json"),
        (rb'{"a":"\u0078","b":1}', "json"),
        (b'{"a":"x","b":-0}', "json"),
        (b'{"a":"\xff","b":1}', "json"),
        (rb'{"a":"\ud800","b":1}', "json"),
        (b'{"a":' + b"[" * 900 + b"]" * 900 + b',"b":1}', "schema"),
        (b'{"a":"x","b":1.0}', "schema"),
        (b'{"a":"x","b":true}', "schema"),
        (b'{"a":"x"}', "schema"),
        (b"[]", "schema"),
        (b'{"a":"' + b"x" * 2000 + b'","b":1}', "length"),
    ],
)
def test_everything_else_is_corrupt(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptData) as caught:
        canonical.loads(data, Pair, 2000)
    assert caught.value.reason == reason


def test_deep_nesting_is_corrupt() -> None:
    with pytest.raises(CorruptData):
        canonical.loads(b"[" * 10**6, object, 2**21)
    with pytest.raises(CorruptData):
        canonical.loads(b"[" * 10**5 + b"]" * 10**5, object, 2**21)


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(CorruptData):
        canonical.loads(data, Pair, 2000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"format":"preread-thing","version":3,"new":{}}', "version"),
        (b'{"format":"preread-thing","version":0}', "version"),
        (b'{"format":"preread-other","version":1}', "format"),
        (b'{"version":1}', "schema"),
        (b"nothing", "json"),
    ],
)
def test_stamp(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptData) as caught:
        canonical.check_stamp(data, "preread-thing", 2, 100)
    assert caught.value.reason == reason


def test_stamp_says_upgrade() -> None:
    with pytest.raises(CorruptData, match="thing has version 3, this preread reads up to 2: upgrade it"):
        canonical.check_stamp(b'{"format":"preread-thing","version":3}', "preread-thing", 2, 100)
    canonical.check_stamp(b'{"format":"preread-thing","version":1,"more":0}', "preread-thing", 2, 100)
