"""Proofs of a site's key: what each covers, and that nothing else than the same key over the same things makes one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData, UsageError
from preread.wire.neighbour import Claim, Introduction, SiteKey, address, introduction, same

KEY = SiteKey("an-open-secret-of-the-site")
ASKER = Claim("a" * 16, "1" * 32)
SAID = Introduction("b" * 16, "f" * 64, nonce="2" * 32)
HERE = "10.0.0.5 8090"


def test_a_proof_is_what_docs_wire_md_says() -> None:
    """Fixed for ever: edges of different releases prove to each other."""
    assert KEY.answer(ASKER, SAID, HERE) == "af66111b9d59ebb26508fbe9b56ecc176164ca96b4203843f5a30b3060c149ad"
    assert KEY.request(ASKER, SAID.edge, SAID.nonce, HERE, "/v1/segments/x") == (
        "6b5c8a0589b9708bdca91ffd75016de6ba070ea4f877f2269e1c70309e8beb4c"
    )


@pytest.mark.parametrize(
    "other",
    [
        SiteKey("another-secret-of-a-site").answer(ASKER, SAID, HERE),
        KEY.answer(Claim("c" * 16, ASKER.nonce), SAID, HERE),
        KEY.answer(Claim(ASKER.edge, "3" * 32), SAID, HERE),
        KEY.answer(ASKER, Introduction("c" * 16, SAID.model, SAID.nonce), HERE),
        KEY.answer(ASKER, Introduction(SAID.edge, "0" * 64, SAID.nonce), HERE),
        KEY.answer(ASKER, Introduction(SAID.edge, SAID.model, "3" * 32), HERE),
        KEY.answer(ASKER, SAID, "10.0.0.6 8090"),
        KEY.request(ASKER, SAID.edge, SAID.nonce, HERE, SAID.model),
    ],
    ids=["key", "asker", "asker's nonce", "edge", "model", "nonce", "address", "a request's"],
)
def test_a_proof_holds_for_nothing_else(other: str) -> None:
    assert not same(other, KEY.answer(ASKER, SAID, HERE))
    assert same(KEY.answer(ASKER, SAID, HERE), KEY.answer(ASKER, SAID, HERE))


@pytest.mark.parametrize("key", ["", "short", "fifteen-letters", "with a space in the middle", "ключ" * 8, "x" * 513])
def test_a_key_that_could_be_guessed_or_sent_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="openssl rand"):
        SiteKey(key)


def test_a_key_is_not_printed() -> None:
    assert "open-secret" not in repr(KEY) + str(KEY)


@pytest.mark.parametrize("proof", ["", "e" * 64])
def test_a_claim_is_read_as_it_is_written(proof: str) -> None:
    claim = Claim(ASKER.edge, ASKER.nonce, proof)
    assert Claim.parse(str(claim)) == Claim.parse(str(claim).replace("Preread-Site", "preread-site")) == claim


@given(st.text())
def test_any_other_header_is_no_claim(text: str) -> None:
    assert Claim.parse(text) is None and Claim.parse(f"{ASKER}{text[:1] or ','}") is None


@given(st.binary())
def test_any_other_bytes_are_no_introduction(data: bytes) -> None:
    with pytest.raises(CorruptData):
        introduction(data)


@pytest.mark.parametrize("change", [{"edge": "x"}, {"edge": 5}, {"nonce": "2", "proof": "3" * 64}, {"proof": "3" * 64}])
def test_a_wrong_introduction_is_refused(change: dict[str, Any]) -> None:
    good = {"edge": SAID.edge, "model": SAID.model, "later": 1}
    assert introduction(json.dumps(good).encode()) == Introduction(SAID.edge, SAID.model)
    with pytest.raises(CorruptData):
        introduction(json.dumps(good | change).encode())


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.0.0.5", HERE), ("::ffff:10.0.0.5", HERE), ("fe80::1%eth0", "fe80::1 8090"), ("FE80::1", "fe80::1 8090")],
)
def test_both_ends_write_an_address_alike(host: str, expected: str) -> None:
    assert address(host, 8090) == expected
