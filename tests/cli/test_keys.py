"""Keys from variables, files and the command line; what is open to others, and on which addresses a server listens."""

import asyncio
import errno
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from preread.cli import keys, listen
from preread.cloud.app import create_app
from preread.errors import UsageError
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.store.objects import open_store
from preread.testing.cloud import RandomPublisher, serving

Run = Any
NO_MODEL = ["--model", "nosuch", "--port", "0"]


@pytest.fixture
def keyed_cloud(tmp_path: Path) -> Iterator[str]:
    store = open_store(str(tmp_path / "store"))
    access = Access(Keys.of(["reader", "publish:writer"], "read"))
    with serving(create_app(store, RandomPublisher(store), access)) as url:
        yield url


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    return file


# Empty variables and files


@pytest.mark.parametrize("value", ["", " ", " , "])
@pytest.mark.parametrize(
    ("variable", "command"),
    [
        ("PREREAD_API_KEYS", ["cloud"]),
        ("PREREAD_API_KEYS", ["edge"]),
        ("PREREAD_API_KEYS", ["cloud", "--insecure", "--host", "0.0.0.0"]),
        ("PREREAD_SITE_KEY", ["edge", "--share", "127.0.0.1:0"]),
        ("PREREAD_API_KEY", ["edge", "--cloud", "http://127.0.0.1:1"]),
    ],
)
def test_an_empty_variable_opens_no_server(
    preread: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, command: list[str]
) -> None:
    monkeypatch.setenv(variable, value)
    ran = preread(*command, *NO_MODEL)
    assert ran.code == 1 and ran.err == f"preread: {variable} is there and holds no key: unset it if none is meant\n"


def test_an_empty_variable_sends_no_request_without_a_key(preread: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_API_KEY", "")
    ran = preread("contexts", "ls", "--cloud", "http://127.0.0.1:1")
    assert ran.code == 1 and "PREREAD_API_KEY is there and holds no key" in ran.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        ("# only words\n\n", "holds no key"),
        ("two words\n", "printable ASCII"),
        ("pubish:secret\n", "key 1 has no known scope"),
        ("x" * 2**20 + "\n", "bytes"),
    ],
)
@pytest.mark.parametrize("command", ["cloud", "edge"])
def test_a_file_without_keys_opens_no_server(preread: Run, tmp_path: Path, text: str, told: str, command: str) -> None:
    ran = preread(command, "--api-key-file", str(key_file(tmp_path, text)), *NO_MODEL)
    assert ran.code == 1 and told in ran.err and ran.err.count("\n") == 1 and "secret" not in ran.err


@pytest.mark.parametrize("option", ["--api-key-file", "--cloud-key-file", "--site-key-file"])
def test_a_file_that_is_not_there_is_told(preread: Run, tmp_path: Path, option: str) -> None:
    ran = preread("edge", option, str(tmp_path / "absent"), *NO_MODEL)
    assert ran.code == 1 and "cannot read keys from" in ran.err and "No such file" in ran.err


# Where keys come from


def test_keys_of_clients_come_from_a_file_and_the_variable_together(tmp_path: Path) -> None:
    found = keys.of_clients("one,publish:two", key_file(tmp_path, "# edges\nask:three\n"), "read")
    assert found is not None and keys.of_clients(None, None, "read") is None
    scopes = {key.decode(): set(holder.scopes) for key, holder in found.holders.items()}
    assert scopes == {"one": {"read"}, "two": {"read", "publish"}, "three": {"ask"}}


def test_a_key_to_show_must_be_alone_in_its_file(tmp_path: Path) -> None:
    assert keys.own(None, None) is None and keys.own("given", None) == "given"
    assert keys.own("given", key_file(tmp_path, "# mine\npublish:filed\n")) == "filed"
    with pytest.raises(UsageError, match="2 keys"):
        keys.own(None, key_file(tmp_path, "one\ntwo\n"))


