"""Asking a running edge over HTTP, as any OpenAI client does. It knows that API; it must not know engines."""

from collections.abc import Generator, Mapping
from typing import Final, Literal

import httpx2
import msgspec

from preread.edge.request import Done, Piece, Timings
from preread.errors import CorruptData, RemoteError, TransportError, UsageError
from preread.store.client import client
from preread.via import DIRECT, Via

_QUIET_S: Final = 600.0
"""An edge that computes a long context says nothing meanwhile."""
_MOST_BYTES: Final = 2**20


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: Literal["stop", "length"] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Problem(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    timings: Timings | None = None
    error: _Problem | None = None


_chunks: Final[msgspec.json.Decoder[_Chunk]] = msgspec.json.Decoder(_Chunk)


def ask(
    url: str,
    prompt: str,
    context: str | None,
    sampling: Mapping[str, object],
    *,
    api_key: str | None = None,
    via: Via = DIRECT,
) -> Generator[Piece | Done, None, None]:
    """Ask an edge. The last piece is Done.

    Args:
        url: of the edge.
        prompt: the user's message.
        context: name of the context that it is about.
        sampling: fields of a chat completion, such as `temperature`.
        api_key: that the edge asks for.
        via: how the edge is reached.

    Raises:
        UsageError: the edge says what is wrong with the request.
        RemoteError: the edge failed.
        TransportError: it cannot be reached, or the connection broke.
        CorruptData: the other side is not an edge.
    """
    headers = {"User-Agent": "preread"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    body = {"model": "preread", "messages": [{"role": "user", "content": prompt}], **sampling}
    body |= {"stream": True, "stream_options": {"include_usage": True}} | ({"context": context} if context else {})
    with (
        client("edge", url, _QUIET_S, via) as opened,
        opened.stream("POST", "/v1/chat/completions", headers=headers, json=body) as response,
    ):
        if response.status_code != 200:
            raise _failure(url, response.status_code, response.read()[:_MOST_BYTES])
        yield from _pieces(url, response)


def _pieces(url: str, response: httpx2.Response) -> Generator[Piece | Done, None, None]:
    finish: Literal["stop", "length"] = "stop"
    timings, prompt_tokens = Timings(), 0
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            yield Done(finish, prompt_tokens, timings)
            return
        chunk = _decode(data)
        if chunk.error is not None:
            raise RemoteError(f"edge {url} failed: {_words(chunk.error.message)}")
        timings = chunk.timings or timings
        prompt_tokens = chunk.usage.prompt_tokens if chunk.usage else prompt_tokens
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if choice.delta.content:
                yield Piece(choice.delta.content)
    raise TransportError(f"edge {url} closed the connection in the middle of its answer")


def _decode(data: str) -> _Chunk:
    try:
        return _chunks.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptData("json", f"this is not how an edge answers: {error}; check the address") from error


def _failure(url: str, status: int, body: bytes) -> UsageError | RemoteError:
    try:
        problem = _chunks.decode(body).error
    except (msgspec.DecodeError, ValueError):
        problem = None
    words = _words(problem.message) if problem else "no reason given: it may not be a preread edge"
    if 400 <= status < 500:
        key = "; give a key with --api-key-file or PREREAD_API_KEY" if status in (401, 403) else ""
        return UsageError(f"edge {url} refuses: {words}{key}")
    return RemoteError(f"edge {url} failed with {status}: {words}")


def _words(message: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in message[:2000])
