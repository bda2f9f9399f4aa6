"""From what was asked to token ids: which context, which tokens follow it. All of it happens on this machine."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from preread.edge.at_hand import beginnings
from preread.edge.bounds import check_size, too_long
from preread.edge.known import Known
from preread.edge.node import Node
from preread.edge.request import Ask
from preread.edge.spans import span
from preread.engine import calls, length
from preread.engine.chat import ChatTemplate
from preread.engine.infill import Gap, fim_prompt
from preread.engine.llamacpp import LlamaCpp
from preread.engine.marks import Prompt
from preread.errors import PrereadError, Unavailable, UnknownContext, UsageError
from preread.plan.match import PrefixIndex, Tokens, as_said, prefix_index, shared_tokens
from preread.values import ContextId
from preread.wire.catalogue import Entry

_RESYNC_S, _FETCH_S = 2.0, 30.0
_FEW_TOKENS = 4096
"""So many take less time than it takes to have a thread look at them."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question in tokens.

    Attributes:
        known: the shared context that it begins with, if any.
        reuse: so many tokens of the context are taken as they are: all, all but the last if nothing else would be left
            to compute, or fewer where the prompt goes on otherwise.
        prompt: the tokens after those; never empty.
        ask: what was asked.
        arrived_s: when, by the monotonic clock.
        near: why no context was found, where one is nearly what the prompt begins with.
        named: the context was asked for by name, not found: only then may anything be fetched for it.
    """

    known: Known | None
    reuse: int
    prompt: Tokens
    ask: Ask
    arrived_s: float = 0.0
    near: str | None = None
    named: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the whole prompt, the context's included."""
        return self.reuse + len(self.prompt)

    def alone(self) -> "Question":
        """The same as one long prompt without a context."""
        beginning = () if self.known is None else self.known.tokens[: self.reuse]
        return replace(self, known=None, reuse=0, prompt=np.concatenate([beginning, self.prompt]).astype(np.int32))


async def understand(ask: Ask, node: Node, caller: str = "") -> Question:
    """Find the context and tokenise the rest, in turn with what others ask.

    Raises:
        UnknownContext: nobody published a context of this name.
        Unavailable: whether anybody did cannot be told now, or the context cannot be had.
        TooLong: the prompt does not fit the model's window.
        UsageError: the messages cannot be rendered, or the answer's grammar cannot be used.
    """
    arrived_s, spec = time.monotonic(), node.engine.spec
    check_size(ask, spec.window_tokens, spec.token_characters)
    known = None if ask.context is None else await find_context(ask.context, node)
    here = beginnings(node) if known is None else []
    if (ask.tools or ask.sampling.grammar) and not node.engine.grammars.ready:
        await node.readers.apart(caller, node.engine.grammars.prepare)  # once

    def tokenised() -> Question:
        return _as_said(_tokenised(ask, known, here, node), caller, node)

    with span("match", contexts=len(here)) as matching:
        question = tokenised() if _is_in_tokens(ask, known) else await node.readers.run(ask, caller, tokenised)
        matching.note(prompt_tokens=question.prompt_tokens, shared_tokens=question.reuse)
    if question.prompt_tokens >= spec.window_tokens:
        raise too_long(spec.window_tokens, f"{question.prompt_tokens} tokens")
    if question.known is not None and question.named and node.uses is not None:
        node.uses.used(question.known.entry.context, time.time())
    return replace(question, arrived_s=arrived_s)


def _is_in_tokens(ask: Ask, known: Known | None) -> bool:
    """Whether a prompt is a few tokens already, behind a context asked for by name: nothing is left to be read."""
    few = isinstance(ask.prompt, tuple) and len(ask.prompt) <= _FEW_TOKENS
    return few and known is not None and ask.tools is None and ask.sampling.grammar is None


async def find_context(name: str, node: Node) -> Known:
    """The context of this name, got from the cloud as far as it is not here.

    Raises:
        UnknownContext: the cloud has none of this name.
        Unavailable: it cannot be asked, or does not give it; and why.
        TooLong: this edge's window has no room for it.
        UsageError: it is not for this edge's model.
    """
    contexts, spec = node.contexts, node.engine.spec
    entry = contexts.entry(name) or await _told(name, node)
    if entry.vocabulary != spec.vocabulary:
        raise UsageError(
            f"context {name!r} was published for {entry.model}, whose tokens differ from those of {spec.name}: "
            f"publish it to a cloud that runs {spec.name}"
        )
    if entry.token_count >= spec.window_tokens:
        raise too_long(spec.window_tokens, f"a context of {entry.token_count} tokens")
    try:
        async with asyncio.timeout(_FETCH_S):
            return await contexts.get(name, node.link)
    except TimeoutError as error:
        raise Unavailable(f"context {name!r} is still on its way from the cloud after {_FETCH_S:g} s") from error


