"""What is published, kept in step with the cloud, and how a request's context is found in it.

Names are asked of the cloud; what a prompt begins with is compared here, and never decides what is fetched.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from preread.attach.asked import Spoken
from preread.edge.contexts import Contexts
from preread.edge.known import Known
from preread.edge.syncing import keep_in_step
from preread.engine.chat import ChatTemplate
from preread.engine.llamacpp import LlamaCpp
from preread.errors import PrereadError, Unavailable, UnknownContext, UsageError
from preread.plan.match import Tokens
from preread.store.egress import CloudLink
from preread.values import ContextId

_FIRST_S: Final = 10.0
_RESYNC_S: Final = 2.0
_FETCH_S: Final = 30.0
_PLACEHOLDER: Final = "\ue000 the shared context stands here \ue001"


class Published:
    """The contexts that are published for a model.

    Args:
        contexts: what is known of them; restored.
        link: to the cloud; None: only what was known before.
        engine: the model, for its vocabulary and template.
    """

    def __init__(self, contexts: Contexts, link: CloudLink | None, engine: LlamaCpp) -> None:
        self.contexts, self._link, self._engine, self.model = contexts, link, engine, engine.spec.name
        self._spoken: dict[ContextId, Spoken] = {}

    async def keep_in_step(self, every_s: float) -> None:
        """Keep what is known in step with the cloud for ever."""
        if self._link is None:
            self.contexts.unreachable = "there is no cloud"
            self.contexts.asked_cloud.set()
            return
        sync = partial(self.contexts.sync, self._link)
        await keep_in_step(self.contexts, self._link, sync, every_s, "contexts are left to the server")

    async def find(self, name: str) -> Known:
        """The context of this name, got from the cloud as far as it is not here.

        Raises:
            UnknownContext: the cloud has none of this name.
            Unavailable: it cannot be asked, or does not give it; and why.
            UsageError: it is not for this model.
        """
        contexts = self.contexts
        if contexts.entry(name) is None:
            await self._ask_again(name)
        entry = contexts.entry(name)
        if entry is None:
            why = "there is no cloud: start with --cloud URL" if self._link is None else contexts.unreachable
            if why is not None:
                raise Unavailable(f"context {name!r} is not known here, and the cloud cannot be asked for it: {why}")
            raise UnknownContext(name, tuple(entry.name for entry in contexts.entries()))
        if entry.vocabulary != self._engine.spec.vocabulary:
            own = self._engine.spec.name
            raise UsageError(f"context {name!r} was published for {entry.model}, whose tokens differ from {own}'s")
        try:
            async with asyncio.timeout(_FETCH_S):
                return await contexts.get(name, self._link)
        except TimeoutError as error:
            raise Unavailable(f"context {name!r} is still on its way from the cloud after {_FETCH_S:g} s") from error

    def spoken(self, known: Known) -> Spoken:
        """A context as a request can hold it."""
        entry = known.entry
        found = self._spoken.get(entry.context)
        if found is None or found.name != entry.name:
            text = _text(known, self._engine)
            found = self._spoken[entry.context] = Spoken(entry.context, entry.name, entry.form, known.tokens, text)
        return found

    def all(self) -> list[Known]:
        """Every context of this model whose tokens are here, longest first."""
        own = self.contexts.own()
        ids = {known.entry.context for known in own}
        self._spoken = {id: spoken for id, spoken in self._spoken.items() if id in ids}
        return sorted(own, key=lambda known: -len(known.tokens))

    async def _ask_again(self, name: str) -> None:
        """The first sync may be under way; or the name was published a moment ago."""
        contexts = self.contexts
        with suppress(TimeoutError):
            await asyncio.wait_for(contexts.asked_cloud.wait(), _FIRST_S)
        if self._link is not None and not contexts.unreachable and contexts.entry(name) is None:
            with suppress(TimeoutError, PrereadError):  # it is in `unreachable`
                await asyncio.wait_for(contexts.look_up(name, self._link), _RESYNC_S)


def _text(known: Known, engine: LlamaCpp) -> str | None:
    """The text that a context's tokens were made of: of a chat's, the system prompt alone. None: it cannot be told."""
    try:
        whole = b"".join(engine.piece(int(token), special=True) for token in known.tokens).decode()
    except UnicodeDecodeError:
        return None
    if known.entry.form == "text":
        return whole
    return None if engine.chat is None else system_prompt(whole, known.tokens, engine, engine.chat)


def system_prompt(whole: str, tokens: Tokens, engine: LlamaCpp, chat: ChatTemplate) -> str | None:
    """The system prompt that a rendered beginning has, if rendering and tokenising it gives these tokens again."""
    try:
        before, after = chat.system_prefix(_PLACEHOLDER).text.split(_PLACEHOLDER)
        begun = before if whole.startswith(before) else chat.bos + before
        if not (whole.startswith(begun) and whole.endswith(after) and len(whole) >= len(begun) + len(after)):
            return None
        text = whole[len(begun) : len(whole) - len(after)]
        again = engine.tokenize_prompt(chat.system_prefix(text))
    except UsageError:
        return None
    return text if again.tolist() == tokens.tolist() else None
