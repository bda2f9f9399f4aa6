"""Keys: how they are written, whose they are, what they are good for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import UsageError
from preread.store import auth
from preread.store.auth import SCOPES, Keys

SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=":,"), min_size=1)
WRITTEN = st.tuples(st.sampled_from(["", "read:", "publish:", "ask:"]), SECRETS)


@given(st.lists(WRITTEN, min_size=1, max_size=6), st.sampled_from(["Bearer ", "bearer ", "BEARER   ", " bEaReR "]))
def test_every_key_is_identified_with_the_scopes_that_it_was_given(written: list[tuple[str, str]], scheme: str) -> None:
    keys = Keys.of([scope + secret for scope, secret in written], "read")
    for _, secret in written:
        holder = keys.identify(f"{scheme}{secret}".encode())
        named = {scope.removesuffix(":") or "read" for scope, other in written if other == secret}
        assert holder is not None and holder.scopes == named | ({"read"} if "publish" in named else set())
    assert len({holder.name for holder in keys.holders.values()}) == len({secret for _, secret in written})


@given(st.lists(WRITTEN, min_size=1, max_size=6), st.binary(max_size=60))
def test_nothing_but_a_key_as_bearer_token_identifies_anybody(written: list[tuple[str, str]], header: bytes) -> None:
    keys = Keys.of([scope + secret for scope, secret in written], "read")
    scheme, _, rest = header.strip(b" \t").partition(b" ")
    known = scheme.lower() == b"bearer" and rest.strip(b" \t") in {secret.encode() for _, secret in written}
    assert (keys.identify(header) is not None) == known
    for _, secret in written:
        assert keys.identify(b"Basic " + secret.encode()) is None and keys.identify(secret.encode()) is None


@given(st.text(max_size=40))
def test_whatever_is_written_is_a_key_or_refused_without_being_shown(written: str) -> None:
    try:
        keys = Keys.of([written], "ask")
    except UsageError as error:
        assert len(written) < 12 or written not in str(error)
    else:
        assert [holder.scopes <= SCOPES for holder in keys.holders.values()] == [True]
        assert keys.identify(b"Bearer " + auth.secret_of(written).encode()) is not None


@pytest.mark.parametrize("written", ["", "read:", "pubish:secret", "ReaD:secret", "two words", "ü", "x" * 513, "a:b"])
def test_what_is_no_key_is_refused(written: str) -> None:
    with pytest.raises(UsageError) as refused:
        Keys.of(["good", written], "read")
    assert "secret" not in str(refused.value)


def test_no_keys_are_refused_rather_than_nobody_asked_for_one() -> None:
    with pytest.raises(UsageError):
        Keys.of([], "read")


def test_keys_do_not_show_in_what_is_logged() -> None:
    assert "hunter2" not in repr(Keys.of(["publish:hunter2"], "read"))


def test_a_key_that_holds_a_colon_has_its_scope_in_front() -> None:
    keys = Keys.of(["read:a:b"], "ask")
    holder = keys.identify(b"Bearer a:b")
    assert holder is not None and holder.scopes == {"read"} and auth.secret_of("read:a:b") == "a:b"


def test_a_file_has_a_key_on_a_line() -> None:
    text = "# edges\nread:one\n\n  publish:two  \r\n#publish:three\n"
    assert auth.lines(text) == ["read:one", "publish:two"]


@given(st.lists(st.text(max_size=8), max_size=5))
def test_lines_of_a_file_are_its_keys_and_nothing_else(written: list[str]) -> None:
    found = auth.lines("\n".join(written))
    assert all(line and line == line.strip() and not line.startswith("#") for line in found)
