"""What is compared: preread's edge and its peers, each asked in its own way about the same documents.

An edge is told a context's name. Its peers get the document itself as the system message, which makes the same tokens.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from preread.bench.corpus import Corpus, name
from preread.bench.deployment import Deployment, Report, Setting, deployed
from preread.bench.events import Reply, read
from preread.bench.peers import Beside, Peer, peers
from preread.errors import RemoteError, TransportError

Message = dict[str, str]
_PATIENCE_S: Final = 600.0
_TOLD_LETTERS: Final = 300


def body(messages: Sequence[Message], answer_tokens: int, **more: Any) -> dict[str, Any]:
    """A request for exactly so many tokens, the likeliest ones: fields that servers do not know, they ignore."""
    return {
        "messages": list(messages), "stream": True, "stream_options": {"include_usage": True}, "temperature": 0,
        "max_tokens": answer_tokens, "min_tokens": answer_tokens, "ignore_eos": True, **more,
    }  # fmt: skip


def http() -> httpx2.AsyncClient:
    """A client that keeps nobody waiting for a connection, and has one for each request: servers close idle ones."""
    return httpx2.AsyncClient(
        trust_env=False, timeout=_PATIENCE_S, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    )


@dataclass(frozen=True, slots=True)
class System:
    """One of those that are compared: an edge, or a peer."""

    runs: Deployment | Peer
    corpus: Corpus

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.runs.name

    def body(
        self, document: int | None, messages: Sequence[Message], answer_tokens: int, **more: Any
    ) -> dict[str, Any]:
        """A request about a document, or about none, with these further fields."""
        if isinstance(self.runs, Deployment):
            about = {} if document is None else {"context": name(document)}
            return body(messages, answer_tokens, **about, **more)
        told = [] if document is None else [{"role": "system", "content": self.corpus.documents[document]}]
        called = {} if self.runs.model is None else {"model": self.runs.model}
        return body([*told, *messages], answer_tokens, **called, **more)

    async def ask(
        self,
        client: httpx2.AsyncClient,
        document: int | None,
        messages: Sequence[Message],
        answer_tokens: int,
        begun: asyncio.Event | None = None,
        **more: Any,
    ) -> Reply:
        """Ask, and wait for all of the answer.

        `begun` is set when its first line has come; `more` are further fields of the request.

        Raises:
            RemoteError: it refuses, or the answer is an error or ends early.
            TransportError: it does not answer.
        """
        request, lines = self.body(document, messages, answer_tokens, **more), list[tuple[float, str]]()
        sent_s = time.monotonic()
        try:
            async with client.stream("POST", f"{self.runs.url}/v1/chat/completions", json=request) as answer:
                if answer.status_code != 200:
                    told = (await answer.aread()).decode(errors="replace")[:_TOLD_LETTERS]
                    raise RemoteError(f"{self.name} answers {answer.status_code}: {told}")
                async for line in answer.aiter_lines():
                    if line:
                        lines.append((time.monotonic(), line))
                        if begun is not None:
                            begun.set()
        except httpx2.HTTPError as error:
            raise TransportError(f"{self.name} does not answer: {error!r}") from error
        return read(lines, sent_s)

    async def kv_memory_bytes(self) -> int | None:
        """What it says that it has for KV cache; None: nothing is said.

        Raises:
            TransportError: the edge does not answer.
        """
        told = (await self.runs.properties()).get("kv_memory_bytes") if isinstance(self.runs, Deployment) else None
        return told if isinstance(told, int) else None


@asynccontextmanager
async def started(
    setting: Setting, beside: Beside, corpus: Corpus, window_tokens: int, scratch: Path, report: Report
) -> AsyncGenerator[list[System], None]:
    """All systems, preread first, until this is left. They have to be made fresh before they can be asked.

    Raises:
        PrereadError: as `deployed` and `peers` do.
    """
    async with AsyncExitStack() as stack:
        others = peers(beside, setting.model.resolve(), scratch)
        for peer in others:
            stack.callback(peer.kill)
            if not peer.restarts:
                await peer.fresh()  # whether it is there, before anything is published in vain
        here = await stack.enter_async_context(deployed(setting, corpus.documents, window_tokens, scratch, report))
        yield [System(here, corpus), *(System(peer, corpus) for peer in others)]
