"""The edge's way out against honest, broken and malicious servers, over real sockets."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from preread.errors import Absent, CorruptData, PrereadError, RemoteError, TransportError, UsageError
from preread.store import egress
from preread.store.egress import CloudLink
from preread.store.http11 import Patience
from preread.store.origin import parse_origin
from preread.values import ObjectId, ObjectRef
from preread.wire.digest import object_id

DATA = bytes(range(256)) * 400
REF = ObjectRef("segments", object_id(DATA), len(DATA))
HASTY = Patience(connect_s=1.0, stall_s=0.2, grace_s=30.0)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


class Served:
    """What a server saw."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""


@asynccontextmanager
async def server(handler: Handler) -> Any:
    """Serve requests without bodies; `handler` gets each request's head and writes whatever it likes."""
    served, tasks = Served(), set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                served.requests.append(head)
                await handler(reader, writer, head)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(body: bytes, status: str = "200 OK", length: int | None = None, extra: str = "") -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{extra}\r\n".encode() + body


def sends(*pieces: bytes, close: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            raise OSError("enough")

    return handle


def outcome(handler: Handler, patience: Patience = HASTY, ref: ObjectRef = REF) -> bytes | PrereadError:
    async def main() -> bytes | PrereadError:
        async with server(handler) as served, CloudLink(served.url, patience=patience) as link:
            try:
                return await link.get(ref)
            except PrereadError as error:
                return error

    return asyncio.run(main())


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "handler",
    [
        sends(answer(DATA)),
        sends(chunked(DATA[:5], DATA[5:])),
        sends(b"HTTP/1.0 200 OK\r\n\r\n" + DATA, close=True),
        sends(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", answer(DATA)),
    ],
    ids=["length", "chunked", "until-close", "early-hints"],
)
def test_objects_arrive(handler: Handler) -> None:
    assert outcome(handler) == DATA


async def early_hints_forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10**6):
        writer.write(b"X-%d: x\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.001)


def test_early_hints_without_end_are_refused() -> None:
    assert isinstance(outcome(early_hints_forever, Patience(grace_s=5.0)), RemoteError)


@pytest.mark.parametrize("handler", [early_hints_forever, slow_head, sends(answer(b"?" * 9999, "404 Not Found"))])
def test_only_bytes_of_what_was_asked_for_are_progress(handler: Handler) -> None:
    """A plan waits for a link that brings something: heads, errors and other objects are nothing."""

    async def main() -> None:
        async with server(handler) as served, CloudLink(served.url, patience=Patience(grace_s=5.0)) as link:
            with pytest.raises(PrereadError):
                await link.get(REF)
            assert link.received_bytes == 0

    asyncio.run(main())


def test_a_segment_under_way_is_progress_and_a_catalogue_is_not() -> None:
    more = asyncio.Event()

    async def halves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(answer(DATA[:5000], length=len(DATA)))
        await more.wait()
        writer.write(DATA[5000:])

    async def main() -> None:
        async with server(halves) as served, CloudLink(served.url) as link:
            got = asyncio.create_task(link.get(REF))
            while link.received_bytes < 5000:
                await asyncio.sleep(0.001)
            assert link.received_bytes == 5000
            more.set()
            assert await got == DATA and link.received_bytes == len(DATA)
        async with server(sends(answer(DATA))) as served, CloudLink(served.url) as link:
            with pytest.raises(CorruptData, match="not JSON"):
                await link.catalogue()
            await link.get(ObjectRef("profiles", REF.id, REF.size_bytes))
            assert link.received_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (sends(answer(DATA + b"x")), "length"),
        (sends(answer(b"", length=10**15)), "length"),
        (sends(answer(DATA[:-1])), "length"),
        (sends(answer(b"")), "length"),
        (sends(chunked(DATA, b"x")), "length"),
        (sends(chunked(DATA[:-1])), "length"),
        (sends(answer(DATA[:-1] + b"x")), "digest"),
    ],
    ids=["longer", "much-longer", "shorter", "empty", "longer-chunked", "shorter-chunked", "other-bytes"],
)
def test_wrong_bytes_are_thrown_away(handler: Handler, reason: str) -> None:
    error = outcome(handler)
    assert isinstance(error, CorruptData) and error.reason == reason


