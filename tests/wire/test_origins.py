"""Origins that a cloud names: which an edge goes to, and what it reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.errors import CorruptData
from preread.store.origin import parse_origin
from preread.wire import origins
from preread.wire.origins import Origins


@pytest.mark.parametrize(
    "address",
    ["https://cdn.example", "https://cdn.example:8443/some/prefix", "https://8.8.8.8", "https://[2606:4700::1111]/x"],
)
def test_an_edge_goes_to_https_servers_of_the_network_at_large(address: str) -> None:
    assert origins.why_not(address, near=False) is None


@pytest.mark.parametrize(
    "address",
    [
        "http://cdn.example",
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254",
        "https://10.0.0.1",
        "https://192.168.1.1/x",
        "https://[fd00::1]",
        "https://127.0.0.1:8443",
        "http://127.0.0.1:9000",
        "https://localhost",
        "https://user:word@cdn.example",
        "https://cdn.example?x=1",
        "https://cdn.example#x",
        "https://cdn.example:99999",
        "https://bücket.example",
        "ftp://cdn.example",
        "unix:/run/x.sock",
        "file:///etc/passwd",
        "https://",
        "",
    ],
)
def test_an_edge_goes_nowhere_else(address: str) -> None:
    assert origins.why_not(address, near=False)


def test_a_cloud_on_the_same_machine_may_name_a_server_there_and_nowhere_else_unsecured() -> None:
    assert origins.why_not("http://127.0.0.1:9000/x", near=True) is None
    assert origins.why_not("http://localhost:9000", near=True) is None
    assert origins.why_not("http://10.0.0.1", near=True)
    assert origins.why_not("http://cdn.example", near=True)


@given(st.text() | st.from_regex(r"https?://[a-z0-9.\[\]:@/?#-]{0,30}", fullmatch=True))
def test_whatever_is_allowed_is_an_address_that_can_be_asked(address: str) -> None:
    if origins.why_not(address, near=True) is None and address.isprintable() and " " not in address:
        assert parse_origin(address).host


def test_signed_addresses_begin_as_was_said() -> None:
    said = Origins(("https://b.example/p", "https://c.example"), signed=True)
    assert origins.within("https://b.example/p/segments/ab/x?sig=1", said)
    assert origins.within("https://c.example/segments/ab/x", said)
    for other in ("https://b.example/pq/x", "https://b.example.evil/p/x", "http://c.example/x", "//c.example/", ""):
        assert not origins.within(other, said)


@given(st.binary(max_size=100) | st.builds(origins.dumps, st.builds(Origins, st.just(("https://a",) * 5))))
def test_what_is_no_list_of_origins_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        origins.loads(data)


def test_origins_are_read_as_they_are_written() -> None:
    said = Origins(("https://b.example/p",), signed=True)
    assert origins.loads(origins.dumps(said)) == said
