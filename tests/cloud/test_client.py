"""What the command line says to a cloud, and how it takes what comes back."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from preread.cloud import client
from preread.cloud.app import create_app
from preread.cloud.events import Progress, Published
from preread.errors import CorruptData, RemoteError, TransportError, Unavailable, UsageError
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.store.objects import open_store
from preread.testing.cloud import RandomPublisher, serving
from preread.wire import pages


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    store = open_store(str(tmp_path))
    with serving(create_app(store, RandomPublisher(store), Access(Keys.of(("publish:k",), "read")))) as url:
        yield url


def test_publish_list_and_remove(url: str) -> None:
    *progress, last = client.publish(url, "a b/c".replace("/", "?"), text="text", api_key="k")
    assert all(isinstance(event, Progress) for event in progress) and isinstance(last, Published)
    assert client.catalogue(url, api_key="k").contexts == (last.entry,)
    client.remove(url, "a b?c", api_key="k")
    assert client.catalogue(url, api_key="k").contexts == ()


def test_refusals_carry_the_clouds_words(url: str) -> None:
    with pytest.raises(UsageError, match="more than the window"):
        list(client.publish(url, "a", text="x" * 5000, api_key="k"))
    with pytest.raises(UsageError, match="API key"):
        list(client.publish(url, "a", text="x"))
    with pytest.raises(UsageError, match="unknown context 'nobody'"):
        client.remove(url, "nobody", api_key="k")


def test_a_catalogue_is_listed_page_by_page_and_removed_from_without_listing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_ENTRIES", 2)
    for name in "edcba":
        list(client.publish(url, name, text=f"text of {name}", api_key="k"))
    assert [entry.name for entry in client.catalogue(url, api_key="k").contexts] == list("abcde")
    monkeypatch.setattr(client, "catalogue", None)
    client.remove(url, "c", api_key="k")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TransportError, match=r"cannot be reached.*preread cloud"):
        client.catalogue(url)


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (
            200,
            [b'{"event":"progress","stage":"prefill","done":1,"total":2}\n'],
            TransportError,
            "before it had published",
        ),
        (200, [b"<html>\n"], CorruptData, "not how a cloud answers"),
        (200, [b'{"event":"party"}\n'], CorruptData, "not how a cloud answers"),
        (200, [b"x" * 2**16] * 40, CorruptData, "longer"),
        (
            200,
            [b'{"event":"error","error":{"message":"bad\\u001b[31m","type":"server_error","code":"x"}}\n'],
            RemoteError,
            "bad ",
        ),
        (
            200,
            [b'{"event":"error","error":{"message":"stopping","type":"server_error","code":"unavailable"}}\n'],
            Unavailable,
            "stopping",
        ),
        (500, [b"<html>"], RemoteError, "no reason given"),
        (503, [b"<html>"], Unavailable, "no reason given"),
        (502, [b"<html>"], TransportError, "what is before it, which says 502"),
        (502, [b'{"error":{"message":"its store","type":"x","code":"remote_error"}}'], RemoteError, "its store"),
        (404, [b"{}"], UsageError, "no reason given"),
        (500, [b"x" * 2**16] * 40, CorruptData, "longer"),
        (302, [b""], RemoteError, "302"),
    ],
)
def test_strange_answers(status: int, body: list[bytes], error: type[Exception], words: str) -> None:
    async def answer(request: Request) -> Response:
        await request.body()
        return StreamingResponse(iter(body), status)

    with serving(Starlette(routes=[Route("/v1/contexts", answer, methods=["POST"])])) as url:
        with pytest.raises(error, match=words) as caught:
            list(client.publish(url, "a", text="x"))
        assert "\x1b" not in str(caught.value)
