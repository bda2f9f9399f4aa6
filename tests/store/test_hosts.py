"""Host headers and origins, as anybody may send or write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import UsageError
from preread.store import hosts


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8080", "localhost"),
        ("localhost.", "localhost"),
        ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]:8080", "::1"),
        ("[::1]", "::1"),
        ("evil.example:", "evil.example"),
        ("a_b-c.example", "a_b-c.example"),
        ("", None),
        (".", None),
        (":80", None),
        ("::1", None),
        ("localhost:80:80", None),
        ("localhost@evil.example", None),
        ("localhost, evil.example", None),
        ("localhost/", None),
        ("localhost:http", None),
        ("localhost\x00", None),
        ("lo calhost", None),
    ],
)
def test_name_in_a_host_header(header: str, name: str | None) -> None:
    assert hosts.host_name(header) == name


@given(st.text(max_size=300))
def test_a_name_is_never_more_than_letters_of_a_name(header: str) -> None:
    name = hosts.host_name(header)
    assert name is None or (name and not set(name) & set("/@ ,[]\\\0\n") and name == name.lower())


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback(name: str) -> None:
    assert hosts.is_loopback(name)


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "0.0.0.0", "10.0.0.1", "::", "127.1", ""])
def test_no_loopback(name: str) -> None:
    assert not hosts.is_loopback(name)


def test_names_and_origins_of_options() -> None:
    assert hosts.hosts(None) == hosts.origins(None) == frozenset()
    assert hosts.hosts("Cloud.example, edge,[fe80::1]") == {"cloud.example", "edge", "fe80::1"}
    assert hosts.hosts("*") == hosts.origins("*") == {"*"}
    given = "https://App.example:443/,http://localhost:3000,http://[::1]:80,tauri://localhost"
    assert hosts.origins(given) == {"https://app.example", "http://localhost:3000", "http://[::1]", "tauri://localhost"}


@pytest.mark.parametrize("given", ["", " , ", "http://cloud.example", "a b", "a/b"])
def test_no_names(given: str) -> None:
    with pytest.raises(UsageError, match="--allow-host"):
        hosts.hosts(given)


@pytest.mark.parametrize(
    "given",
    ["", " ,", "app.example", "https://", "https://a/b", "https://u@a", "https://a:99999", "https://a b", "//a"],
)
def test_no_origins(given: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin"):
        hosts.origins(given)


@given(st.text(max_size=60))
def test_whatever_is_given_as_origin_is_one_or_refused(given: str) -> None:
    try:
        found = hosts.origins(given)
    except UsageError:
        return
    assert found and all(one == "*" or "://" in one for one in found)
