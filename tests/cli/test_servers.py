"""What keeps `preread cloud` and `preread edge` from starting, each found before anything slow happens."""

import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from preread.cli import arguments, listen
from preread.errors import UsageError
from preread.testing.families import write_family

Run = Any


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield str(sock.getsockname()[1])


@pytest.mark.parametrize("command", ["cloud", "edge"])
def test_taken_port(preread: Run, taken: str, tmp_path: Path, command: str) -> None:
    ran = preread(command, "--port", taken, "--model", str(tmp_path / "never-looked-at.gguf"))
    assert ran.code == 1 and f"port {taken} on 127.0.0.1 is taken" in ran.err and ran.err.count("\n") == 1


def test_taken_port_of_sharing(preread: Run, taken: str) -> None:
    ran = preread("edge", "--port", "0", "--share", f"127.0.0.1:{taken}")
    assert (
        ran.code == 1 and f"port {taken} on 127.0.0.1 is taken" in ran.err and "choose another with --share" in ran.err
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a:1", ("a", 1)), ("[::1]:8090", ("::1", 8090)), ("0.0.0.0:0", ("0.0.0.0", 0))],
)
def test_host_and_port(given: str, expected: tuple[str, int]) -> None:
    assert arguments.host_and_port(given) == expected


@pytest.mark.parametrize("given", ["", "a", ":1", "a:", "a:x", "a:99999", "a:٣"])
def test_no_host_and_port(given: str) -> None:
    with pytest.raises(UsageError):
        arguments.host_and_port(given)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cloud", "--model", "nosuch"], "unknown model 'nosuch'; known models:"),
        (["edge", "--model", "nosuch"], "unknown model 'nosuch'; known models:"),
        (["cloud", "--rungs", "q8,q99"], "unknown rung 'q99'; known rungs: lossless"),
        (["cloud", "--rungs", ","], "holds no rung"),
        (["edge", "--rung", "q99"], "unknown rung 'q99'"),
        (["cloud", "--api-key", " , "], "holds no key"),
        (["edge", "--api-key", ""], "holds no key"),
        (["edge", "--prefetch", "some"], "--prefetch is one of off, recent, all"),
        (["edge", "--neighbours", "http://a:1,nonsense"], "'nonsense' is not an address"),
        (["edge", "--share", "8090"], "--share takes HOST:PORT, not '8090'"),
        (["edge", "--share", "127.0.0.1:0", "--disk-cache", "0"], "needs --disk-cache"),
        (["cloud", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    preread: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = preread(*arguments, "--port", "0")
    assert ran.code == 1 and ran.err.startswith("preread: ") and ran.err.count("\n") == 1 and told in ran.err


def test_store_below_a_file(preread: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = preread("cloud", "--port", "0", "--store", str(tmp_path / "file" / "store"))
    assert ran.code == 1 and "cannot be written" in ran.err and ran.err.count("\n") == 1


def test_store_of_another_cloud(preread: Run, tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = preread(
            "cloud", "--port", "0", "--store", str(tmp_path), "--model", str(tmp_path / "never-looked-at.gguf")
        )
    finally:
        os.close(held)
    assert ran.code == 1 and "is held by another process" in ran.err and ran.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_store_without_permission(preread: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ran = preread("cloud", "--port", "0", "--store", str(tmp_path / "store"))
    assert ran.code == 1 and "cannot be written" in ran.err


def test_model_that_cannot_be_streamed_gets_no_cloud(preread: Run, tmp_path: Path) -> None:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    model = str(write_family(tmp_path / "gpt2.gguf", "gpt2"))
    ran = preread("cloud", "--port", "0", "--model", model, "-c", "512", "--store", str(tmp_path / "store"))
    assert ran.code == 1 and "cannot be streamed: the model's position encoding" in ran.err


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_url_of_a_bound_socket(host: str, url: str) -> None:
    try:
        sock = listen.bind(host, 0)
    except UsageError as error:
        pytest.skip(f"no {host} here: {error}")
    with sock:
        assert listen.url(sock).startswith(url)


def test_version_and_usage(preread: Run) -> None:
    assert preread("--version").out.startswith("preread ")
    assert preread("bogus").code == 2
    assert preread("cloud", "--port", "x").code == 2


def test_servers_take_as_many_connections_as_there_are_files_for_and_half_of_them_from_one_address() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        limits = listen._limits()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert files == min(hard, 65_536) or files > 256, "what the system lets this process have, it takes"
        assert 2 * limits.per_address <= limits.connections < files
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
