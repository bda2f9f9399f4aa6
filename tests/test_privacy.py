"""Nothing that derives from a prompt leaves the edge: every byte that it sends is recorded and searched.

What can be seen from outside is which published contexts an edge asks for, and when; nothing else.
"""

import asyncio
import base64
import hashlib
import json
import re
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import blake3
import httpx2
import pytest

from preread.edge import understand
from preread.edge.app import create_app
from preread.edge.edge import AsyncEdge
from preread.edge.options import Near
from preread.edge.share import create_share_app
from preread.store import http11
from preread.store.egress import NeighbourLink
from preread.testing.beliefs import slow_machine
from preread.testing.edges import serving_here
from preread.testing.relay import Proxy
from preread.testing.toxics import Corrupt, Reset, Truncate
from preread.wire import catalogue, manifest
from preread.wire.neighbour import SiteKey

REQUEST_LINE = re.compile(
    r"GET /v1/(catalogue(\?limit=1000(&fingerprint=[0-9a-f]{64})?(&digest=[0-9a-f]{3})?(&since=[0-9a-f]{64})?)?"
    r"|origins|(segments|tokens|manifests|profiles)/[0-9a-f]{64}) HTTP/1\.1"
)
CATALOGUE_HEADER = re.compile(
    r'If-None-Match: ("[0-9a-f]{64}"|\*)|Last-Event-ID: [0-9a-f]{64}|Accept: text/event-stream'
)
LEAFLET = "The pump hums, the fan whirs, and the lid clicks. " * 5
SHORTEST_RUN = 4
"""So many token ids in a row are no coincidence."""


# What is looked for


def encodings(text: str) -> Iterator[tuple[str, bytes]]:
    """(what, how it would look) for the usual ways in which a text can be written into a message."""
    plain = text.encode()
    for charset in ("utf-8", "utf-16-le", "utf-16-be"):
        yield charset, text.encode(charset)
    yield "hex", plain.hex().encode()
    yield "URL", quote(text, safe="").encode()
    yield "form", quote_plus(text).encode()
    yield "JSON", json.dumps(text)[1:-1].encode()
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            # Leave out the letters at either end, to which what stands before and after contributes.
            middle = encode(b"\0" * shift + plain)[(0, 2, 3)[shift] :]
            yield f"base64 + {shift}", middle.rstrip(b"=")[: -1 if (len(plain) + shift) % 3 else None]
    yield from digests(plain)