def test_oversize_body_is_not_read_to_its_end() -> None:
    async def main() -> None:
        sent = 0

        async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            piece = bytes(65536)
            while True:
                writer.write(b"10000\r\n" + piece + b"\r\n")
                await writer.drain()
                sent += len(piece)

        async with server(flood) as served, CloudLink(served.url, patience=HASTY) as link:
            with pytest.raises(CorruptData, match="length"):
                await link.get(REF)
        assert sent < 64 * 2**20

    asyncio.run(main())


@pytest.mark.parametrize(
    ("handler", "kind", "words"),
    [
        (sends(answer(b"", "302 Found", extra="Location: /elsewhere\r\n")), RemoteError, "redirect 302"),
        (sends(answer(b"", "404 Not Found")), Absent, "does not have"),
        (sends(answer(b"oops", "500 Internal Server Error")), RemoteError, "status 500"),
        (sends(answer(b"", "204 No Content")), RemoteError, "status 204"),
        (sends(answer(b"", "206 Partial Content")), RemoteError, "status 206"),
        (sends(answer(b"", "304 Not Modified")), RemoteError, "304"),
        (sends(answer(b"", "401 Unauthorized")), UsageError, "API key"),
        (sends(answer(b"", "403 Forbidden")), UsageError, "scope read"),
        (sends(answer(b"", "421 Misdirected Request")), UsageError, "--allow-host"),
        (sends(answer(DATA, extra="Content-Encoding: gzip\r\n")), RemoteError, "encodes"),
        (sends(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), RemoteError, "HTTP"),
        (sends(answer(DATA[:100], length=len(DATA)), close=True), TransportError, "after 100 bytes"),
        (sends(close=True), TransportError, "closed the connection"),
    ],
)
def test_other_answers_say_whose_fault_it_is(handler: Handler, kind: type[PrereadError], words: str) -> None:
    error = outcome(handler)
    assert type(error) is kind and words in str(error)


def ranges(cut: int, times: int, honest: bool = True) -> Handler:
    """Answers ranges, and breaks off after `cut` bytes the first `times` times; not honest: it sends another part."""
    left = [times]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        found = re.search(rb"\r\nRange: bytes=(\d+)-\r\n", head)
        start = int(found[1]) if found else 0
        body, at = DATA[start:], start if honest else 0
        if found:
            extra = f"Content-Range: bytes {at}-{len(DATA) - 1}/{len(DATA)}\r\n"
            data = answer(body, "206 Partial Content", extra=extra)
        else:
            data = answer(body)
        if left[0] > 0:
            left[0] -= 1
            writer.write(data[: len(data) - len(body) + cut])
            await writer.drain()
            raise OSError("enough")
        writer.write(data)
        await writer.drain()

    return handle


async def until_whole(link: CloudLink, tries: int) -> bytes:
    for _ in range(tries - 1):
        with pytest.raises(TransportError):
            await link.get(REF)
    return await link.get(REF)


def test_what_broke_off_is_gone_on_from() -> None:
    async def main() -> None:
        async with server(ranges(30_000, 3)) as served, CloudLink(served.url) as link:
            assert await until_whole(link, 4) == DATA
            asked = [re.findall(rb"Range: bytes=(\d+)-", head) for head in served.requests]
            assert asked == [[], [b"30000"], [b"60000"], [b"90000"]]
            assert link.received_bytes < len(DATA) + 2000, "no byte came twice"
            assert await link.get(REF) == DATA and b"Range" not in served.requests[-1]

    asyncio.run(main())


