"""Where servers listen: unix sockets and TLS, as the command line starts them."""

import asyncio
import os
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from preread import loop, tls
from preread.cli import listen, options, unix
from preread.cli.endpoint import Endpoint
from preread.cli.listener import Listener, listening
from preread.cloud import client
from preread.cloud.app import create_app
from preread.errors import TransportError, UsageError
from preread.store.egress import CloudLink
from preread.store.guard import Access, caller
from preread.store.objects import open_store
from preread.testing.authority import Authority
from preread.testing.cloud import RandomPublisher
from preread.via import Via

Run = Any
Server = Callable[[Listener], Starlette]


def endpoint(
    hosts: list[str] | None = None,
    uds: Path | None = None,
    own: tls.Identity | None = None,
    client_ca: Path | None = None,
    mode: str = "600",
) -> Endpoint:
    """One on 127.0.0.1, unless told otherwise."""
    cert, key = (None, None) if own is None else (own.certificate, own.key)
    here = ["127.0.0.1"] if hosts is None and uds is None else hosts
    return Endpoint(here, uds=uds, uds_mode=mode, cert=cert, key=key, client_ca=client_ca)


def with_server(where: Endpoint, app: Server, story: Callable[[Listener], None]) -> None:
    """Serve as the commands do, in their event loop, and run `story` in a thread beside."""

    async def main() -> None:
        with listening(where, "ask") as there:
            ready = asyncio.Event()
            opening = nullcontext(app(there))
            serving = asyncio.create_task(listen.serve(opening, there.sockets, ready.set, there.secured))
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            try:
                await asyncio.to_thread(story, there)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                await serving

    loop.run(main())


async def _who(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.scheme} {caller(request.scope)}")


