"""From what was asked to token ids: which context, which tokens follow it. All of it happens on this machine."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from preread.edge.bounds import check_size, too_long
from preread.edge.contexts import Known
from preread.edge.request import Ask
from preread.edge.site import Site
from preread.engine.llamacpp import LlamaCpp
from preread.errors import PrereadError, UnknownContext, UsageError
from preread.plan.match import Tokens

_RESYNC_S = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """A question in tokens.

    Attributes:
        known: the shared context that it begins with, if any.
        reuse: so many tokens of the context are taken as they are: all, or all but the last if nothing else would be
            left to compute.
        prompt: the tokens after those; never empty.
        ask: what was asked.
    """

    known: Known | None
    reuse: int
    prompt: Tokens
    ask: Ask

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the whole prompt, the context's included."""
        return self.reuse + len(self.prompt)


async def understand(ask: Ask, site: Site) -> Question:
    """Find the context and tokenise the rest.

    Raises:
        UnknownContext: nobody published a context of this name.
        TooLong: the prompt does not fit the model's window.
        UsageError: the messages cannot be rendered.
    """
    spec = site.engine.spec
    known = None if ask.context is None else await _named(ask.context, site)
    check_size(ask, spec.window_tokens, spec.token_characters)
    question = await site.reader.run(lambda: _tokenised(ask, known, site))
    if question.prompt_tokens >= spec.window_tokens:
        raise too_long(spec.window_tokens, f"{question.prompt_tokens} tokens")
    if question.known is not None and site.uses is not None:
        site.uses.used(question.known.entry.context, time.time())
    return question


async def _named(name: str, site: Site) -> Known:
    try:
        known = site.contexts.named(name)
    except UnknownContext:
        # It may have been published a moment ago.
        if site.link is None or site.contexts.unreachable:
            raise
        with suppress(PrereadError, TimeoutError):
            await asyncio.wait_for(site.sync(), _RESYNC_S)
        known = site.contexts.named(name)
    spec = site.engine.spec
    if known.entry.vocabulary != spec.vocabulary:
        raise UsageError(
            f"context {name!r} was published for {known.entry.model}, whose tokens differ from those of {spec.name}: "
            f"publish it to a cloud that runs {spec.name}"
        )
    return known


def _tokenised(ask: Ask, known: Known | None, site: Site) -> Question:
    engine = site.engine
    if known is None:
        tokens = _whole(ask, engine)
        known = site.contexts.matching(tokens)
        reuse = len(known.tokens) if known else 0
        return _question(ask, known, reuse, tokens[reuse:])
    if ask.messages is None:
        following = _continued(ask, engine)
    elif known.entry.form == "chat" and engine.chat is not None:
        following = engine.tokenize_prompt(engine.chat.after_system(ask.messages), start=False)
    else:
        following = _whole(ask, engine)
    return _question(ask, known, len(known.tokens), following)


def _question(ask: Ask, known: Known | None, reuse: int, prompt: Tokens) -> Question:
    if len(prompt):
        return Question(known, reuse, prompt, ask)
    if known is None:
        raise UsageError("the prompt is empty")
    return Question(known, reuse - 1, known.tokens[reuse - 1 :], ask)


def _whole(ask: Ask, engine: LlamaCpp) -> Tokens:
    """Tokens of a prompt that stands at the beginning."""
    if ask.messages is None:
        return engine.tokenize(ask.prompt, start=True) if isinstance(ask.prompt, str) else _continued(ask, engine)
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: use /v1/completions")
    return engine.tokenize_prompt(engine.chat.render(ask.messages))


def _continued(ask: Ask, engine: LlamaCpp) -> Tokens:
    """Tokens of a prompt that continues something."""
    if isinstance(ask.prompt, str):
        return engine.tokenize(ask.prompt)
    ids = np.array(ask.prompt or (), np.int32)
    engine.check_tokens(ids)
    return ids
