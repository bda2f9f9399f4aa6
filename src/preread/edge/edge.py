"""The edge as a library: `Edge` for plain code, `AsyncEdge` for asyncio.

For example:

    with Edge(model="smollm2-135m-instruct", cloud="http://cloud:8000") as edge:
        print(edge.ask(context="manual", prompt="How is the filter changed?").text)
        for text in edge.stream(context="manual", prompt="And how often?"):
            print(text, end="", flush=True)
"""

import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import TracebackType
from typing import Literal, Self, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from preread.edge import kept
from preread.edge.answer import answer, gathered
from preread.edge.near import open_near
from preread.edge.node import Node
from preread.edge.opening import open_node
from preread.edge.options import OptionFields, Options
from preread.edge.request import Ask, Done, Piece, Timings
from preread.edge.residents import Residents
from preread.engine import arenas
from preread.engine.download import pull
from preread.engine.sampling import SamplingFields
from preread.errors import UsageError
from preread.store.egress import CloudLink
from preread.wire.neighbour import Introduction


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, and what came from where."""

    text: str
    finish: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    timings: Timings


class AsyncEdge:
    """An edge in this process, for asyncio. Open it with `async with`; the arguments are those of `Options`."""

    def __init__(self, model: str, cloud: str | None = None, **options: Unpack[OptionFields]) -> None:
        self.options = Options(model, cloud, **options)
        self._residents: Residents | None = None
        self._introduction: Introduction | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Load the model (downloading it first if need be) and sync with the cloud.

        Raises:
            PrereadError: the model cannot be had or loaded. A cloud that cannot be reached is no error.
        """
        options = self.options
        arenas.bound()
        path = pull(options.model, lambda *_: None, proxy=options.via.proxy)
        key, to = options.api_key, options.cloud
        link = CloudLink(to, api_key=key, via=options.via, elsewhere=options.origins) if to else None
        folder = options.folder or kept.usual_folder(options.cloud)
        residents = await self._stack.enter_async_context(
            open_node(path, path.stem if options.model.endswith(".gguf") else options.model, link, folder, options)
        )
        try:
            near = open_near(residents.node, options.near, folder / "held")
            self._introduction = await self._stack.enter_async_context(near)
        except BaseException:
            await self._stack.aclose()
            raise
        self._residents = residents
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._residents = self._introduction = None

    @property
    def introduction(self) -> Introduction:
        """Who this edge is to its neighbours.

        Raises:
            UsageError: it is not open.
        """
        if self._introduction is None:
            raise UsageError("the edge is not open: use it in a `with` statement")
        return self._introduction

    @property
    def residents(self) -> Residents:
        """The open edge's contexts, as they come and go.

        Raises:
            UsageError: it is not open.
        """
        if self._residents is None:
            raise UsageError("the edge is not open: use it in a `with` statement")
        return self._residents

    @property
    def node(self) -> Node:
        """The open edge's parts.

        Raises:
            UsageError: it is not open.
        """
        return self.residents.node

    def answer(self, ask: Ask) -> AsyncGenerator[Piece | Done, None]:
        """Answer a prepared question; see `preread.edge.answer.answer`."""
        return answer(ask, self.residents)

    async def ask(
        self,
        prompt: str,
        *,
        context: str | None = None,
        stop: tuple[str, ...] = (),
        local: bool = False,
        **sampling: Unpack[SamplingFields],
    ) -> Answer:
        """Ask, and wait for the whole answer.

        Args:
            prompt: the question; a chat model gets it as the user's message.
            context: name of the shared context that it is about.
            stop: texts that end the answer.
            local: compute the context here instead of streaming it.
            sampling: fields of `Sampling`, for example `temperature=0`, `seed=1`, `max_tokens=100`. What is not given
                is as the model's file recommends, and as llama-server has it where that says nothing.

        Raises:
            UsageError, EngineError: as `preread.edge.answer.answer` does.
        """
        ask = self.question(prompt, context, stop, sampling, local=local)
        pieces, done = await gathered(self.answer(ask))
        return Answer("".join(piece.text for piece in pieces), done.finish, done.prompt_tokens, done.timings)

    async def stream(
        self,
        prompt: str,
        *,
        context: str | None = None,
        stop: tuple[str, ...] = (),
        local: bool = False,
        **sampling: Unpack[SamplingFields],
    ) -> AsyncGenerator[str, None]:
        """Ask, as with `ask`, and get the text as it is generated. Closing the generator ends the generation."""
        async with aclosing(self.answer(self.question(prompt, context, stop, sampling, local=local))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Piece):
                    yield piece.text

    def question(
        self,
        prompt: str,
        context: str | None,
        stop: tuple[str, ...],
        sampling: SamplingFields,
        *,
        local: bool = False,
    ) -> Ask:
        """The `Ask` for a plain question."""
        chosen = replace(replace(self.node.engine.sampling, seed=secrets.randbits(31)), **sampling)
        if self.node.engine.chat is None:
            return Ask(prompt=prompt, context=context, stop=stop, sampling=chosen, local=local)
        messages = ({"role": "user", "content": prompt},)
        return Ask(messages=messages, context=context, stop=stop, sampling=chosen, local=local)


class Edge:
    """An edge in this process, for plain code; an `AsyncEdge` in a thread of its own. Use it in a `with` statement."""

    def __init__(self, model: str, cloud: str | None = None, **options: Unpack[OptionFields]) -> None:
        self.asynchronous = AsyncEdge(model, cloud, **options)
        self._portal: BlockingPortal | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            portal = opening.enter_context(start_blocking_portal())
            opening.enter_context(portal.wrap_async_context_manager(self.asynchronous))
            self._portal, self._stack = portal, opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._portal = None

    @property
    def portal(self) -> BlockingPortal:
        """Runs coroutines in the edge's own event loop.

        Raises:
            UsageError: the edge is not open.
        """
        if self._portal is None:
            raise UsageError("the edge is not open: use it in a `with` statement")
        return self._portal

    def ask(
        self,
        prompt: str,
        *,
        context: str | None = None,
        stop: tuple[str, ...] = (),
        local: bool = False,
        **sampling: Unpack[SamplingFields],
    ) -> Answer:
        """As `AsyncEdge.ask`."""
        edge = self.asynchronous
        return self.portal.call(lambda: edge.ask(prompt, context=context, stop=stop, local=local, **sampling))

    def stream(
        self,
        prompt: str,
        *,
        context: str | None = None,
        stop: tuple[str, ...] = (),
        local: bool = False,
        **sampling: Unpack[SamplingFields],
    ) -> Generator[str, None, None]:
        """As `AsyncEdge.stream`. Closing the iterator ends the generation."""
        ask = self.asynchronous.question(prompt, context, stop, sampling, local=local)
        with closing(self.answer(ask)) as pieces:
            for piece in pieces:
                if isinstance(piece, Piece):
                    yield piece.text

    def answer(self, ask: Ask) -> Generator[Piece | Done, None, None]:
        """The pieces of an answer as they come. Closing the iterator, or Ctrl-C while it waits, ends the generation.

        Raises:
            UsageError, EngineError: as `preread.edge.answer.answer` does.
        """
        pieces: SimpleQueue[Piece | Done | None] = SimpleQueue()

        async def generate() -> None:
            try:
                async with aclosing(self.asynchronous.answer(ask)) as answering:
                    async for piece in answering:
                        pieces.put(piece)
            finally:
                pieces.put(None)

        generating = self.portal.start_task_soon(generate)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            generating.result()
        finally:
            generating.cancel()