def test_what_broke_off_begins_anew_where_the_other_side_knows_no_ranges() -> None:
    pieces = [answer(DATA)[:50_000], answer(DATA)]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(piece := pieces.pop(0))
        await writer.drain()
        if len(piece) < len(DATA):
            raise OSError("enough")

    async def main() -> None:
        async with server(handle) as served, CloudLink(served.url) as link:
            assert await until_whole(link, 2) == DATA and b"Range" in served.requests[1]

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["another part", "nothing more", "begun with other bytes"])
def test_a_part_that_does_not_fit_is_thrown_away_with_what_was_begun(wrong: str) -> None:
    handlers = {
        "another part": [ranges(30_000, 1), ranges(0, 0, honest=False)],
        "nothing more": [ranges(30_000, 1), sends(answer(b"", "416 Range Not Satisfiable"))],
        "begun with other bytes": [sends(answer(bytes(30_000), length=len(DATA)), close=True), ranges(0, 0)],
    }[wrong]
    count = [0]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        count[0] += 1
        await (handlers[count[0] - 1] if count[0] < 3 else ranges(0, 0))(reader, writer, head)

    async def main() -> None:
        async with server(handle) as served, CloudLink(served.url) as link:
            with pytest.raises(TransportError):
                await link.get(REF)
            with pytest.raises((CorruptData, RemoteError)):
                await link.get(REF)
            assert await link.get(REF) == DATA and b"Range" not in served.requests[2]

    asyncio.run(main())


def test_of_what_broke_off_only_the_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "MOST_BEGUN_BYTES", 50_000)
    other = bytes(reversed(DATA))
    refs = [REF, ObjectRef("segments", object_id(other), len(other))]

    async def main() -> None:
        async with server(sends(answer(DATA)[:40_000], close=True)) as served, CloudLink(served.url) as link:
            for ref in (*refs, *refs):
                with pytest.raises(TransportError):
                    await link.get(ref)
            assert [b"Range" in head for head in served.requests] == [False, False, False, False]

    asyncio.run(main())


def test_redirects_are_not_followed() -> None:
    async def main() -> None:
        redirect = answer(b"", "301 Moved Permanently", extra="Location: /v1/catalogue\r\n")
        async with server(sends(redirect)) as served, CloudLink(served.url) as link:
            with pytest.raises(RemoteError):
                await link.get(REF)
            assert len(served.requests) == 1

    asyncio.run(main())


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    writer.write(answer(DATA)[:1000])
    await asyncio.Event().wait()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    for byte in answer(DATA):
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)


async def drip_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Drip: 1\r\n")
        await asyncio.sleep(0.01)


def test_silence_is_a_stall() -> None:
    error = outcome(hang)
    assert isinstance(error, TransportError) and "nothing more for 0.2 s" in str(error)


@pytest.mark.parametrize("handler", [drip, drip_headers])
def test_endless_drip_is_cut_off_although_it_never_stalls(handler: Handler) -> None:
    assert isinstance(outcome(handler, Patience(stall_s=10.0, grace_s=0.2)), TransportError)


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % index for index in range(100_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**20 + b"\r\n\r\n",
        b"HTTP/1.1 200 " + b"y" * 2**20 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"y" * 2**20 + b"\r\nx\r\n",
    ],
    ids=["many", "one-long", "long-reason", "chunk-extension"],
)
def test_header_floods_are_refused(flood: bytes) -> None:
    error = outcome(sends(flood, close=True))
    assert isinstance(error, RemoteError | TransportError)


def test_requests_are_constant_and_say_nothing_else() -> None:
    async def main() -> None:
        async with server(sends(answer(DATA))) as served:
            async with CloudLink(served.url + "/prefix/") as link:
                await link.get(REF)
            host = served.url.removeprefix("http://")
            expected = (
                f"GET /prefix/v1/segments/{REF.id} HTTP/1.1\r\nHost: {host}\r\n"
                "User-Agent: preread\r\nAccept-Encoding: identity\r\n\r\n"
            )
            assert served.requests == [expected.encode()]

    asyncio.run(main())


@pytest.mark.parametrize("id", ["", "A" * 64, "../" * 21 + "a", REF.id + "\n", "a" * 63 + "\r"])
def test_only_ids_can_be_asked_for(id: str) -> None:
    error = outcome(sends(answer(DATA)), ref=ObjectRef("segments", ObjectId(id), 10))
    assert isinstance(error, UsageError)


def test_only_known_kinds_can_be_asked_for() -> None:
    ref = ObjectRef("prompts", REF.id, 10)  # type: ignore[arg-type]
    assert isinstance(outcome(sends(answer(DATA)), ref=ref), UsageError)


