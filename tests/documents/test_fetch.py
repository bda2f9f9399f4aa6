"""Pages that are to be published: what is sent, what is taken, and where a server must not lead."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from preread.documents import fetch as module
from preread.documents.fetch import fetch
from preread.documents.find import Source
from preread.documents.read import read
from preread.errors import PrereadError, RemoteError, TransportError, UsageError
from preread.testing.cloud import serving

SEEN: list[dict[str, str]] = []


def page(request: Request) -> Response:
    SEEN.append(dict(request.headers))
    return Response("café".encode("latin-1"), media_type="text/plain; charset=iso-8859-1")


def bomb(request: Request) -> Response:
    return Response(gzip.compress(bytes(2**22)), headers={"content-encoding": "gzip"})


def onward(request: Request) -> Response:
    answer = RedirectResponse(request.query_params["to"])
    answer.set_cookie("a", "b")
    return answer


@contextmanager
def site() -> Iterator[str]:
    SEEN.clear()
    routes = [
        Route("/page", page),
        Route("/bomb", bomb),
        Route("/onward", onward),
        Route("/loop", lambda request: RedirectResponse("/loop")),
        Route("/broken", lambda request: Response(b"no gzip", headers={"content-encoding": "gzip"})),
        Route("/a.md", lambda request: PlainTextResponse("# Text\n")),
    ]
    with serving(Starlette(routes=routes)) as url:
        yield url


def taken(url: str, most_bytes: int = 2**20) -> tuple[bytes, str, str]:
    out = io.BytesIO()
    media_type, charset = fetch(url, out, most_bytes)
    return out.getvalue(), media_type, charset


def test_a_page_comes_with_its_type_and_how_its_letters_are_written() -> None:
    with site() as url:
        assert taken(f"{url}/page") == ("café".encode("latin-1"), "text/plain", "iso-8859-1")
        assert read(Source(f"{url}/page", "a")) == "café"
        assert read(Source(f"{url}/a.md", "a")) == "# Text\n"


def test_nothing_is_sent_but_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_API_KEY", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with site() as url:
        taken(f"{url}/onward?to=/page")
    assert SEEN[0].keys() <= {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert SEEN[0]["user-agent"] == "preread"


@pytest.mark.parametrize(
    ("path", "error", "told"),
    [
        ("/absent", RemoteError, "answers with 404"),
        ("/loop", RemoteError, "more than 5 times"),
        ("/bomb", UsageError, "more than 1 MiB"),
        ("/broken", RemoteError, "cannot be read"),
        ("/onward?to=file:///etc/passwd", PrereadError, "only http"),
        ("/onward?to=http://[", RemoteError, "no address"),
    ],
)
def test_what_cannot_be_taken_says_why(path: str, error: type[Exception], told: str) -> None:
    with site() as url, pytest.raises(error, match=told):
        taken(url + path)


def test_an_address_with_a_password_or_of_nobody_is_not_fetched() -> None:
    with pytest.raises(UsageError, match="password"):
        taken("http://me:secret@127.0.0.1/")
    with pytest.raises(TransportError, match="cannot be reached"):
        taken("http://127.0.0.1:1/")
    with pytest.raises(UsageError, match="no address"):
        taken("http://")


def test_a_page_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WHOLE_S", -1.0)
    with site() as url, pytest.raises(TransportError, match="takes longer"):
        taken(f"{url}/page")


def test_a_public_page_must_not_lead_into_this_machines_network_or_out_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_public", lambda host: host == "public.example")
    for location in ("http://127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://intranet/"):
        with pytest.raises(RemoteError, match="not on the internet"):
            module._onward("http://public.example/", location)
    with pytest.raises(RemoteError, match="out of https"):
        module._onward("https://public.example/", "http://public.example/")
    assert module._onward("http://public.example/a/", "../b") == "http://public.example/b"
    assert module._onward("http://intranet/", "http://other-intranet/") == "http://other-intranet/"


def test_which_hosts_are_on_the_internet() -> None:
    assert module._is_public("8.8.8.8") and module._is_public("2606:4700::1111")
    for host in ("127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "fe80::1", "localhost", "no such host", None):
        assert not module._is_public(host)