def digests(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name in ("md5", "sha1", "sha256", "blake2b"):
        yield name, hashlib.new(name, data).hexdigest().encode()[:32]
    yield "blake3", blake3.blake3(data).hexdigest().encode()[:32]


def token_encodings(ids: list[int]) -> Iterator[tuple[str, bytes]]:
    """(what, how it would look) for every few token ids in a row, and for digests of all of them."""
    for form in ("<H", ">H", "<I", ">I"):
        packed = [struct.pack(form, id) for id in ids if form[1] == "I" or id < 2**16]
        yield from ((f"ids as {form}", b"".join(run)) for run in runs(packed))
        yield from ((f"{name} of ids as {form}", digest) for name, digest in digests(b"".join(packed)))


def runs(items: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(len(items) - SHORTEST_RUN + 1):
        yield items[start : start + SHORTEST_RUN]


def leaks(sent: bytes, canaries: list[str], ids: list[list[int]]) -> list[str]:
    """What of the canaries, in whichever letter case, and of the token ids is in `sent`."""
    folded = sent.lower()
    numbers = b",%s," % b",".join(re.findall(rb"\d+", sent))
    found = [f"{text!r} as {what}" for text in canaries for what, form in encodings(text) if form.lower() in folded]
    for all_ids in ids:
        found += [f"{all_ids[:9]}: {what}" for what, form in token_encodings(all_ids) if form in sent]
        written = [str(id).encode() for id in all_ids]
        found += [f"{run} in decimal" for run in runs(written) if b",%s," % b",".join(run) in numbers]
    return found


def canary() -> str:
    """Private text that is nowhere else in the world, with letters that encodings treat differently."""
    return f"Zq{secrets.token_hex(4)} Grüße/{secrets.token_hex(4)}+?"


PLANTED = "Zq01ab Grüße/77?+"
PLANTED_IDS = [7, 49000, 12, 305, 9]


@pytest.mark.parametrize(
    "what, form", [*encodings(PLANTED), *((f"upper {w}", f.upper()) for w, f in encodings(PLANTED))]
)
def test_search_finds_texts(what: str, form: bytes) -> None:
    assert leaks(b"GET /?x=" + form + b" HTTP/1.1", [PLANTED], [])


@pytest.mark.parametrize("before", range(3))
def test_search_finds_base64_within_base64(before: int) -> None:
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        assert leaks(encode(b"x" * before + PLANTED.encode() + b"and more"), [PLANTED], [])


@pytest.mark.parametrize(
    "form",
    [
        json.dumps(PLANTED_IDS).encode(),
        b"305-9-12-305-7,49000,12,305",
        struct.pack("<4H", *PLANTED_IDS[1:]),
        struct.pack(">4H", *PLANTED_IDS[:4]),
        struct.pack("<5I", *PLANTED_IDS),
        struct.pack(">5I", *PLANTED_IDS),
        blake3.blake3(struct.pack("<5I", *PLANTED_IDS)).hexdigest().encode(),
    ],
)
def test_search_finds_token_ids(form: bytes) -> None:
    assert leaks(b"\0" + form + b"\0", [], [PLANTED_IDS])
    assert not leaks(form[: len(form) // 3], [], [PLANTED_IDS])


# What is sent


class Recorder:
    """Relays connections to `port`, and keeps what clients send, connection by connection."""

    def __init__(self, port: int) -> None:
        self._target_port = port
        self.sent: list[bytearray] = []
        self._relaying: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """Gives the URL."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._relay(reader, writer))
            self._relaying.add(task)

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*self._relaying)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self.sent.append(kept)
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", self._target_port)
        await asyncio.gather(_pump(reader, onward, kept.extend), _pump(onward_reader, writer, len))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Callable[[bytes], object]) -> None:
    try:
        while data := await reader.read(65536):
            see(data)
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one end is gone, which the other is told
    finally:
        writer.close()


class Private:
    """Questions full of canaries, and what of them must not be seen."""

    def __init__(self) -> None:
        self.canaries: list[str] = []

    def text(self) -> str:
        self.canaries.append(canary())
        return self.canaries[-1]

    def fields(self) -> dict[str, Any]:
        """All fields besides the prompt into which a client may write something private."""
        return {
            "model": self.text(),
            "user": self.text(),
            "stop": [self.text(), self.text()],
            "metadata": {self.text(): self.text()},
            "max_tokens": 3,
            "temperature": 0,
        }

    def messages(self, system: str | None = None) -> list[dict[str, str]]:
        question = [{"role": "user", "name": self.text(), "content": f"Remember {self.text()}. What was it?"}]
        return [{"role": "system", "content": system}, *question] if system else question


@dataclass(frozen=True, slots=True)
class Scene:
    """An edge behind its API, whose link to the cloud runs through `proxy` and is recorded."""

    edge: AsyncEdge
    client: httpx2.AsyncClient
    proxy: Proxy
    private: Private

    async def ask(self, path: str, way: str | None, status: int | tuple[int, ...] = 200, **fields: Any) -> None:
        """Ask, and check where the answer's context came from."""
        headers = {"X-Private": quote(self.private.text())}
        answer = await self.client.post(path, json={**self.private.fields(), **fields}, headers=headers)
        assert answer.status_code in (status if isinstance(status, tuple) else (status,)), answer.text
        if way:
            told = answer.text.split("data: ")[-2] if fields.get("stream") else answer.text
            assert json.loads(told)["timings"]["way"] == way, told


def believe_in_the_link(scene: Scene) -> None:
    """Such a short context would be computed otherwise."""
    node = scene.edge.node
    node.beliefs = slow_machine(link_bytes_s=1e7)


async def everything(scene: Scene) -> None:
    """Every way of answering, and every way of not answering."""
    ask, private, chat, completions = scene.ask, scene.private, "/v1/chat/completions", "/v1/completions"
    for stream in (False, True):
        await scene.edge.node.forget()
        believe_in_the_link(scene)
        await ask(chat, "streamed", messages=private.messages(), context="leaflet", stream=stream)
        await ask(chat, "resident", messages=private.messages(LEAFLET), stream=stream)
        await ask(chat, "none", messages=private.messages(private.text()), stream=stream)
        await ask(completions, "none", prompt=f"{private.text()} is what", stream=stream)
        await ask(completions, "resident", prompt=private.text(), context="leaflet", stream=stream)
        await ask(chat, None, 404, messages=private.messages(), context=private.text(), stream=stream)
        await ask(chat, None, 400, messages=private.messages(), top_p=private.text(), stream=stream)
    for fault in (Reset(20_000), Truncate(20_000), Corrupt(20_000)):
        await scene.edge.node.sync()
        await scene.edge.node.forget()
        believe_in_the_link(scene)
        scene.proxy.faults = [fault]
        await ask(chat, None, messages=private.messages(), context="leaflet", stream=True)
        await ask(chat, None, (404, 503), messages=private.messages(), context=private.text())
        scene.proxy.faults = []
    await scene.client.get(f"/v1/{quote(private.text())}")


@dataclass(frozen=True, slots=True)
class Recording:
    """What an edge sent, connection by connection; what was private, as texts and as token ids."""

    connections: list[bytes]
    texts: list[str]
    ids: list[list[int]]

    def leaks(self) -> list[str]:
        return leaks(b"\n".join(self.connections), self.texts, self.ids)


def edge_at(cloud_url: str, model: Path, folder: Path) -> AsyncEdge:
    return AsyncEdge(str(model), cloud_url, window_tokens=1024, threads=1, folder=folder)


async def record(
    cloud_url: str, model: Path, folder: Path, act: Callable[[Scene], Coroutine[Any, Any, None]]
) -> Recording:
    async with Proxy(("127.0.0.1", urlsplit(cloud_url).port or 0)) as proxy:
        recorder = Recorder(proxy.port)
        async with recorder.listening() as url, edge_at(url, model, folder) as edge:
            transport = httpx2.ASGITransport(create_app(edge))
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
                scene = Scene(edge, client, proxy, Private())
                await act(scene)
            texts = scene.private.canaries
            ids = [edge.node.engine.tokenize(text).tolist() for text in texts]
    return Recording([bytes(sent) for sent in recorder.sent], texts, ids)


def public_targets(url: str) -> set[str]:
    """Everything that may be asked for: the catalogue, and what it leads to."""
    body = httpx2.get(f"{url}/v1/catalogue", trust_env=False).content
    refs = []
    for entry in catalogue.loads(body).contexts:
        refs += [catalogue.tokens_ref(entry), catalogue.manifest_ref(entry)]
        stored = httpx2.get(f"{url}/v1/manifests/{entry.manifest.id}", trust_env=False).content
        read = manifest.loads(stored)
        refs += [place.ref for rung in read.rungs for place in manifest.places(read, rung.name)]
    return {f"/v1/{ref.kind}/{ref.id}" for ref in refs}


def without_range(headers: tuple[str, ...]) -> tuple[str, ...]:
    """Headers but for how many bytes of an object have come before."""
    return tuple(header for header in headers if not re.fullmatch(r"Range: bytes=\d{1,9}-", header))


def requests_of(sent: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """(request line, headers) of what a connection carried, which must be requests without bodies and nothing else."""
    assert sent == b"" or sent.endswith(b"\r\n\r\n")
    parts = [part.split("\r\n") for part in sent.decode("ascii").split("\r\n\r\n")[:-1]]
    return [(line, tuple(headers)) for line, *headers in parts]


def test_nothing_private_leaves_the_edge(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    cloud.publish("leaflet", LEAFLET)
    seen = asyncio.run(record(cloud.url, tiny_model, tmp_path, everything))
    assert len(seen.texts) > 150 and all(len(run) >= SHORTEST_RUN for run in seen.ids)
    assert seen.leaks() == []
    requests = [request for sent in seen.connections for request in requests_of(sent)]
    assert [line for line, _ in requests if not REQUEST_LINE.fullmatch(line)] == []
    targets = {line.split(" ")[1] for line, _ in requests}
    catalogues = {target for target in targets if target.startswith("/v1/catalogue")}
    assert targets - catalogues - {"/v1/origins"} <= public_targets(cloud.url)
    digests = [digest for target in catalogues for digest in re.findall("digest=([0-9a-f]+)", target)]
    assert digests and all(len(digest) == 3 for digest in digests), "12 bits are all that is said of a name"
    assert sum(target.startswith("/v1/segments/") for target in targets) >= 4, "nothing was streamed"
    (headers,) = {without_range(headers) for line, headers in requests if "/v1/catalogue" not in line}
    others = {one for line, names in requests if "/v1/catalogue" in line for one in names if one not in headers}
    assert [one for one in others if not CATALOGUE_HEADER.fullmatch(one)] == []


def test_leak_would_be_seen(cloud: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge that tells its cloud which name its user asked for, as a careless one might when it is unknown."""
    honest = understand.find_context

    async def careless(name: str, node: Any) -> Any:
        node.link._headers += (("X-Wanted", base64.b64encode(name.encode()).decode()),)
        return await honest(name, node)

    async def ask_for_unknown(scene: Scene) -> None:
        await scene.ask("/v1/completions", None, 404, prompt="x", context=scene.private.text())

    monkeypatch.setattr(understand, "find_context", careless)
    assert asyncio.run(record(cloud.url, tiny_model, tmp_path, ask_for_unknown)).leaks()


# Whom it speaks to

WATCHED = """
import json, sys
from pathlib import Path

seen = []
EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
          "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "urllib.Request")
def watch(event, arguments):
    if event in EVENTS:
        seen.append([event, repr(arguments[1] if event.startswith("socket.") and len(arguments) > 1 else arguments)])
sys.addaudithook(watch)

from preread.edge.edge import Edge
from preread.testing.beliefs import slow_machine
from preread.errors import UnknownContext

model, cloud, folder = sys.argv[1:]
with Edge(model, cloud, window_tokens=1024, threads=1, folder=Path(folder)) as edge:
    edge.asynchronous.node.beliefs = slow_machine()  # so that nothing is computed instead
    ways = [edge.ask("What is this?", context="manual", max_tokens=2).timings.way for _ in "ab"]
    ways += [edge.ask("What is this?", max_tokens=2).timings.way]
    try:
        edge.ask("What is this?", context="a name that nobody knows")
    except UnknownContext:
        ways += ["unknown"]
print(json.dumps({"seen": seen, "ways": ways}))
"""


def test_edge_connects_to_its_cloud_and_to_nothing_else(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHED, str(tiny_model), cloud.url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ways"][0] in ("streamed", "mixed") and told["ways"][1:] == ["resident", "none", "unknown"]
    address = urlsplit(cloud.url)
    assert {tuple(event) for event in told["seen"]} == {("socket.connect", f"('{address.hostname}', {address.port})")}


# What neighbours and the local network hear

NEAR_LINE = re.compile(r"GET /v1/(edge|segments/[0-9a-f]{64}) HTTP/1\.1")
PLAIN_HEADERS = {"Host", "User-Agent", "Accept-Encoding", "Cache-Control", "Range", "Authorization"}
SITE_KEY = "site-key-0123456789abcdef"


class Tap:
    """Keeps what is written to connections that are opened while it is in place, by port."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: dict[int, bytearray] = {}
        self._open = asyncio.open_connection
        monkeypatch.setattr(http11.asyncio, "open_connection", self._tapped)

    async def _tapped(self, host: str, port: int, **options: Any) -> Any:
        reader, writer = await self._open(host, port, **options)
        kept, write = self.sent.setdefault(port, bytearray()), writer.write

        def tapped_write(data: bytes) -> None:
            kept.extend(data)
            write(data)

        writer.write = tapped_write  # type: ignore[method-assign]
        return reader, writer


@contextmanager
def multicast() -> Iterator[list[bytes]]:
    """The multicast DNS that this machine hears meanwhile; nothing where multicast does not pass."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", 5353))
        with suppress(OSError):
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        sock.setblocking(False)
        yield heard
        with suppress(BlockingIOError):
            while True:
                heard.append(sock.recv(65536))


async def near_scene(
    cloud_url: str, model: Path, folder: Path, key: SiteKey, tap: Tap
) -> tuple[dict[str, bytes], list[str], list[list[int]]]:
    """What an edge says to its cloud, to a neighbour and to whoever asks it, by whom; and what was private."""
    near = Near(disk_bytes=1 << 28, site_key=key, share=("127.0.0.1", 9))
    options = {"window_tokens": 1024, "threads": 1}
    async with AsyncEdge(str(model), cloud_url, folder=folder / "other", near=near, **options) as other:
        async with serving_here(create_share_app(other)) as url:
            mine = replace(near, neighbours=(url,), mdns=True)
            async with AsyncEdge(str(model), cloud_url, folder=folder / "mine", near=mine, **options) as edge:
                transport = httpx2.ASGITransport(create_app(edge))
                async with (
                    httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
                    serving_here(create_share_app(edge)) as shared,
                ):
                    await edge.node.sync()
                    private = Private()
                    scene = Scene(edge, client, None, private)  # type: ignore[arg-type]  # no faults are wanted
                    believe_in_the_link(scene)
                    chat = "/v1/chat/completions"
                    for context in ("manual", "leaflet"):  # so many segments that some are the neighbour's to fetch
                        await scene.ask(chat, None, messages=private.messages(), context=context)
                    await scene.ask(chat, "resident", messages=private.messages(LEAFLET))
                    await scene.ask(chat, "none", messages=private.messages(private.text()))
                    await scene.ask(chat, None, (404, 503), messages=private.messages(), context=private.text())
                    told = await _asked(shared, edge, key)
                ids = [edge.node.engine.tokenize(text).tolist() for text in private.canaries]
    ports = {"cloud": urlsplit(cloud_url).port, "neighbour": urlsplit(url).port}
    sent = {who: bytes(tap.sent.get(port or 0, b"")) for who, port in ports.items()}
    return {**sent, "asker": told}, private.canaries, ids


async def _asked(url: str, edge: AsyncEdge, key: SiteKey) -> bytes:
    """What an edge answers to a neighbour, and to whoever asks without a right to."""
    held = edge.node.sources.held
    assert held is not None
    async with NeighbourLink(url, "c" * 16, key) as link, httpx2.AsyncClient(trust_env=False) as stranger:
        said = [repr(await link.introduction()).encode()]
        for id in held.ids()[:3]:
            ref = edge.node.contexts.segment(id)
            assert ref is not None
            said.append(await link.get_held(ref))
        for path in ("/", "/health", "/v1/edge", "/v1/models", "/v1/segments/" + "0" * 64):
            answer = await stranger.get(f"{url}{path}")
            said.append(answer.content + repr(answer.headers).encode())
    return b"\n".join(said)


def test_nothing_private_goes_to_neighbours_or_over_the_local_network(
    cloud: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zeroconf", reason="zeroconf is not installed: pip install 'preread[lan]'")
    cloud.publish("leaflet", LEAFLET)
    with multicast() as heard:
        said, texts, ids = asyncio.run(near_scene(cloud.url, tiny_model, tmp_path, SiteKey(SITE_KEY), Tap(monkeypatch)))
    for who, sent in {**said, "local network": b"\n".join(heard)}.items():
        assert leaks(sent, [*texts, SITE_KEY], ids) == [], who
    requests = requests_of(said["neighbour"])
    assert [line for line, _ in requests if not NEAR_LINE.fullmatch(line)] == []
    assert any("/v1/segments/" in line for line, _ in requests), "the neighbour was asked for nothing"
    assert {header.partition(":")[0] for _, headers in requests for header in headers} <= PLAIN_HEADERS
    assert any(b"_preread" in packet for packet in heard) or not heard, "it announced itself"
    assert said["cloud"] and said["asker"]
