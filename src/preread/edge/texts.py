"""What is asked of texts without an answer: their tokens, how many these are, and a chat as the model reads it.

Bodies and answers are llama-server's (`/tokenize`, `/detokenize`, `/apply-template`), Anthropic's
(`/v1/messages/count_tokens`) and OpenAI's (`/v1/responses/input_tokens`, which llama-server has for chats as well).
Nothing is computed, and nothing leaves this machine but what finding a context by its name asks for.
"""

from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from starlette.responses import JSONResponse, Response

from preread.edge.bounds import check_size
from preread.edge.edge import AsyncEdge
from preread.edge.messages import read_counted
from preread.edge.openai import Bounds, checked_ids, read_chat, read_json
from preread.edge.request import Ask
from preread.edge.responses import read_response
from preread.edge.understand import rendered, understand
from preread.engine.base import Tokens

_NO_STORE = {"Cache-Control": "no-store"}

_Id = Annotated[int, Meta(ge=0, lt=2**31)]


class Tokenize(msgspec.Struct, frozen=True):
    """POST /tokenize: a text, or a list of texts and token ids that follow each other."""

    content: str | list[_Id | str]
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class Detokenize(msgspec.Struct, frozen=True):
    """POST /detokenize."""

    tokens: list[_Id]


async def tokenize(edge: AsyncEdge, body: bytes, bounds: Bounds, caller: str) -> Response:
    """The token ids of a text, and the pieces that they stand for: bytes where these are no text."""
    request, engine = read_json(body, Tokenize), edge.node.engine
    parts = [request.content] if isinstance(request.content, str) else request.content
    ask = Ask(prompt="".join(part for part in parts if isinstance(part, str)))
    check_size(ask, bounds.window_tokens, engine.spec.token_characters)

    def read() -> Tokens:
        special, ids = request.parse_special is not False, list[Any]()
        for number, part in enumerate(parts):
            start = bool(request.add_special) and not number
            ids.append([part] if isinstance(part, int) else engine.tokenize(part, special=special, start=start))
        return np.concatenate([np.asarray(each, np.int64) for each in ids]) if ids else np.empty(0, np.int64)

    tokens = await edge.node.readers.run(ask, caller, read)
    engine.check_tokens(tokens)
    if not request.with_pieces:
        return JSONResponse({"tokens": tokens.tolist()}, headers=_NO_STORE)
    pieces = [{"id": id, "piece": _piece(engine.piece(id, special=True))} for id in tokens.tolist()]
    return JSONResponse({"tokens": pieces}, headers=_NO_STORE)


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(edge: AsyncEdge, body: bytes, bounds: Bounds, caller: str) -> Response:
    """The text of token ids, control tokens' included."""
    ids, engine = checked_ids(tuple(read_json(body, Detokenize).tokens), bounds, "tokens"), edge.node.engine
    text = b"".join(engine.piece(id, special=True) for id in ids).decode(errors="replace")
    return JSONResponse({"content": text}, headers=_NO_STORE)


async def apply_template(edge: AsyncEdge, body: bytes, bounds: Bounds, caller: str) -> Response:
    """The prompt that a chat comes to."""
    ask = read_chat(body, bounds, 0).asks[0]
    engine = edge.node.engine
    check_size(ask, bounds.window_tokens, engine.spec.token_characters)

    def render() -> str:
        prompt = rendered(ask, engine)
        return "".join(text for text, _ in engine.chat.controls.parts(prompt)) if engine.chat else prompt.text

    return JSONResponse({"prompt": await edge.node.readers.run(ask, caller, render)}, headers=_NO_STORE)


async def count_messages(edge: AsyncEdge, body: bytes, bounds: Bounds, caller: str) -> Response:
    """How many tokens a request of Anthropic's API has."""
    (ask,) = read_counted(body, bounds, 0).asks
    return JSONResponse({"input_tokens": await _counted(edge, ask, caller)}, headers=_NO_STORE)


async def count_chat(edge: AsyncEdge, body: bytes, bounds: Bounds, caller: str) -> Response:
    """How many tokens a chat has, in the form that llama-server has for it."""
    (ask,) = read_chat(body, bounds, 0).asks[:1]
    return JSONResponse({"input_tokens": await _counted(edge, ask, caller)}, headers=_NO_STORE)


async def count_response(edge: AsyncEdge, body: bytes, bounds: Bounds, caller: str) -> Response:
    """How many tokens a request of OpenAI's responses API has."""
    (ask,) = read_response(body, bounds, 0).asks
    counted = {"object": "response.input_tokens", "input_tokens": await _counted(edge, ask, caller)}
    return JSONResponse(counted, headers=_NO_STORE)


async def _counted(edge: AsyncEdge, ask: Ask, caller: str) -> int:
    return (await understand(ask, edge.node, caller)).prompt_tokens
