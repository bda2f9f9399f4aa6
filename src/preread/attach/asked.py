"""What is read of a request to a llama-server, and what is changed in it: its context, and the slot that it gets.

A context that was asked for by name is put where the API has what a prompt begins with, so that the server itself reads
it where its KV is not to be had. Everything else in the body stays as the client wrote it. Pure.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from preread.errors import UsageError
from preread.plan.match import Tokens
from preread.values import ContextId, Form

Api = Literal["chat", "completion", "messages", "responses"]

_APIS: Final[dict[str, Api]] = {
    "/chat/completions": "chat",
    "/completions": "completion",
    "/completion": "completion",
    "/messages": "messages",
    "/responses": "responses",
}
_SYSTEM: Final = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A context as a request can hold it.

    Attributes:
        context, name: its id, and what it is published as.
        form: a system prompt, or a bare beginning.
        tokens: its token ids.
        text: the system prompt, or the beginning; None: it cannot be told from the tokens.
    """

    context: ContextId
    name: str
    form: Form
    tokens: Tokens
    text: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may be about a context.

    Attributes:
        api: which of the server's it is for.
        body: the JSON, without what only concerns contexts.
        context: name of the context that it asks for.
        changed: whether the body is not what the client sent.
    """

    api: Api
    body: dict[str, Any]
    context: str | None = None
    changed: bool = False

    @property
    def reuses(self) -> bool:
        """Whether its prompt may be begun for it: the client left that, and where it happens, to the server."""
        return self.body.get("cache_prompt") is not False and not {"id_slot", "lora"} & self.body.keys()

    @property
    def begins(self) -> bool:
        """Whether no conversation goes on in it, of which a slot may hold the turns so far."""
        said = self.body.get("input" if self.api == "responses" else "messages")
        turns = said if isinstance(said, list) else []
        return not any(isinstance(turn, dict) and turn.get("role") not in (*_SYSTEM, "user") for turn in turns)

    def encoded(self) -> bytes:
        """The body as it is sent."""
        return json.dumps(self.body).encode()

    def placed(self, slot: int) -> "Asked":
        """The same for one slot of the server."""
        return replace(self, body={**self.body, "id_slot": slot}, changed=True)

    def about(self, spoken: Spoken) -> "Asked":
        """The same with the context in front of what it says.

        Raises:
            UsageError: the API has no place for such a context.
        """
        return replace(self, body=_inserted(self.api, self.body, spoken), changed=True)

    def begins_with(self, spoken: Spoken) -> bool:
        """Whether it has the context's text, or its tokens, at its beginning by itself."""
        if self.api == "completion":
            prompt, tokens = self.body.get("prompt"), spoken.tokens
            if isinstance(prompt, list):
                return len(prompt) > len(tokens) and prompt[: len(tokens)] == tokens.tolist()
            return isinstance(prompt, str) and bool(spoken.text) and prompt.startswith(spoken.text or "")
        system, text = _system(self.api, self.body), (spoken.text or "").strip()
        return spoken.form == "chat" and bool(text) and (system or "").lstrip().startswith(text)


def may_ask(path: str) -> bool:
    """Whether requests to this path of the URL may be about a context."""
    return path.removeprefix("/v1") in _APIS


def read(path: str, data: bytes, models: frozenset[str]) -> Asked | None:
    """What a request asks; None: it is nothing that a context can be part of.

    Args:
        path: of the URL, with or without /v1.
        data: the body, of any bytes.
        models: what may stand in front of the @ of MODEL@CONTEXT.

    Raises:
        UsageError: it asks for two contexts.
    """
    api = _APIS.get(path.removeprefix("/v1"))
    if api is None:
        return None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None  # the server says what is wrong with it
    if not isinstance(body, dict):
        return None
    named, said = body.get("context"), body.get("model")
    model, at, behind = said.rpartition("@") if isinstance(said, str) else ("", "", "")
    context = named if isinstance(named, str) else None
    if not at or model not in models:
        kept = {key: value for key, value in body.items() if key != "context"} if context is not None else body
        return Asked(api, kept, context, changed=context is not None)
    if context not in (None, behind):
        raise UsageError(f"model asks for context {behind!r}, and context for {context!r}")
    kept = {key: value for key, value in body.items() if key != "context" or context is None}
    return Asked(api, {**kept, "model": model}, behind, changed=True)


def _inserted(api: Api, body: dict[str, Any], spoken: Spoken) -> dict[str, Any]:
    if api == "completion":
        return {**body, "prompt": _continued(body.get("prompt", ""), spoken.tokens.tolist())}
    if spoken.form == "text":
        raise UsageError(
            f"context {spoken.name!r} was published as text, which is no part of a chat: ask at /v1/completions, or "
            "publish it as a system prompt (preread publish --as chat)"
        )
    if spoken.text is None:
        raise UsageError(
            f"the system prompt of context {spoken.name!r} cannot be told from its tokens: ask at /v1/completions"
        )
    if api == "chat":
        messages = body.get("messages")
        if not isinstance(messages, list):
            return body  # the server says what is wrong with it
        return {**body, "messages": [{"role": "system", "content": spoken.text}, *messages]}
    field = "system" if api == "messages" else "instructions"
    own = body.get(field)
    if isinstance(own, list):
        return {**body, field: [{"type": "text", "text": spoken.text}, *own]}
    return {**body, field: f"{spoken.text}\n\n{own}" if isinstance(own, str) and own else spoken.text}


def _continued(prompt: Any, tokens: list[int]) -> Any:
    """One prompt, or each of several, behind the tokens. The server tokenises what is text by itself.

    Raises:
        UsageError: it is neither text nor tokens.
    """
    if not isinstance(prompt, list) or not prompt or any(isinstance(each, int) for each in prompt):
        return _behind(tokens, prompt)
    return [_behind(tokens, each) for each in prompt]


def _behind(tokens: list[int], prompt: Any) -> list[Any]:
    if not isinstance(prompt, str | list):
        raise UsageError("a prompt about a context is a text or a list of tokens")
    return [*tokens, prompt] if isinstance(prompt, str) else [*tokens, *prompt]


def _system(api: Api, body: dict[str, Any]) -> str | None:
    """The system prompt that a request has at its beginning."""
    if api == "responses":
        said = body.get("instructions")
    elif api == "messages":
        said = body.get("system")
    else:
        messages = body.get("messages")
        first = messages[0] if isinstance(messages, list) and messages else None
        said = first.get("content") if isinstance(first, dict) and first.get("role") in _SYSTEM else None
    if isinstance(said, list) and said and isinstance(said[0], dict):
        said = said[0].get("text")
    return said if isinstance(said, str) else None
