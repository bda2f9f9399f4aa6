"""One way to check certificates: whatever asks a cloud or an edge over TLS honours the same variables, and `--ca`."""

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.testing

from preread import tls
from preread.cli import app, remote
from preread.cloud import client
from preread.cloud.app import create_app
from preread.edge.edge import Edge
from preread.engine import sources
from preread.errors import PrereadError, TransportError, UsageError
from preread.store.egress import CloudLink
from preread.store.objects import open_store
from preread.testing.authority import Authority
from preread.testing.cloud import RandomPublisher, serving


@dataclass(frozen=True, slots=True)
class Company:
    """A cloud whose certificate was signed by an authority of the house: the authority's file, and a folder of it."""

    url: str
    file: Path
    folder: Path


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    here = tmp_path_factory.mktemp("company")
    authority = Authority(here)
    own = authority.issue("cloud")
    folder = here / "authorities"
    folder.mkdir()
    shutil.copy(authority.file, folder)
    subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)
    store = open_store(str(here / "store"))
    cloud = create_app(store, RandomPublisher(store))
    with serving(cloud, ssl_certfile=own.certificate, ssl_keyfile=own.key) as url:
        yield Company(url.replace("http:", "https:"), authority.file, folder)


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tls.FILE, tls.FOLDER, "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)


def list_contexts(url: str) -> None:
    client.catalogue(url)


def publish(url: str) -> None:
    *_, last = client.publish(url, "manual", text="m" * 200)
    assert last


def ask(url: str) -> None:
    with pytest.raises(UsageError, match="refuses"):  # a cloud answers no questions: it was reached
        next(remote.ask(url, "?", None, {}))


def sync(url: str) -> None:
    async def main() -> None:
        async with CloudLink(url) as link:
            await link.catalogue()

    asyncio.run(main())


@pytest.mark.parametrize("reach", [list_contexts, publish, ask, sync])
def test_all_trust_whom_the_environment_names_and_nobody_else(
    company: Company, monkeypatch: pytest.MonkeyPatch, reach: Callable[[str], None]
) -> None:
    with pytest.raises(TransportError, match=r"certificate is not trusted.*--ca FILE"):
        reach(company.url)
    monkeypatch.setenv(tls.FILE, str(company.file))
    reach(company.url)
    monkeypatch.delenv(tls.FILE)
    monkeypatch.setenv(tls.FOLDER, str(company.folder))
    reach(company.url)


@pytest.mark.parametrize("reach", [list_contexts, sync])
def test_https_to_plain_http_is_named(reach: Callable[[str], None], tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with (
        serving(create_app(store, RandomPublisher(store))) as url,
        pytest.raises(TransportError, match="is it plain http there"),
    ):
        reach(url.replace("http:", "https:"))


def test_the_command_line_takes_a_file(company: Company, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tls.FILE, "")  # what --ca sets is taken back at the end
    listing = ["contexts", "ls", "--cloud", company.url]
    run = typer.testing.CliRunner().invoke
    assert isinstance(run(app, listing).exception, TransportError)
    assert run(app, ["--ca", str(company.file), *listing]).exit_code == 0
    (tmp_path / "empty.pem").touch()
    for wrong in ("empty.pem", "missing.pem"):
        refused = run(app, ["--ca", str(tmp_path / wrong), *listing]).exception
        assert isinstance(refused, PrereadError) and "holds no certificates" in str(refused)


def test_pip_is_told_whom_to_trust(company: Company, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = {}
    monkeypatch.setattr(sources, "_run", lambda *_, **environ: seen.update(environ))
    monkeypatch.setenv(tls.FILE, str(company.file))
    with pytest.raises(PrereadError):
        sources._pip_download("x==1", tmp_path, lambda _: None)
    assert seen["PIP_CERT"] == str(company.file)


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:1", "http://127.0.0.1:1", "https://192.0.2.1:1", "unix:/no/such.sock"]
)
def test_contexts_that_come_without_tls_are_warned_of(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    with Edge(str(tiny_model), url, window_tokens=256, threads=1, folder=tmp_path):
        pass
    assert ("contexts come without TLS" in caplog.text) is (url == "http://192.0.2.1:1")


@pytest.mark.parametrize("ending", ["reset", "closed"])
def test_a_server_that_shakes_hands_and_ends_may_want_a_certificate(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In TLS 1.3 it learns last who the client is; what it says of that is lost where the connection is reset."""
    authority = Authority(tmp_path)
    own = authority.issue("cloud")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)

    def end(listening: socket.socket) -> None:
        with context.wrap_socket(listening.accept()[0], server_side=True) as taken:
            taken.recv(65_536)
            if ending == "reset":
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def ask(url: str) -> None:
        async with CloudLink(url) as link:
            await link.catalogue()

    monkeypatch.setenv(tls.FILE, str(authority.file))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=end, args=(listening,))
        server.start()
        with pytest.raises(TransportError, match="does it ask for a certificate"):
            asyncio.run(ask(f"https://127.0.0.1:{listening.getsockname()[1]}"))
        server.join()