async def _told(name: str, node: Node) -> Entry:
    """What the cloud says of a name that is unknown here: it may have been published a moment ago."""
    contexts = node.contexts
    settled = await node.settled()
    if node.link is not None and settled and not contexts.unreachable and contexts.entry(name) is None:
        try:
            await asyncio.wait_for(contexts.look_up(name, node.link), _RESYNC_S)
        except TimeoutError:
            settled = False
        except PrereadError:
            pass  # it is in `unreachable`
    entry = contexts.entry(name)
    if entry is not None:
        return entry
    cause = contexts.unreachable if settled else "the cloud's catalogue is still on its way"
    if cause is not None and node.link is None:
        cause = "this edge has no cloud: start it with --cloud URL"
    if cause is not None:
        raise Unavailable(f"context {name!r} is not known here, and the cloud cannot be asked for it: {cause}")
    raise UnknownContext(name, tuple(entry.name for entry in contexts.entries()))


def _tokenised(ask: Ask, known: Known | None, here: list[Known], node: Node) -> Question:
    engine = node.engine
    ask = _bound(ask, engine)
    if known is None:
        tokens = _whole(ask, engine)
        if ask.sampling.prompt_logprobs and ask.sampling.top_logprobs is not None:
            return _question(ask, None, 0, tokens)  # what is reused has no logits
        return _matched(ask, tokens, here, node.engine)
    if ask.messages is None:
        following = _continued(ask, engine)
    elif known.entry.form == "chat" and engine.chat is not None:
        return _after_system(ask, known, engine.chat, engine)
    else:
        following = _whole(ask, engine)
    return _question(ask, known, len(known.tokens), following)


def _bound(ask: Ask, engine: LlamaCpp) -> Ask:
    """The same with the grammar that its tools come to; whatever grammar it has is known to be one."""
    if ask.tools is not None and engine.chat is not None:
        grammar = calls.grammar(ask.tools, engine.chat.call_format, engine.control, ask.sampling.grammar)
        ask = replace(ask, sampling=replace(ask.sampling, grammar=grammar))
    if ask.sampling.grammar is not None:
        engine.grammars.check(ask.sampling.grammar)
    return ask


def _after_system(ask: Ask, known: Known, chat: ChatTemplate, engine: LlamaCpp) -> Question:
    """A chat whose system prompt is the context. Tools may stand within that: then its last tokens are not the same."""
    messages, reuse = ask.messages or (), len(known.tokens)
    following = chat.following(messages, _variables(ask))
    if following.instead:
        end = engine.tokenize(following.instead)
        if np.array_equal(known.tokens[reuse - len(end) :], end):
            reuse -= len(end)
        else:
            following = chat.following(messages, _variables(ask), within=False)
    return _question(ask, known, reuse, chat_tokens(following.prompt, engine, start=False))


def _variables(ask: Ask) -> Mapping[str, Any]:
    """For the chat template."""
    return ask.template if ask.tools is None else {**ask.template, "tools": ask.tools.for_template}


def _as_said(question: Question, caller: str, node: Node) -> Question:
    """The question in the tokens of the caller's conversation so far, where that is kept: so it need not be read anew.

    Whoever gives token ids gets these, and whoever asks for the prompt's odds those of its text as it is read. The
    window may have room for a text in one way of reading it alone.
    """
    engine, context = node.engine, None if question.known is None else question.known.entry.context
    exact = isinstance(question.ask.prompt, tuple) or question.ask.sampling.prompt_logprobs
    said = [] if exact else node.core.said(caller, context, question.reuse)
    room = engine.spec.window_tokens - question.reuse
    most, best = 0, question.prompt
    for tokens in said:
        prompt = as_said(question.prompt, tokens, engine.piece)
        if len(prompt) < room and (shared := shared_tokens(prompt, tokens)) > most:
            most, best = shared, prompt
    return replace(question, prompt=best)


def _matched(ask: Ask, tokens: Tokens, contexts: list[Known], engine: LlamaCpp) -> Question:
    """A prompt after the context that it begins with, or has most in common with."""
    by_id = {known.entry.context: known for known in contexts}
    index, window = prefix_index((id, known.tokens) for id, known in by_id.items()), engine.spec.window_tokens
    for prompt in (tokens, *_with_text_as_text(ask, tokens, contexts, engine)):
        match, whole = index.nearest(prompt, by_id), index.longest(prompt)
        if match is not None and match.serves(len(by_id[match.context].tokens), len(prompt), window, engine.spec.sight):
            reuse = min(match.shared, len(prompt) - 1)
            return Question(by_id[match.context], reuse, prompt[reuse:], ask)
        if whole is not None:
            reuse = len(by_id[whole].tokens)
            return _question(ask, by_id[whole], reuse, prompt[reuse:])
    return replace(_question(ask, None, 0, tokens), near=_near(ask, tokens, by_id, index, engine))


