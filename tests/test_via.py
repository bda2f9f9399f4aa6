"""How others are reached: through a proxy only when one was named, and over unix sockets; by everything that asks."""

import asyncio
import base64
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from preread import tls
from preread.cli import options, remote
from preread.cloud import client
from preread.cloud.app import create_app
from preread.engine import sources
from preread.errors import PrereadError, TransportError, UsageError
from preread.store.egress import CloudLink, NeighbourLink
from preread.store.guard import Access
from preread.store.objects import open_store
from preread.store.origin import parse_origin
from preread.testing.authority import Authority
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.forward import Forward, forwarding
from preread.via import DIRECT, Proxy, Via, environment

Reach = Callable[[str, Via], None]
ANYBODY = Access(hosts=frozenset({"*"}))
NAMES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def list_contexts(url: str, via: Via) -> None:
    client.catalogue(url, via=via)


def publish(url: str, via: Via) -> None:
    *_, last = client.publish(url, "manual", text="m" * 200, via=via)
    assert last


def ask(url: str, via: Via) -> None:
    try:
        next(remote.ask(url, "?", None, {}, via=via))
    except UsageError as error:
        if "refuses: POST" not in str(error):  # a cloud answers no questions: it was reached
            raise


def sync(url: str, via: Via) -> None:
    async def main() -> None:
        async with CloudLink(url, via=via) as link:
            await link.catalogue()
            await link.warm(3)

    asyncio.run(main())


all_ways = pytest.mark.parametrize("reach", [list_contexts, publish, ask, sync])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("house"))


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud on this machine, over TCP or at a socket, and the paths that it was asked for."""

    url: str
    asked: list[str]


@contextmanager
def cloud_in(folder: Path, **options: Any) -> Iterator[Cloud]:
    store = open_store(str(folder / "store"))
    app, asked = create_app(store, RandomPublisher(store)), list[str]()

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            asked.append(scope["path"])
        await app(scope, receive, send)

    with serving(noted, **options) as url:
        yield Cloud(url, asked)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with cloud_in(tmp_path) as cloud:
        yield cloud


@pytest.fixture
def far_cloud(tmp_path: Path) -> Iterator[str]:
    """One that only a proxy finds: its name means nothing here."""
    store = open_store(str(tmp_path / "store"))
    with serving(create_app(store, RandomPublisher(store), ANYBODY)) as url:
        yield url.replace("127.0.0.1", "cloud.test")


@pytest.fixture
def far_tls_cloud(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(tls.FILE, str(authority.file))
    own, store = authority.issue("cloud"), open_store(str(tmp_path / "store"))
    with serving(
        create_app(store, RandomPublisher(store), ANYBODY), ssl_certfile=own.certificate, ssl_keyfile=own.key
    ) as url:
        yield url.replace("http://127.0.0.1", "https://cloud.test")


@pytest.fixture
def dead() -> Iterator[int]:
    """A port that is taken, and that nobody listens at."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# Proxies


@all_ways
def test_proxies_of_the_environment_have_no_effect(
    cloud: Cloud, dead: int, monkeypatch: pytest.MonkeyPatch, reach: Reach
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead}")
    reach(cloud.url, DIRECT)
    assert cloud.asked


@all_ways
@pytest.mark.parametrize("secured", [False, True])
def test_all_go_through_the_proxy_that_was_named_and_let_it_find_the_server(
    request: pytest.FixtureRequest, reach: Reach, secured: bool
) -> None:
    url = request.getfixturevalue("far_tls_cloud" if secured else "far_cloud")
    with forwarding("ann:se%20cret") as proxy:
        proxy.credentials = "ann:se cret"
        reach(url, Via(Proxy.parse(f"http://ann:se%20cret@127.0.0.1:{proxy.port}")))
        method = "CONNECT cloud.test:" if secured else ("GET" if reach in (list_contexts, sync) else "POST")
        assert proxy.asked and all(line.startswith(method) for line in proxy.asked)
        assert secured or f"{url}/v1/" in proxy.asked[0]


@all_ways
def test_this_machine_is_reached_without_a_proxy(cloud: Cloud, dead: int, reach: Reach) -> None:
    reach(cloud.url, Via(Proxy.parse(f"http://127.0.0.1:{dead}")))
    assert cloud.asked


def misled(proxy: Forward, dead: int) -> str:
    return f"http://ann:hunter2@127.0.0.1:{dead}"


def unknown(proxy: Forward, dead: int) -> str:
    proxy.credentials = "bob:other"
    return f"http://ann:hunter2@127.0.0.1:{proxy.port}"


def nobody(proxy: Forward, dead: int) -> str:
    proxy.credentials = "bob:other"
    return f"http://127.0.0.1:{proxy.port}"


@all_ways
@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (misled, TransportError, "127.0.0.1:{dead}"),
        (unknown, UsageError, "does not take this user and password"),
        (nobody, UsageError, "asks for a user"),
    ],
)
def test_that_it_was_the_proxy_is_told_and_never_its_password(
    request: pytest.FixtureRequest,
    dead: int,
    reach: Reach,
    secured: bool,
    fault: Callable[[Forward, int], str],
    kind: type[PrereadError],
    told: str,
) -> None:
    url = request.getfixturevalue("far_tls_cloud" if secured else "far_cloud")
    with forwarding() as proxy, pytest.raises(kind) as caught:
        reach(url, Via(Proxy.parse(fault(proxy, dead))))
    assert "proxy http://127.0.0.1:" in str(caught.value) and told.format(dead=dead) in str(caught.value)
    assert "hunter2" not in str(caught.value) and "hunter2" not in repr(caught.value)