def test_a_file_that_everybody_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys.own(None, key_file(tmp_path, "one\n"))
    assert not caplog.records
    keys.own(None, key_file(tmp_path, "one\n", 0o644))
    assert "chmod 600" in caplog.text and "one" not in caplog.text.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://cloud.example:8000", True),
        ("http://10.0.0.1", True),
        ("https://cloud.example", False),
        ("http://localhost:8000", False),
        ("http://[::1]:8000", False),
        (None, False),
    ],
)
def test_a_key_that_others_on_the_way_can_read_is_warned_of(
    url: str | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert keys.own("hunter2", None, url) == "hunter2" and keys.own(None, None, url) is None
    assert [("without TLS" in record.message) for record in caplog.records] == [True] * warned
    assert "hunter2" not in caplog.text


def test_a_key_on_the_command_line_works_and_is_warned_of(
    preread: Run, keyed_cloud: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran = preread("contexts", "ls", "--api-key", "reader", "--cloud", keyed_cloud)
    assert ran.code == 0 and "use --api-key-file, or PREREAD_API_KEY" in caplog.text and "reader" not in caplog.text


def test_publishing_takes_its_key_from_a_file_or_the_variable(
    preread: Run, keyed_cloud: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish = ["publish", "-", "--name", "manual", "--cloud", keyed_cloud]
    refused = preread(*publish, stdin=b"text")
    assert refused.code == 1 and "needs an API key" in refused.err and "--api-key-file" in refused.err
    monkeypatch.setenv("PREREAD_API_KEY", "reader")
    short = preread(*publish, stdin=b"text")
    assert short.code == 1 and "this key has the scope read; this needs publish" in short.err
    file = str(key_file(tmp_path, "writer\n"))
    assert preread(*publish, "--api-key-file", file, stdin=b"text").code == 0
    assert "manual" in preread("contexts", "ls", "--cloud", keyed_cloud).out
    assert "manual" in preread("contexts", "show", "manual", "--api-key-file", file, "--cloud", keyed_cloud).out
    assert preread("contexts", "rm", "manual", "--cloud", keyed_cloud).code == 1
    assert preread("contexts", "rm", "manual", "--api-key-file", file, "--cloud", keyed_cloud).code == 0
    assert not caplog.records


# Open to others


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("command", ["cloud", "edge"])
def test_beyond_loopback_a_server_wants_keys_or_to_be_told(
    preread: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: str,
    host: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    started = "unknown model 'nosuch'"  # what comes once it is decided who may ask
    there = [command, "--host", host, *NO_MODEL]
    refused = preread(*there)
    if "cannot listen" in refused.err:
        pytest.skip(f"no {host} here")
    assert refused.code == 1 and started not in refused.err
    assert "--api-key-file or PREREAD_API_KEYS, or say --insecure" in refused.err and refused.err.count("\n") == 1
    assert started in preread(*there, "--insecure").err
    assert "everybody who reaches" in caplog.text
    assert started in preread(*there, "--api-key-file", str(key_file(tmp_path, "one\n"))).err
    monkeypatch.setenv("PREREAD_API_KEYS", "one")
    assert started in preread(*there).err


def test_sharing_beyond_loopback_wants_a_secret_or_to_be_told(preread: Run, tmp_path: Path) -> None:
    sharing = ["edge", "--share", "0.0.0.0:0", *NO_MODEL]
    refused = preread(*sharing)
    assert refused.code == 1 and "--site-key-file or PREREAD_SITE_KEY, or say --insecure" in refused.err
    assert "unknown model" in preread(*sharing, "--insecure").err
    assert (
        "unknown model" in preread(*sharing, "--site-key-file", str(key_file(tmp_path, "a-secret-of-the-site\n"))).err
    )


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--allow-host", "http://edge"], "--allow-host takes names"),
        (["--allow-host", ""], "--allow-host names nothing"),
        (["--allow-origin", "app.example"], "--allow-origin takes origins"),
    ],
)
def test_what_is_no_name_or_origin_is_told(preread: Run, option: list[str], told: str) -> None:
    ran = preread("edge", *option, *NO_MODEL)
    assert ran.code == 1 and told in ran.err and ran.err.count("\n") == 1


# Addresses


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def _home(request: Any) -> PlainTextResponse:
    return PlainTextResponse("here")


def test_both_loopbacks_are_listened_on_at_one_port(capsys: pytest.CaptureFixture[str]) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    sockets = listen.bind_all(["localhost"], 0)
    told = listen.urls(sockets)
    urls = re.findall(r"http://\S+", told)
    assert [url.rpartition(":")[0] for url in urls] == ["http://127.0.0.1", "http://[::1]"]
    assert len({url.rpartition(":")[2] for url in urls}) == 1

    async def main() -> list[str]:
        ready = asyncio.Event()
        app = Starlette(routes=[Route("/", _home)])
        serving = asyncio.create_task(listen.serve(nullcontext(app), sockets, ready.set))
        await ready.wait()
        async with httpx2.AsyncClient(trust_env=False) as client:
            answers = [(await client.get(url)).text for url in urls]
        os.kill(os.getpid(), signal.SIGTERM)
        assert not await serving
        return answers

    assert asyncio.run(main()) == ["here", "here"]


def test_a_machine_without_ipv6_listens_on_the_other_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.bind

    def bind(sock: socket.socket, address: Any) -> None:
        if sock.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        real(sock, address)

    monkeypatch.setattr(socket.socket, "bind", bind)
    (sock,) = listen.bind_all(["localhost"], 0)
    with sock:
        assert listen.urls([sock]).startswith("http://127.0.0.1:")
    with pytest.raises(UsageError, match="cannot listen on ::1"):
        listen.bind_all(["localhost", "::1"], 0)


def test_several_addresses_are_taken_and_all_freed_where_one_cannot_be() -> None:
    sockets = listen.bind_all(["127.0.0.1", "127.0.0.2", "127.0.0.1"], 0)
    port = sockets[0].getsockname()[1]
    assert [sock.getsockname() for sock in sockets] == [("127.0.0.1", port), ("127.0.0.2", port)]
    for sock in sockets:
        sock.close()
    with socket.create_server(("127.0.0.2", port)), pytest.raises(UsageError, match=r"on 127\.0\.0\.2 is taken"):
        listen.bind_all(["127.0.0.1", "127.0.0.2"], port)
    with closing(listen.bind("127.0.0.1", port)):
        pass