def test_api_key_travels_as_bearer_token_and_no_cookie_comes_back() -> None:
    async def main() -> None:
        reply = answer(DATA, extra="Set-Cookie: a=b\r\n")
        async with server(sends(reply)) as served, CloudLink(served.url, api_key="k3y") as link:
            await link.get(REF)
            await link.get(REF)
            assert all(b"\r\nAuthorization: Bearer k3y\r\n" in head for head in served.requests)
            assert b"ookie" not in served.requests[1] and b"eferer" not in served.requests[1]
            assert served.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX: y", "ü"])
def test_api_key_that_no_header_can_hold(key: str) -> None:
    with pytest.raises(UsageError):
        CloudLink("http://127.0.0.1:1", api_key=key)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert outcome(sends(answer(DATA))) == DATA


ONE = "1" * 64


def test_catalogue_is_conditional() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        current = f'If-None-Match: "{ONE}"'.encode() in head
        writer.write(answer(b"", "304 Not Modified") if current else answer(b"{}", extra=f'ETag: "{ONE}"\r\n'))

    async def main() -> None:
        async with server(handle) as served, CloudLink(served.url) as link:
            assert await link.catalogue() == (b"{}", ONE)
            assert await link.catalogue(ONE) is None
            assert await link.catalogue("2" * 64) == (b"{}", ONE)
            assert await link.catalogue('x"\r\nEvil: 1') == (b"{}", ONE)
            assert b"Evil" not in served.requests[-1]
            assert served.connections == 1

    asyncio.run(main())


def test_warm_opens_connections_that_are_used_later() -> None:
    async def main() -> None:
        everybody_here = asyncio.Barrier(4)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            if b"/v1/catalogue" in head:
                await everybody_here.wait()
                writer.write(answer(b"", "304 Not Modified"))
            else:
                writer.write(answer(DATA))

        async with server(handle) as served, CloudLink(served.url) as link:
            await link.warm(4)
            assert await asyncio.gather(*[link.get(REF) for _ in range(4)]) == [DATA] * 4
            assert served.connections == 4

    asyncio.run(main())


def test_connection_closed_while_idle_is_replaced() -> None:
    async def main() -> None:
        async with server(sends(answer(DATA), close=True)) as served, CloudLink(served.url) as link:
            for _ in range(3):
                assert await link.get(REF) == DATA
            assert served.connections == 3

    asyncio.run(main())


def test_no_more_connections_than_allowed() -> None:
    async def main() -> None:
        busy = most = 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            nonlocal busy, most
            busy, most = busy + 1, max(most, busy + 1)
            await asyncio.sleep(0)
            busy -= 1
            writer.write(answer(DATA))

        async with server(handle) as served, CloudLink(served.url, connections=3) as link:
            await asyncio.gather(*[link.get(REF) for _ in range(20)])
            assert served.connections <= 3 and most <= 3

    asyncio.run(main())


def test_cancelled_request_does_not_poison_its_connection() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            writer.write(answer(DATA)[:5000])
            asked.set()
            if served.connections > 1:
                writer.write(answer(DATA)[5000:])

        async with server(handle) as served, CloudLink(served.url, connections=1) as link:
            task = asyncio.create_task(link.get(REF))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await link.get(REF) == DATA
            assert served.connections == 2

    asyncio.run(main())


def test_closing_fails_requests_in_flight_at_once() -> None:
    async def main() -> None:
        async with server(hang) as served:
            link = CloudLink(served.url, patience=Patience(stall_s=600.0, grace_s=600.0))
            task = asyncio.create_task(link.get(REF))
            while not served.requests:
                await asyncio.sleep(0)
            await link.aclose()
            with pytest.raises(TransportError):
                await task

    asyncio.run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        async with server(hang) as served:
            url = served.url
        async with CloudLink(url) as link:
            with pytest.raises(TransportError, match=r"cannot be reached: connection refused; is `preread cloud`"):
                await link.get(REF)

    asyncio.run(main())


@pytest.mark.parametrize(
    "url",
    ["", "cloud:8000", "ftp://host", "http://", "http://u:p@host", "http://h/?q=1", "http://h:99999", "http://a b"],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        CloudLink(url)


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("http://host", "http://host:80"),
        ("https://host/a/b/", "https://host:443/a/b"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_addresses(url: str, written: str) -> None:
    assert str(parse_origin(url)) == written
