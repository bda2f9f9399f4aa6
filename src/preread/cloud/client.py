"""What the command line says to a cloud: publish, remove, list. It knows HTTP and events; it must not know engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeVar
from urllib.parse import quote, urlencode

import httpx2
import msgspec

from preread.cloud.events import Counted, Event, Failed, Mode, Priority, Problem, Progress, Published, Request
from preread.errors import (
    Absent,
    CorruptData,
    Overloaded,
    PrereadError,
    RemoteError,
    TransportError,
    Unavailable,
    UsageError,
)
from preread.store import client
from preread.values import Form, ObjectId
from preread.via import DIRECT, Via
from preread.wire import catalogue as wire
from preread.wire import fits as fit_lists
from preread.wire.digest import object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES
from preread.wire.fits import MAX_FITS_BYTES, Fit
from preread.wire.pages import Pages

T = TypeVar("T")

_LINE_BYTES: Final = 2**20
_LONGEST_S: Final = 600.0
"""A cloud that says to try again later than this is not believed."""
_QUIET_S: Final = 900.0
"""A publication waits its turn, and then for its model, without a word."""


_events: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)
_counted: Final = msgspec.json.Decoder(Counted)
_fit: Final = msgspec.json.Decoder(Fit)


class _ErrorBody(msgspec.Struct):
    error: Problem


def publish(
    url: str,
    name: str,
    *,
    text: str | None = None,
    tokens: list[int] | None = None,
    form: Form | Literal["auto"] = "auto",
    mode: Mode = "exact",
    priority: Priority = "interactive",
    model: str | None = None,
    api_key: str | None = None,
    via: Via = DIRECT,
) -> Iterator[Progress | Published]:
    """Have a cloud read a document, given as exactly one of text and tokens, in this mode. The last event is Published.

    `priority`: whether somebody waits for it. `model`: the one that is to read it, where the cloud runs several. `via`:
    how the cloud is reached.

    Raises:
        UsageError: the cloud says what is wrong with the request.
        RemoteError: the cloud failed.
        Unavailable, Overloaded: the cloud cannot do it now: ask it again, which loses nothing.
        TransportError: the cloud cannot be reached, or the connection broke; nothing was published then.
        CorruptData: the other side is not a cloud.
    """
    body = msgspec.json.encode(Request(name, text, tokens, form, mode, priority, model))
    with _answer(url, "POST", "/v1/contexts", api_key, via, body) as response:
        for line in _lines(response):
            event = _decoded(line, _events)
            if isinstance(event, Failed):
                raise _failure(url, _status(event.error), event.error)
            yield event
            if isinstance(event, Published):
                return
    raise TransportError(f"cloud {url} closed the connection before it had published: look at its log, then try again")


def count(
    url: str,
    name: str,
    *,
    text: str | None = None,
    tokens: list[int] | None = None,
    form: Form | Literal["auto"] = "auto",
    mode: Mode = "exact",
    model: str | None = None,
    api_key: str | None = None,
    via: Via = DIRECT,
) -> Counted:
    """What a document would be, published as `publish` would: its tokens, and whether it is there already.

    Raises:
        Absent: the cloud is of before it could tell.
        UsageError, RemoteError, TransportError, CorruptData: as for `publish`.
    """
    body = msgspec.json.encode(Request(name, text, tokens, form, mode, model=model))
    with _answer(url, "POST", "/v1/count", api_key, via, body) as response:
        return _decoded(_read(response, _LINE_BYTES), _counted)


def remove(url: str, name: str, *, api_key: str | None = None, via: Via = DIRECT) -> None:
    """Have a cloud forget a context.

    Raises:
        UsageError: it has none of this name, or as for `publish`.
        RemoteError, TransportError: as for `publish`.
    """
    with _answer(url, "DELETE", f"/v1/contexts/{quote(name, safe='')}", api_key, via):
        pass


def catalogue(url: str, *, api_key: str | None = None, via: Via = DIRECT) -> wire.Catalogue:
    """What a cloud has published.

    Raises:
        CorruptData: the answer is no catalogue.
        UsageError, RemoteError, TransportError: as for `publish`.
    """
    pages = Pages()
    while (target := pages.target) is not None:
        with _answer(url, "GET", target, api_key, via) as response:
            pages.take(_read(response, MAX_CATALOGUE_BYTES))
    return wire.loads(pages.whole())


def fits(url: str, *, api_key: str | None = None, via: Via = DIRECT) -> tuple[Fit, ...]:
    """What was learnt of models, and a cloud has, the oldest first.

    Raises:
        Absent: the cloud is of before there was a list.
        CorruptData: the answer is none.
        UsageError, RemoteError, TransportError: as for `publish`.
    """
    path = f"{fit_lists.PATH}?{urlencode([(fit_lists.ALSO, kind) for kind in fit_lists.LATER_KINDS])}"
    with _answer(url, "GET", path, api_key, via) as response:
        return fit_lists.loads(_read(response, MAX_FITS_BYTES)).fits


def push_fit(url: str, data: bytes, *, api_key: str | None = None, via: Via = DIRECT) -> Fit:
    """Give a cloud a fit's file; what the cloud takes it for.

    Raises:
        Absent, UsageError, RemoteError, TransportError, CorruptData: as for `fits`.
    """
    path = f"{fit_lists.PATH}/{object_id(data)}"
    with _answer(url, "PUT", path, api_key, via, data, media="application/octet-stream") as response:
        return _decoded(_read(response, _LINE_BYTES), _fit)


def remove_fit(url: str, id: ObjectId, *, api_key: str | None = None, via: Via = DIRECT) -> None:
    """Have a cloud forget a fit.

    Raises:
        Absent, UsageError, RemoteError, TransportError: as for `fits`.
    """
    with _answer(url, "DELETE", f"{fit_lists.PATH}/{id}", api_key, via):
        pass


@contextmanager
def _answer(
    url: str,
    method: str,
    path: str,
    api_key: str | None,
    via: Via,
    body: bytes | None = None,
    media: str = "application/json",
) -> Iterator[httpx2.Response]:
    """A successful answer, not yet read."""
    headers = {"User-Agent": "preread", "Accept-Encoding": "identity", "Content-Type": media}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    with (
        client.client("cloud", url, _QUIET_S, via) as opened,
        opened.stream(method, path, headers=headers, content=body) as response,
    ):
        if response.status_code != 200:
            problem = _problem(_read(response, _LINE_BYTES))
            raise _failure(url, response.status_code, problem, response.headers.get("retry-after", ""))
        yield response


def _read(response: httpx2.Response, most_bytes: int) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > most_bytes:
            raise CorruptData("length", f"answer is longer than the {most_bytes} bytes it may have")
    return bytes(body)


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    rest = b""
    for piece in response.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _LINE_BYTES:
            raise CorruptData("length", f"event is longer than the {_LINE_BYTES} bytes it may have")


def _decoded(data: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptData("json", f"this is not how a cloud answers: {error}; check the address") from error


def _problem(body: bytes) -> Problem:
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, ValueError):
        return Problem("no reason given: it may not be a preread cloud", "", "")


def _status(problem: Problem) -> int:
    """The status that an answer would have had, where the problem came up later."""
    if problem.type == "invalid_request_error":
        return 400
    return 503 if problem.code in ("unavailable", "overloaded") else 500


def _failure(url: str, status: int, problem: Problem, retry_after: str = "") -> PrereadError:
    """The error that a cloud's answer stands for; its words are shown, its control characters are not."""
    words = "".join(letter if letter.isprintable() else " " for letter in problem.message[:2000])
    if problem.code == "unknown_context":
        return UsageError(words)
    if status in (429, 503) and retry_after.isascii() and retry_after.isdecimal():
        message = f"cloud {url} is to be asked later: {words}"
        return Overloaded(message, retry_after_s=min(int(retry_after[:9]), _LONGEST_S), by_caller=status == 429)
    if status == 503:
        return Unavailable(f"cloud {url} cannot do that now: {words}")
    if status in (502, 504) and not problem.code:  # what is between says so
        return TransportError(f"cloud {url} cannot be reached from what is before it, which says {status}")
    if problem.code == "not_found":
        return Absent(f"cloud {url} does not know what it was asked for: {words}; it may be older than this command")
    if 400 <= status < 500:
        key = "; give a key with --api-key-file or PREREAD_API_KEY" if status in (401, 403) else ""
        return UsageError(f"cloud {url} refuses: {words}{key}")
    return RemoteError(f"cloud {url} failed with {status}: {words}")