@all_ways
def test_a_proxy_that_does_not_connect_is_told(far_tls_cloud: str, reach: Reach) -> None:
    with forwarding() as proxy, pytest.raises(TransportError) as caught:
        proxy.status = 403
        reach(far_tls_cloud, Via(Proxy.parse(proxy.url)))
    assert f"proxy {proxy.url} does not connect to cloud.test:" in str(caught.value) and "403" in str(caught.value)


def test_an_untrusted_server_behind_a_proxy_is_not_spoken_to(
    far_tls_cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tls.FILE)
    with forwarding() as proxy:
        for reach in (list_contexts, sync):
            with pytest.raises(TransportError, match="is not trusted"):
                reach(far_tls_cloud, Via(Proxy.parse(proxy.url)))


@pytest.mark.parametrize(
    "url",
    ["", "proxy:3128", "https://proxy:3128", "socks5://proxy", "http://", "http://a:b:c", "http://p/x", "http://p?q=1"],
)
def test_what_is_no_proxy_is_told(url: str) -> None:
    with pytest.raises(UsageError, match="--proxy takes"):
        Proxy.parse(url)


@given(user=st.text(min_size=1, max_size=20), password=st.text(max_size=20))
def test_credentials_are_sent_as_they_were_written_and_shown_nowhere(user: str, password: str) -> None:
    try:
        written = f"{quote(user, safe='')}:{quote(password, safe='')}"
    except UnicodeEncodeError:  # half a surrogate
        return
    proxy = Proxy.parse(f"http://{written}@proxy.example:3128")
    assert proxy.authorization is not None
    assert base64.b64decode(proxy.authorization.removeprefix("Basic ")).decode() == f"{user}:{password}"
    assert str(proxy) == "http://proxy.example:3128"
    assert repr(proxy) == repr(Proxy.parse("http://proxy.example:3128"))


def test_children_that_fetch_models_have_no_proxy_but_the_one_that_was_named() -> None:
    given = {"PATH": "/bin", "HTTP_PROXY": "http://a", "https_proxy": "http://b", "No_Proxy": "*"}
    assert environment(given, None) == {"PATH": "/bin"}
    named = environment(given, Proxy.parse("http://u:p@c:1"))
    assert named == {"PATH": "/bin", "http_proxy": "http://u:p@c:1", "https_proxy": "http://u:p@c:1"}


def test_pip_is_run_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dead: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{dead}")
    seen = tmp_path / "seen"
    script = "import os; open('SEEN', 'w').write(repr(sorted(k for k in os.environ if 'proxy' in k.lower())))"
    command = ["python3", "-c", script.replace("SEEN", str(seen))]
    sources._run(command, tmp_path, lambda _: None, None)
    assert seen.read_text() == "[]"
    sources._run(command, tmp_path, lambda _: None, Proxy.parse("http://c:1"))
    assert seen.read_text() == "['http_proxy', 'https_proxy']"


def test_the_command_line_says_it_for_all_commands(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, tmp_path: Path
) -> None:
    for name in (options.PROXY, options.CLIENT_CERT, options.CLIENT_KEY):
        monkeypatch.setenv(name, "")
    assert options.via() == DIRECT
    own = authority.issue("edge")
    options.reach_others("http://u:p@c:1", own.certificate, own.key)
    assert options.via() == Via(Proxy.parse("http://u:p@c:1"), own)
    for certificate, key, told in (
        (None, own.key, "--client-cert"),
        (tmp_path / "missing.pem", None, "cannot read"),
        (own.certificate, authority.issue("other").key, "is not that of"),
        (own.certificate, None, "PEM"),
    ):
        for name in (options.CLIENT_CERT, options.CLIENT_KEY):
            monkeypatch.setenv(name, "")
        with pytest.raises(UsageError, match=told):
            options.reach_others(None, certificate, key)


# Unix sockets


@all_ways
def test_all_reach_a_server_at_a_unix_socket(tmp_path: Path, reach: Reach, dead: int) -> None:
    path = tmp_path / "cloud.sock"
    with cloud_in(tmp_path, uds=str(path)) as cloud:
        assert cloud.url == f"unix:{path}"
        for url, via in ((cloud.url, Via(Proxy.parse(f"http://127.0.0.1:{dead}"))), (f"unix://{path}", DIRECT)):
            cloud.asked.clear()
            reach(url, via)
            assert cloud.asked


@pytest.mark.parametrize("reach", [list_contexts, ask, sync])
def test_a_socket_that_nobody_is_at_is_told(tmp_path: Path, reach: Reach) -> None:
    with pytest.raises(TransportError, match=r"unix:.*cannot be reached: .*is `preread (cloud|edge)` running"):
        reach(f"unix:{tmp_path}/none.sock", DIRECT)


def test_sockets_and_loopback_expose_nothing() -> None:
    assert [parse_origin(url).exposed for url in ("http://a", "https://a", "unix:/a", "http://[::1]:1")] == [
        True,
        False,
        False,
        False,
    ]
    assert str(parse_origin("unix:///run/a.sock")) == "unix:/run/a.sock"
    for wrong in ("unix:", "unix:a.sock", "unix://host/a.sock", "unix:/a\nb"):
        with pytest.raises(UsageError):
            parse_origin(wrong)
    with pytest.raises(UsageError, match="neighbour"):
        NeighbourLink("unix:/a.sock", "0" * 16)