def who(there: Listener) -> Starlette:
    """Tells each client what it is taken for."""
    return Starlette(routes=[Route("/", _who)], middleware=there.access.middleware("edge", reads="ask", writes="ask"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("house"))


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setenv(tls.FILE, str(authority.file))
    return authority


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a socket may be: pytest's own folders may have names that are too long for one."""
    with ExitStack() as stack:
        import tempfile

        yield Path(stack.enter_context(tempfile.TemporaryDirectory())) / "a.sock"


def over(path: Path) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://whatever.example")


def ended(sock: socket.socket) -> bool:
    """Whether the other side closes a connection."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# Unix sockets


@pytest.mark.parametrize(("mode", "bits"), [("600", 0o600), ("660", 0o660), ("0666", 0o666)])
def test_a_socket_is_for_its_owner_unless_told_otherwise_and_gone_at_the_end(path: Path, mode: str, bits: int) -> None:
    def story(there: Listener) -> None:
        assert there.urls == f"unix:{path}" and stat.S_IMODE(path.stat().st_mode) == bits
        with over(path) as http:
            # Whoever may use it needs no key, calls it as he likes, and is told from others by his user.
            assert http.get("/").text == f"http user {os.getuid()}"

    with_server(endpoint(uds=path, mode=mode), who, story)
    assert list(path.parent.iterdir()) == []


def test_addresses_beside_a_socket_are_as_closed_as_ever(path: Path) -> None:
    def story(there: Listener) -> None:
        url = there.urls.rpartition(" and ")[2]
        with httpx2.Client(trust_env=False) as http, over(path) as near:
            assert http.get(url).text == "http 127.0.0.1"
            assert http.get(url, headers={"Host": "evil.example"}).status_code == 421
            assert near.get("/").status_code == 200

    with_server(endpoint(hosts=["127.0.0.1"], uds=path), who, story)


def test_a_socket_that_a_dead_process_left_is_replaced_and_nothing_else(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with unix.bound(path, 0o600) as sock:
        with pytest.raises(UsageError, match="is taken"), unix.bound(path, 0o600):
            pass  # the first one does not listen yet: it is loading its model
        sock.listen()
        with pytest.raises(UsageError, match="is taken"), unix.bound(path, 0o600):
            pass
    assert list(path.parent.iterdir()) == []
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(UsageError, match="is taken"), unix.bound(path, 0o600):
            pass  # of another program, which has no lock
    path.unlink()
    path.write_text("mine")
    with pytest.raises(UsageError, match="is no socket"), unix.bound(path, 0o600):
        pass
    assert path.read_text() == "mine"


def test_of_many_that_start_at_once_one_has_the_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    won, lost, go = [], [], threading.Barrier(8)

    def start() -> None:
        go.wait()
        try:
            with unix.bound(path, 0o600):
                won.append(1)
                assert sum(won) == 1
                go.wait()
                won.pop()
        except UsageError:
            lost.append(1)
            go.wait()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7


@pytest.mark.parametrize(
    ("hosts", "uds", "paths", "addresses"),
    [
        (None, None, [], ["localhost"]),
        (None, "e.sock", ["e.sock"], []),
        (["0.0.0.0"], "e.sock", ["e.sock"], ["0.0.0.0"]),
        (["/run/e.sock", "127.0.0.1"], None, ["/run/e.sock"], ["127.0.0.1"]),
        (["unix:/run/e"], None, ["/run/e"], []),
        (["unix:///run/e"], None, ["/run/e"], []),
        (["e.sock"], None, ["e.sock"], []),
        (["sock.example"], None, [], ["sock.example"]),
    ],
)
def test_a_socket_is_written_as_uvicorn_has_it_or_as_llama_server(
    hosts: list[str] | None, uds: str | None, paths: list[str], addresses: list[str]
) -> None:
    where = Endpoint(hosts, uds=None if uds is None else Path(uds))
    assert where.paths == [Path(path) for path in paths] and where.addresses == addresses


@pytest.mark.parametrize("command", ["cloud", "edge"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--uds", "no-folder/a.sock"], "cannot listen on the socket"),
        (["--uds", "x" * 120], "cannot listen on the socket"),
        (["--uds", "a.sock", "--uds-mode", "999"], "--uds-mode is three octal digits"),
        (["--uds", "a.sock", "--cert", "cert.pem"], "--cert is for TLS on the network"),
        (["--key", "key.pem"], "give the server's certificate with --cert"),
        (["--client-ca", "ca.pem"], "give the server's certificate with --cert"),
        (["--cert", "missing.pem", "--key", "missing.key"], "cannot read missing.pem: No such file"),
        (["--ssl-cert-file", "missing.pem", "--ssl-key-file", "missing.key"], "cannot read missing.pem"),
    ],
)
def test_what_cannot_be_listened_at_is_told_in_one_line(
    preread: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = preread(command, *arguments, "--port", "0", "--model", "never-looked-at.gguf")
    assert ran.code == 1 and ran.err.startswith("preread: ") and ran.err.count("\n") == 1 and told in ran.err


# TLS


def test_certificates_that_cannot_be_used_are_told_at_the_start(authority: Authority, tmp_path: Path) -> None:
    own, other, locked = authority.issue("own"), authority.issue("other"), authority.issue("locked", "secret")
    (tmp_path / "text").write_text("no certificate")
    for identity, clients, told in (
        (tls.Identity(own.certificate, other.key), None, "is not that of"),
        (tls.Identity(tmp_path / "text", own.key), None, "in PEM"),
        (tls.Identity(own.certificate), None, "in PEM"),
        (locked, None, "has a password"),
        (own, tmp_path / "text", "holds no certificates"),
        (own, tmp_path / "missing", "No such file"),
    ):
        with (
            pytest.raises(UsageError, match=told),
            listening(endpoint(own=identity, client_ca=clients), "ask"),
        ):
            pass


def test_addresses_speak_tls_and_a_socket_beside_them_does_not(trusted: Authority, path: Path) -> None:
    def story(there: Listener) -> None:
        url = there.urls.rpartition(" and ")[2]
        assert url.startswith("https://127.0.0.1:")
        with httpx2.Client(trust_env=False, verify=tls.context()) as http, over(path) as near:
            assert [http.get(url).text for _ in range(3)] == ["https 127.0.0.1"] * 3
            assert near.get("/").text == f"http user {os.getuid()}"
            with pytest.raises(httpx2.TransportError):
                http.get(url.replace("https:", "http:"))
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock, pytest.raises(OSError):
            old.wrap_socket(sock)

    with_server(endpoint(hosts=["127.0.0.1"], uds=path, own=trusted.issue("own")), who, story)


def test_a_renewed_certificate_is_shown_without_a_restart(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = authority.issue("first"), authority.issue("second")
    mine = tls.Identity(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert mine.key is not None and first.key is not None and second.key is not None
    mine.certificate.write_bytes(first.certificate.read_bytes())
    mine.key.write_bytes(first.key.read_bytes())

    def story(there: Listener) -> None:
        address = there.sockets[0].getsockname()
        shown = [ssl.get_server_certificate(address)]
        for file, new in ((mine.certificate, second.certificate), (mine.key, second.key)):
            assert file is not None and new is not None
            renewed = tmp_path / "new"
            renewed.write_bytes(new.read_bytes())
            renewed.replace(file)
            shown.append(ssl.get_server_certificate(address))
        assert shown[0] == shown[1] == first.certificate.read_text(), "half of the new one cannot be used"
        assert shown[2] == second.certificate.read_text()

    with_server(endpoint(own=mine), who, story)
    assert "stays in use" in caplog.text


def test_only_clients_with_a_certificate_are_listened_to(trusted: Authority, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    known, stranger = trusted.issue("client"), Authority(strangers, "strangers").issue("client")

    def cloud(there: Listener) -> Starlette:
        return create_app(store, RandomPublisher(store), there.access)

    def story(there: Listener) -> None:
        url = there.urls

        def sync(via: Via) -> None:
            async def main() -> None:
                async with CloudLink(url, via=via) as link:
                    await link.catalogue()

            asyncio.run(main())

        def catalogue(via: Via) -> None:
            client.catalogue(url, via=via)

        *_, published = client.publish(url, "manual", text="m" * 100, via=Via(identity=known))
        assert published
        for reach in (sync, catalogue):
            reach(Via(identity=known))
            for identity in (None, stranger):
                with pytest.raises(TransportError, match="certificate"):
                    reach(Via(identity=identity))

    with_server(endpoint(own=trusted.issue("server"), client_ca=trusted.file), cloud, story)


def test_who_comes_with_a_certificate_needs_no_key_elsewhere_either(authority: Authority) -> None:
    where = endpoint(hosts=["0.0.0.0"], own=authority.issue("own"), client_ca=authority.file)
    with listening(where, "ask") as there:
        assert there.access == Access(hosts=frozenset({"*"}))
    with (
        pytest.raises(UsageError, match="or say --insecure"),
        listening(endpoint(hosts=["0.0.0.0"], own=authority.issue("own")), "ask"),
    ):
        pass


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01"])
def test_who_never_shakes_hands_makes_room_for_those_who_do(
    trusted: Authority, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(listen, "_limits", lambda: listen.Limits(connections=3, per_address=3))

    def story(there: Listener) -> None:
        with ExitStack() as stack:
            address = there.sockets[0].getsockname()
            silent = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(3)]
            for sock in silent:
                sock.sendall(first)
            http = stack.enter_context(httpx2.Client(trust_env=False, verify=tls.context()))
            assert http.get(there.urls).status_code == 200
            assert ended(silent[0]), "the one that was silent for longest has left"

    with_server(endpoint(own=trusted.issue("own")), who, story)


def test_who_never_shakes_hands_is_sent_away(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_limits", lambda: listen.Limits(head_s=0.2))

    def story(there: Listener) -> None:
        with socket.create_connection(there.sockets[0].getsockname(), timeout=60) as sock:
            assert ended(sock)

    with_server(endpoint(own=authority.issue("own")), who, story)


def test_a_password_on_the_command_line_is_warned_of(
    preread: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(options.PROXY, "")
    ran = preread("--proxy", "http://u:hunter2@127.0.0.1:1", "contexts", "ls", "--cloud", "http://cloud.example")
    assert ran.code == 1 and "proxy http://127.0.0.1:1" in ran.err
    assert "use PREREAD_PROXY" in caplog.text and "hunter2" not in caplog.text + ran.err