def _with_text_as_text(ask: Ask, tokens: Tokens, contexts: list[Known], engine: LlamaCpp) -> Iterator[Tokens]:
    """The prompt of a completion whose beginning is a published text, if that has what looks like control tokens: they
    are read in a prompt, whose caller writes the template, but were not when the text was published."""
    texts = {known.entry.context: known for known in contexts if known.entry.form == "text"}
    if not texts or not isinstance(ask.prompt, str) or ask.gap is not None:
        return
    plain = engine.tokenize(ask.prompt, special=False, start=True)
    match = prefix_index((id, known.tokens) for id, known in texts.items()).nearest(plain, texts)
    if match is None or np.array_equal(plain, tokens):
        return
    begun, whole = b"".join(engine.piece(int(id)) for id in plain[: match.shared]), ask.prompt.encode()
    begun = begun if whole.startswith(begun) else begun.removeprefix(b" ")  # some tokenizers put one in front
    with suppress(UnicodeDecodeError):
        if whole.startswith(begun):
            rest = engine.tokenize(whole[len(begun) :].decode())
            yield np.concatenate([plain[: match.shared], rest])


def _near(ask: Ask, tokens: Tokens, by_id: dict[ContextId, Known], index: PrefixIndex, engine: LlamaCpp) -> str | None:
    """What to tell whoever may have meant a context that the prompt does not begin with."""
    match = index.nearest(tokens, by_id)
    if match is not None and match.near(len(by_id[match.context].tokens)):
        return f"context {by_id[match.context].entry.name!r} is another after {match.shared} tokens"
    plain = _with_line_feeds(ask)
    found = index.longest(_whole(plain, engine)) if plain != ask and by_id else None
    return None if found is None else f"context {by_id[found].entry.name!r} ends its lines with \\n, not \\r\\n"


def _with_line_feeds(ask: Ask) -> Ask:
    """The same with Unix's line ends."""

    def plain(text: Any) -> Any:
        return text.replace("\r\n", "\n") if isinstance(text, str) else text

    messages = None if ask.messages is None else tuple(m | {"content": plain(m["content"])} for m in ask.messages)
    return replace(ask, messages=messages, prompt=plain(ask.prompt))


def _question(ask: Ask, known: Known | None, reuse: int, prompt: Tokens) -> Question:
    named = ask.context is not None
    if len(prompt):
        return Question(known, reuse, prompt, ask, named=named)
    if known is None:
        raise UsageError("the prompt is empty")
    return Question(known, reuse - 1, known.tokens[reuse - 1 :], ask, named=named)


def _whole(ask: Ask, engine: LlamaCpp) -> Tokens:
    """Tokens of a prompt that stands at the beginning."""
    if ask.messages is None:
        if not isinstance(ask.prompt, str):
            return _continued(ask, engine)
        if ask.gap is not None:
            return np.concatenate([engine.tokenize("", start=True), _continued(ask, engine)])
        check_length(ask.prompt, engine)
        return engine.tokenize(ask.prompt, start=True)
    return chat_tokens(rendered(ask, engine), engine, start=True)


def rendered(ask: Ask, engine: LlamaCpp) -> Prompt:
    """A chat as the model's template has it.

    Raises:
        UsageError: there is no template, or it refuses these messages.
    """
    if engine.chat is None:
        raise UsageError(f"{engine.spec.name} has no chat template: use /v1/completions")
    return engine.chat.render(ask.messages or (), _variables(ask))


def chat_tokens(rendered: Prompt, engine: LlamaCpp, *, start: bool) -> Tokens:
    """Tokens of a rendered chat. Of one that is too long, no more is read than it takes to know.

    Raises:
        TooLong: it is.
    """
    window = engine.spec.window_tokens
    for text, own in engine.chat.controls.parts(rendered) if engine.chat else ():
        check_length(text, engine, control=own)
    tokens = engine.tokenize_prompt(rendered, start=start, most=window)
    if len(tokens) > window:
        raise too_long(window, f"at least {len(tokens)} tokens")
    return tokens


def check_length(text: str, engine: LlamaCpp, *, control: bool = True) -> None:
    window = engine.spec.window_tokens
    known = length.at_least(text, window, partial(engine.tokenize, special=control))
    if known is not None:
        raise too_long(window, f"at least {known} tokens")


def _continued(ask: Ask, engine: LlamaCpp) -> Tokens:
    """Tokens of a prompt that continues something."""
    if isinstance(ask.prompt, str) and ask.gap is not None:
        return _filled_in(ask.prompt, ask.gap, engine)
    if isinstance(ask.prompt, str):
        check_length(ask.prompt, engine)
        return engine.tokenize(ask.prompt)
    ids = np.array(ask.prompt or (), np.int32)
    engine.check_tokens(ids)
    return ids


def _filled_in(before: str, gap: Gap, engine: LlamaCpp) -> Tokens:
    """Tokens of a prompt for what is missing behind `before`. In none of its texts control tokens are read."""
    if engine.fim is None:
        raise UsageError(f"{engine.spec.name} has no tokens for filling in the middle")
    for text in (before, *gap.texts):
        check_length(text, engine, control=False)
    return fim_prompt(before, gap, engine.fim, partial(engine.tokenize, special=False))
