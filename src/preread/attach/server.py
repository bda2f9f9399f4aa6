"""A llama-server that somebody runs: what is asked of it for preread's own sake, and requests that are passed on.

All of `preread attach` that speaks to it is here. It knows llama-server's HTTP API; it must not know contexts.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import msgspec

from preread import tls
from preread.attach.slots import Seen
from preread.errors import RemoteError, TransportError, UsageError
from preread.store.origin import parse_origin

Headers = list[tuple[bytes, bytes]]

_CONNECT_S: Final = 5.0
_OWN_S: Final = 120.0
"""For what is asked for preread's own sake: the server answers that between two batches of what others ask."""
_MOST_OWN_BYTES: Final = 16 * 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Properties:
    """What a server says of itself.

    Attributes:
        slots: how many it has.
        window_tokens: room of each.
        model: what it calls its model.
        tells_slots: whether it says what its slots hold.
    """

    slots: int
    window_tokens: int
    model: str
    tells_slots: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """What follows some tokens: how many of them were reused, and the log-probabilities of the likeliest next ones."""

    reused: int
    logprobs: dict[int, float]


class _Settings(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    default_generation_settings: _Settings
    total_slots: int
    model_alias: str = ""
    endpoint_slots: bool = False


class _Slot(msgspec.Struct):
    id: int
    is_processing: bool
    n_prompt_tokens: int = 0
    id_task: int = -1


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Timings(msgspec.Struct):
    cache_n: int


class _Likely(msgspec.Struct):
    id: int
    logprob: float


class _Next(msgspec.Struct):
    top_logprobs: list[_Likely]


class _Completion(msgspec.Struct):
    timings: _Timings
    completion_probabilities: list[_Next]


class _Adapter(msgspec.Struct):
    scale: float = 1.0


class Server:
    """One llama-server.

    Args:
        url: where it is, with its --api-prefix if it has one; also unix:/PATH.
        key: its --api-key, if it has one.

    Raises:
        UsageError: `url` cannot be one.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.origin, self._key = parse_origin(url), key
        verify = tls.context() if self.origin.scheme == "https" else True
        # A connection that the server just closed would fail a request that it could have answered: each has its own.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits, uds=self.origin.socket)
        timeout = httpx2.Timeout(None, connect=_CONNECT_S)
        self._client = httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    # For preread's own sake

    async def properties(self) -> Properties:
        """What it says of itself. Raises as `_ask` does."""
        props = _decoded(await self._ask("GET", "/props"), _Props)
        if not 1 <= props.total_slots <= 4096 or not 1 <= props.default_generation_settings.n_ctx <= 2**24:
            raise RemoteError(f"{self.origin} has {props.total_slots} slots: it is no llama-server")
        return Properties(
            props.total_slots, props.default_generation_settings.n_ctx, props.model_alias, props.endpoint_slots
        )

    async def well(self) -> None:
        """Nothing, where it has loaded its model. Raises as `_ask` does."""
        await self._ask("GET", "/health")

    async def adapters(self) -> int:
        """How many LoRA adapters it applies to every request. Raises as `_ask` does."""
        told = _decoded(await self._ask("GET", "/lora-adapters"), list[_Adapter])
        return sum(adapter.scale != 0 for adapter in told)

    async def slots(self) -> list[Seen]:
        """What its slots hold. Raises as `_ask` does."""
        told = _decoded(await self._ask("GET", "/slots"), list[_Slot])
        return [Seen(slot.id, slot.is_processing, slot.n_prompt_tokens, slot.id_task) for slot in told]

    async def tokens(self, text: str) -> list[int]:
        """Token ids of a text. Raises as `_ask` does."""
        told = await self._ask("POST", "/tokenize", {"content": text, "add_special": True})
        return list(_decoded(told, _Tokens).tokens)

    async def predict(self, tokens: Sequence[int], slot: int, *, reuse: bool) -> Prediction:
        """What follows these tokens, greedily, computed in a slot. `reuse`: what it holds already. Raises as `_ask`."""
        body = {
            "prompt": list(tokens), "n_predict": 1, "temperature": 0.0, "n_probs": 10, "id_slot": slot,
            "cache_prompt": reuse, "samplers": [],
        }  # fmt: skip
        told = _decoded(await self._ask("POST", "/completion", body), _Completion)
        if not told.completion_probabilities:
            raise RemoteError(f"{self.origin} tells no probabilities of tokens")
        likely = told.completion_probabilities[0].top_logprobs
        return Prediction(told.timings.cache_n, {one.id: one.logprob for one in likely})

    async def save(self, slot: int, name: str) -> None:
        """Have a slot written to a file in its --slot-save-path. Raises as `_ask` does."""
        await self._ask("POST", f"/slots/{slot}?action=save", {"filename": name})

    async def restore(self, slot: int, name: str) -> None:
        """Have a slot filled from a file there. Raises as `_ask` does."""
        await self._ask("POST", f"/slots/{slot}?action=restore", {"filename": name})

    async def erase(self, slot: int) -> None:
        """Have a slot emptied. Raises as `_ask` does."""
        await self._ask("POST", f"/slots/{slot}?action=erase", {})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The body of a successful answer.

        Raises:
            TransportError: it does not answer, or not in time.
            UsageError: it wants a key, or does not offer this.
            RemoteError: it answers with an error.
        """
        headers: Headers = [(b"content-type", b"application/json")] if body is not None else []
        content = None if body is None else msgspec.json.encode(body)
        request = self._request(method, path, headers, content, timeout=httpx2.Timeout(_OWN_S, connect=_CONNECT_S))
        async with self._answer(request) as answer:
            told = bytearray()
            try:
                async for piece in answer.aiter_bytes():
                    told += piece
                    if len(told) > _MOST_OWN_BYTES:
                        raise RemoteError(f"{self.origin}{path} answers with more than {_MOST_OWN_BYTES} bytes")
            except httpx2.TransportError as error:
                raise TransportError(f"{self.origin} broke off its answer: {error}") from error
        if answer.status_code == 200:
            return bytes(told)
        said = bytes(told[:300]).decode(errors="replace")
        if answer.status_code in (401, 403):
            raise UsageError(f"{self.origin} wants its key: give --server-key-file or PREREAD_SERVER_KEY")
        if answer.status_code == 501:
            raise UsageError(f"{self.origin}{path} is not offered: start llama-server with --slot-save-path; {said}")
        raise RemoteError(f"{self.origin}{path} answers {answer.status_code}: {said}")

    # What is passed on

    @asynccontextmanager
    async def passed_on(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> AsyncIterator[httpx2.Response]:
        """The answer to somebody's request, its body not yet read. Leaving the context ends the request.

        Args:
            method, target: of the request; path and query as the client wrote them.
            headers: that go on; its own key replaces theirs where there is one.
            body: whole, or as it comes.

        Raises:
            TransportError: it cannot be reached, or closes the connection without an answer.
        """
        async with self._answer(self._request(method, target, headers, body)) as answer:
            yield answer

    def _request(
        self,
        method: str,
        target: str,
        headers: Headers,
        content: bytes | AsyncIterator[bytes] | None,
        timeout: httpx2.Timeout | None = None,
    ) -> httpx2.Request:
        if self._key is not None:
            headers = [pair for pair in headers if pair[0] != b"authorization"]
            headers.append((b"authorization", f"Bearer {self._key}".encode()))
        origin = self.origin
        raw_path = (origin.prefix + target).encode("latin-1")
        url = httpx2.URL(f"{origin.scheme}://{origin.authority}").copy_with(raw_path=raw_path)
        request = self._client.build_request(method, url, content=content, timeout=timeout or self._client.timeout)
        # Nothing of the client library's own, but how long the body is where that was not said.
        sized = any(name == b"content-length" for name, _ in headers)
        framing = [pair for pair in request.headers.raw if pair[0].lower() in ({b"host"} if sized else _FRAMING)]
        request.headers = httpx2.Headers([*framing, *headers])
        return request

    @asynccontextmanager
    async def _answer(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        try:
            answer = await self._client.send(request, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise TransportError(f"{self.origin} cannot be reached: {error}; is llama-server running there?") from error
        except httpx2.TransportError as error:
            raise TransportError(f"{self.origin} gave no answer: {error or type(error).__name__}") from error
        try:
            yield answer
        finally:
            await answer.aclose()


_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})


def _decoded(data: bytes, type: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=type)
    except msgspec.MsgspecError as error:
        raise RemoteError(f"the server's answer is not llama-server's: {error}") from error
