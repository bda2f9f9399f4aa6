"""The requests of OpenAI's API: a body becomes an `Ask`. What goes back is in `reply.py`.

Pure. Defaults are OpenAI's: temperature 1.0, and 16 tokens for a completion without `max_tokens`, while a chat goes on
until the model ends it or the window is full. Fields that nobody here knows are ignored, as llama-server and vLLM do.
Fields that are known are checked; one that asks for what an edge cannot do is refused, since an answer that silently
lacks it would be a wrong one. It must not know HTTP, models or contexts.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from preread.edge.request import Ask
from preread.engine.sampling import Sampling
from preread.errors import UsageError

_COMPLETION_TOKENS: Final = 16
_SEEDS: Final = 2**32 - 1  # llama.cpp takes 32 bits, of which all ones mean "draw one"
_AT: Final = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")

_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Count = Annotated[int, Meta(ge=1)]


class BadRequest(UsageError):
    """A request's body is not what the API takes. `param` is the path of the field, None where it is the whole body."""

    def __init__(self, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may ask for: `window_tokens` of KV cache, token ids below `vocab_size`."""

    window_tokens: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Call:
    """A request, understood. `chat` says in which of the two forms the answer is wanted."""

    ask: Ask
    chat: bool
    stream: bool
    include_usage: bool


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[_Part] | None = None


class _Format(msgspec.Struct, frozen=True):
    type: str


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    """What both requests have. None everywhere means the same as absence: clients send both."""

    model: str | None = None
    context: str | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: _Share | None = None
    seed: int | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: dict[int, _Bias] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None


class _Chat(_Common, frozen=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: _Format | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None


class _Completion(_Common, frozen=True, kw_only=True):
    prompt: str | list[int | str | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


_Request = _Chat | _Completion
T = TypeVar("T", _Chat, _Completion)


def read_chat(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/chat/completions; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    request = _decoded(body, _Chat)
    _refuse(request.tools, "tools", "tools are not supported: leave them out")
    _refuse(request.functions, "functions", "functions are not supported: leave them out")
    if request.response_format is not None and request.response_format.type != "text":
        raise BadRequest("only plain text can be asked for: leave response_format out", "response_format.type")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    messages = tuple({"role": _role(m.role), "content": _text(m.content, i)} for i, m in enumerate(request.messages))
    most = request.max_completion_tokens or request.max_tokens or bounds.window_tokens
    top = (request.top_logprobs or 0) if request.logprobs else None
    sampling = _sampling(request, bounds, seed, most, top)
    return _call(request, Ask(messages=messages, context=request.context, sampling=sampling, stop=_stop(request)))


def read_completion(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/completions; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    request = _decoded(body, _Completion)
    _refuse(request.echo, "echo", "the prompt cannot be echoed: leave echo out")
    _refuse(request.suffix, "suffix", "text cannot be inserted before a suffix: leave it out")
    _refuse(request.best_of not in (None, 1), "best_of", "only the one answer can be given: leave best_of out")
    most = request.max_tokens or _COMPLETION_TOKENS
    sampling = _sampling(request, bounds, seed, most, request.logprobs)
    prompt = _prompt(request.prompt, bounds)
    return _call(request, Ask(prompt=prompt, context=request.context, sampling=sampling, stop=_stop(request)))


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        raise BadRequest(str(error), at[1] or None if at else None) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def _refuse(asked: object, param: str, message: str) -> None:
    if asked:
        raise BadRequest(message, param)


def _call(request: _Request, ask: Ask) -> Call:
    _refuse(request.n not in (None, 1), "n", "only one choice can be asked for: n must be 1")
    wants_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
    return Call(ask, isinstance(request, _Chat), bool(request.stream), wants_usage)


def _sampling(request: _Request, bounds: Bounds, seed: int, most: int, top_logprobs: int | None) -> Sampling:
    biases = tuple((request.logit_bias or {}).items())
    for token, _ in biases:
        if not 0 <= token < bounds.vocab_size:
            raise BadRequest(f"token ids lie in 0 … {bounds.vocab_size - 1}, and {token} does not", "logit_bias")
    given = seed if request.seed in (None, -1) else request.seed
    return Sampling(
        max_tokens=min(most, bounds.window_tokens),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=min(max(request.top_k or 0, 0), bounds.vocab_size),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        seed=(given or 0) % _SEEDS,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=biases,
        top_logprobs=top_logprobs,
    )


def _stop(request: _Request) -> tuple[str, ...]:
    stop = request.stop or ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _role(role: str) -> str:
    """OpenAI's newer name for system prompts is in no model's chat template."""
    return "system" if role == "developer" else role


def _text(content: str | list[_Part] | None, message: int) -> str:
    """Parts are joined by line breaks, as llama-server and vLLM do."""
    if content is None or isinstance(content, str):
        return content or ""
    for i, piece in enumerate(content):
        if piece.type != "text" or piece.text is None:
            at = f"messages[{message}].content[{i}]"
            raise BadRequest(f"{at}: a part is {{'type': 'text', 'text': …}}; this model reads nothing else", at)
    return "\n".join(piece.text or "" for piece in content)


def _prompt(prompt: str | list[int | str | list[int]], bounds: Bounds) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    ids = prompt[0] if len(prompt) == 1 and isinstance(prompt[0], list) else prompt
    whole_ids = tuple(id for id in ids if isinstance(id, int))
    if len(whole_ids) != len(ids):
        raise BadRequest("prompt is one text or one list of token ids: ask for several in as many requests", "prompt")
    if any(not 0 <= id < bounds.vocab_size for id in whole_ids):
        raise BadRequest(f"token ids lie in 0 … {bounds.vocab_size - 1}", "prompt")
    return whole_ids
