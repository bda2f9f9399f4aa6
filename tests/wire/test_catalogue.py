import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.values import ContextId, Fingerprint, ObjectId, ObjectRef
from preread.wire import catalogue as catalogues
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.digest import object_id
from preread.wire.fields import SizedId

ENTRY = Entry(
    name="manual",
    context=ContextId("c" * 64),
    form="chat",
    fingerprint=Fingerprint("f" * 64),
    vocabulary=Fingerprint("5" * 64),
    model="tiny",
    token_count=10,
    manifest=SizedId(ObjectId("1" * 64), 1000),
    tokens=SizedId(ObjectId("2" * 64), 50),
)


def reason(data: bytes) -> str:
    with pytest.raises(CorruptData) as caught:
        catalogues.loads(data)
    return caught.value.reason


def test_golden(vectors: Path) -> None:
    data = (vectors / "catalogue.json").read_bytes()
    golden = catalogues.loads(data)
    assert catalogues.dumps(golden) == data
    (entry,) = golden.contexts
    manifest, tokens = (vectors / "manifest.json").read_bytes(), (vectors / "tokens.bin").read_bytes()
    assert (entry.name, entry.form, entry.model, entry.token_count) == (
        "a manual, 2nd edition — été",
        "chat",
        "tiny é",
        8,
    )
    assert catalogues.manifest_ref(entry) == ObjectRef("manifests", object_id(manifest), len(manifest))
    assert catalogues.tokens_ref(entry) == ObjectRef("tokens", object_id(tokens), len(tokens))


@pytest.mark.parametrize("names", [[], ["manual"], ["b", "a", "A"]])
def test_round_trip(names: list[str]) -> None:
    whole = Catalogue(tuple(msgspec.structs.replace(ENTRY, name=name) for name in names))
    assert catalogues.loads(catalogues.dumps(whole)) == whole


@pytest.mark.parametrize("removed", [(), ("old",), ("b", "a")])
def test_removed_names_are_told_in_their_order_and_left_out_where_there_are_none(removed: tuple[str, ...]) -> None:
    data = catalogues.dumps(Catalogue((ENTRY,), removed))
    assert catalogues.loads(data).removed == removed and (b'"removed"' in data) == bool(removed)


def test_a_newer_version_says_upgrade() -> None:
    with pytest.raises(CorruptData, match="catalogue has version 2, this preread reads up to 1: upgrade it"):
        catalogues.loads(b'{"format":"preread-catalogue","version":2}')


CHANGES: list[tuple[str, str, Callable[[Any], object]]] = [
    ("format", "format", lambda t: t.update(format="preread-manifest")),
    ("extra", "schema", lambda t: t["contexts"][0].update(extra=1)),
    ("missing", "schema", lambda t: t["contexts"][0].pop("form")),
    ("twice", "name", lambda t: t["contexts"].append(t["contexts"][0])),
    ("name", "name", lambda t: t["contexts"][0].update(name="../etc")),
    ("name type", "schema", lambda t: t["contexts"][0].update(name=None)),
    ("context", "schema", lambda t: t["contexts"][0].update(context="c")),
    ("fingerprint", "schema", lambda t: t["contexts"][0].update(fingerprint="F" * 64)),
    ("model", "schema", lambda t: t["contexts"][0].update(model="\x1b[31m")),
    ("count", "schema", lambda t: t["contexts"][0].update(token_count=0)),
    ("manifest id", "schema", lambda t: t["contexts"][0]["manifest"].update(id="")),
    ("manifest bytes", "length", lambda t: t["contexts"][0]["manifest"].update(bytes=2**24 + 1)),
    ("tokens bytes", "length", lambda t: t["contexts"][0]["tokens"].update(bytes=1000)),
    ("removed twice", "name", lambda t: t.update(removed=["x", "x"])),
    ("removed and there", "name", lambda t: t.update(removed=[t["contexts"][0]["name"]])),
    ("removed no name", "name", lambda t: t.update(removed=["a/b"])),
    ("removed too many", "schema", lambda t: t.update(removed=[str(i) for i in range(4097)])),
    ("removed nothing", "json", lambda t: t.update(removed=[])),
    ("tokens zero", "schema", lambda t: t["contexts"][0]["tokens"].update(bytes=0)),
]


@pytest.mark.parametrize(("expected", "change"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_broken(expected: str, change: Callable[[Any], object]) -> None:
    tree = json.loads(catalogues.dumps(Catalogue((ENTRY,))))
    change(tree)
    assert reason(json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()) == expected


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(UsageError, match="cannot be published"):
        catalogues.dumps(Catalogue((ENTRY, ENTRY)))


@pytest.mark.parametrize("name", ["a", "a" * 128, "été 2", "手册", "a\\b", "...", "-"])
def test_names(name: str) -> None:
    assert catalogues.valid_name(name)


@pytest.mark.parametrize("name", ["", "a" * 129, "a/b", ".", "..", "a\nb", "a\x00", "\x7f", "\x85", "\u2028", "\ud800"])
def test_what_cannot_be_a_name(name: str) -> None:
    assert not catalogues.valid_name(name)


@given(st.text(st.characters(codec="utf-8"), max_size=140))
def test_every_valid_name_survives(name: str) -> None:
    whole = Catalogue((msgspec.structs.replace(ENTRY, name=name),))
    if catalogues.valid_name(name):
        assert catalogues.loads(catalogues.dumps(whole)) == whole
    else:
        with pytest.raises(UsageError):
            catalogues.dumps(whole)


def test_truncated_or_flipped(vectors: Path) -> None:
    data = (vectors / "catalogue.json").read_bytes()
    for stop in range(len(data)):
        reason(data[:stop])
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 4
        try:
            assert catalogues.dumps(catalogues.loads(bytes(broken))) == broken
        except CorruptData:
            continue


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    assert reason(data)
