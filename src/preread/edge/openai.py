"""The requests of OpenAI's API: a body becomes `Ask`s. What goes back is in `forms/`, what a body is in `body.py`.

Pure. Defaults are OpenAI's where it has some that mean something here: 16 tokens for a completion without `max_tokens`,
while a chat goes on until the model ends it, or for so many tokens as the edge's operator allows. How tokens are chosen
is up to the model's file and llama-server's defaults. Fields that nobody here knows are ignored, as llama-server and
vLLM do. Fields that are known are checked; one that asks for what an edge cannot do is refused, since an answer that
silently lacks it would be wrong. It must not know HTTP or models, nor which contexts there are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import msgspec

from preread.edge import constraints
from preread.edge.body import Chat, Common, Completion, Message, Part, Refused, Request, ToolCall
from preread.edge.bounds import check_messages
from preread.edge.refusal import BadRequest as BadRequest
from preread.edge.refusal import refuse
from preread.edge.request import Ask
from preread.engine.infill import Gap
from preread.engine.sampling import USUAL, Sampling

MOST_CHOICES: Final = 128
"""Answers to one request: prompts times choices of each."""

_COMPLETION_TOKENS: Final = 16
_SEEDS: Final = 2**32 - 1  # llama.cpp takes 32 bits, of which all ones mean "draw one"
_BAN: Final = -100.0  # as OpenAI has it
_ROLE: Final = b'"role"'  # once in each message; inside a text its last quote would be escaped
_AT: Final = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_AS_THEY_ARE: Final = (
    *("temperature", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typical_p", "min_tokens"),
    *("xtc_probability", "xtc_threshold", "mirostat", "mirostat_tau", "mirostat_eta"),
    *("frequency_penalty", "presence_penalty"),
)
"""Fields that are named alike in a request and in `Sampling`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may ask for, and what holds where it does not say.

    Attributes:
        window_tokens: of KV cache.
        vocab_size: token ids lie below it.
        answer_tokens: of a chat's answer at most, where the request names no number.
        name: the model's.
        usual: how tokens are chosen.
        fills: the model was taught to fill in what is missing in the middle of a text.
    """

    window_tokens: int
    vocab_size: int
    answer_tokens: int
    name: str = "preread"
    usual: Sampling = USUAL
    fills: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A request, understood.

    Attributes:
        asks: a question for each choice of the answer.
        prompts: how many prompts these are; of each there are equally many choices, one after the other.
        told: what the answer repeats of the request, where its form does.
        stream, include_usage: whether in events, and whether one of them says what was used.
        progress: whether events tell how far the prompt is; without `stream` there are none.
    """

    asks: tuple[Ask, ...]
    prompts: int
    stream: bool
    include_usage: bool
    progress: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)


T = TypeVar("T", bound=Common)
Body = TypeVar("Body")


def read_chat(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/chat/completions; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    check_messages(body.count(_ROLE), bounds.window_tokens)  # reading them takes the longer the more there are
    request = decoded(body, Chat)
    check_messages(len(request.messages), bounds.window_tokens)
    refuse(request.add_generation_prompt is False, "add_generation_prompt", "an answer is what is given here")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    most = _first(request.max_completion_tokens, request.max_tokens, request.n_predict, bounds.answer_tokens)
    top = (request.top_logprobs or 0) if request.logprobs else None
    ask = Ask(
        messages=tuple(_message(message, i) for i, message in enumerate(request.messages)),
        template=request.chat_template_kwargs or {},
        tools=constraints.tools(request),
        context=context_named(request.model, request.context, bounds),
        sampling=_sampling(request, bounds, seed, most, top),
        stop=_stop(request),
    )
    return _call(request, [ask])


def read_completion(body: bytes, bounds: Bounds, seed: int) -> Call:
    """Read the body of POST /v1/completions; `seed` is for requests that bring none.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    return completion_call(decoded(body, Completion), bounds, seed)


def completion_call(request: Completion, bounds: Bounds, seed: int) -> Call:
    """What a completion asks for.

    Raises:
        BadRequest: it asks for what cannot be done.
    """
    if request.suffix:
        refuse(not bounds.fills, "suffix", f"{bounds.name} has no tokens for filling in the middle: leave suffix out")
        refuse(request.echo, "echo", "what stands before a gap is not repeated: leave echo out, or suffix")
        refuse(not isinstance(request.prompt, str), "prompt", "what stands before a suffix is a text")
    refuse(request.best_of not in (None, request.n or 1), "best_of", "all answers are given: leave best_of out")
    most = _first(request.max_tokens, request.n_predict, None if _endless(request) else _COMPLETION_TOKENS)
    sampling = _sampling(request, bounds, seed, bounds.window_tokens if most is None else most, request.logprobs)
    ask = Ask(
        context=context_named(request.model, request.context, bounds),
        sampling=replace(sampling, prompt_logprobs=bool(request.echo)),
        stop=_stop(request),
        echo=bool(request.echo),
        gap=Gap(request.suffix) if request.suffix else None,
    )
    return _call(request, [replace(ask, prompt=prompt) for prompt in _prompts(request.prompt, bounds)])


def read_json(body: bytes, kind: type[Body]) -> Body:
    """A body of this type.

    Raises:
        BadRequest: it is none; and which field is at fault.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        raise BadRequest(str(error), at[1] or None if at else None) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def decoded(body: bytes, kind: type[T]) -> T:
    """A body of this kind.

    Raises:
        BadRequest: it is not, or asks for what cannot be honoured.
    """
    request = read_json(body, kind)
    for name in Refused.__struct_fields__:
        refuse(getattr(request, name), name, f"{name} cannot be honoured here: leave it out")
    return request


def _call(request: Request, asks: list[Ask]) -> Call:
    choices, stream = request.n or 1, bool(request.stream)
    many, param = len(asks) * choices, "n" if choices > 1 else "prompt"
    refuse(many > MOST_CHOICES, param, f"{many} answers were asked for: at most {MOST_CHOICES} go into one request")
    wants_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
    each = tuple(_seeded(ask, number) for ask in asks for number in range(choices))
    return Call(each, len(asks), stream, wants_usage, bool(request.return_progress))


def _seeded(ask: Ask, number: int) -> Ask:
    """Further choices are drawn with further seeds."""
    return replace(ask, sampling=replace(ask.sampling, seed=(ask.sampling.seed + number) % _SEEDS))


def _first(*counts: int | None) -> int | None:
    """The first that is given; negative ones mean that none is."""
    return next((count for count in counts if count is not None and count >= 0), None)


def _endless(request: Request) -> bool:
    """A client that says -1 wants no bound, not the default one."""
    return any(count is not None and count < 0 for count in (request.max_tokens, request.n_predict))


def _sampling(request: Request, bounds: Bounds, seed: int, most: int | None, top_logprobs: int | None) -> Sampling:
    given = {name: value for name in _AS_THEY_ARE if (value := getattr(request, name)) is not None}
    if request.top_k is not None:
        given["top_k"] = min(max(request.top_k, 0), bounds.vocab_size)
    if request.top_n_sigma is not None:
        given["top_n_sigma"] = max(request.top_n_sigma, 0.0)
    if request.ignore_eos:
        given["min_tokens"] = bounds.window_tokens
    drawn = seed if request.seed in (None, -1) else request.seed
    return replace(
        bounds.usual,
        max_tokens=min(bounds.window_tokens if most is None else most, bounds.window_tokens),
        seed=(drawn or 0) % _SEEDS,
        logit_bias=_biases(request, bounds),
        top_logprobs=(request.n_probs or None) if top_logprobs is None else top_logprobs,
        grammar=constraints.grammar(request),
        **given,
        **_repeats(request, bounds),
    )


def _biases(request: Request, bounds: Bounds) -> tuple[tuple[int, float], ...]:
    """By token id: OpenAI's, an object, and llama-server's, pairs, in which `false` bans a token."""
    given = request.logit_bias or ()
    pairs = list(given.items() if isinstance(given, dict) else given)
    for token, bias in pairs:
        if not 0 <= token < bounds.vocab_size:
            raise BadRequest(f"token ids lie in 0 … {bounds.vocab_size - 1}, and {token} does not", "logit_bias")
        refuse(bias is True, "logit_bias", "a bias is a number from -100 to 100, or false for never")
    return tuple((token, _BAN if bias is False else bias) for token, bias in pairs)


def _repeats(request: Request, bounds: Bounds) -> dict[str, Any]:
    """llama-server's penalty counts the last 64 tokens where nothing else is said, vLLM's all."""
    given: dict[str, Any] = {}
    last = request.repeat_last_n
    if request.repeat_penalty is not None:
        given["repeat_penalty"] = request.repeat_penalty
    elif request.repetition_penalty is not None:
        given["repeat_penalty"] = request.repetition_penalty
        last = -1 if last is None else last
    if last is not None:
        given["repeat_last_n"] = bounds.window_tokens if last < 0 else min(last, bounds.window_tokens)
    return given


def context_named(asked: str | None, context: str | None, bounds: Bounds) -> str | None:
    """The context's name: from its own field, or behind an @ of the model's name, for clients that know only that.

    What else stands there as a model's name does not matter: there is one.

    Raises:
        BadRequest: the two do not agree.
    """
    model, at, name = (asked or "").partition("@")
    if not at or model not in (bounds.name, "preread"):
        return context
    if context not in (None, name):
        raise BadRequest(f"model asks for context {name!r}, and context for {context!r}", "context")
    return name


def _stop(request: Request) -> tuple[str, ...]:
    stop = request.stop or ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _message(message: Message, number: int) -> dict[str, Any]:
    """A message as templates expect it. OpenAI's newer name for system prompts is in no model's template."""
    at = f"messages[{number}]"
    refuse(message.function_call, f"{at}.function_call", "calls of functions are told as tool_calls")
    said: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content, at),
    }
    for name in ("name", "reasoning_content", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            said[name] = value
    if message.tool_calls:
        said["tool_calls"] = [_called(call) for call in message.tool_calls]
    return said


def _called(call: ToolCall) -> dict[str, Any]:
    """A call of the history, its arguments as an object where they are the JSON of one, as transformers' chats have
    them."""
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            read = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, ValueError, RecursionError):
            read = None
        arguments = read if isinstance(read, dict) else arguments
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}


def _text(content: str | list[Part] | None, message: str) -> str:
    """Parts are joined by line breaks, as llama-server and vLLM do."""
    if content is None or isinstance(content, str):
        return content or ""
    for i, piece in enumerate(content):
        if piece.type != "text" or piece.text is None:
            at = f"{message}.content[{i}]"
            raise BadRequest(f"{at}: a part is {{'type': 'text', 'text': …}}; this model reads nothing else", at)
    return "\n".join(piece.text or "" for piece in content)


def _prompts(prompt: str | list[int | str | list[int]], bounds: Bounds) -> list[str | tuple[int, ...]]:
    """One text, one list of token ids, or several of them."""
    if isinstance(prompt, str):
        return [prompt]
    ids = tuple(each for each in prompt if isinstance(each, int))
    if len(ids) == len(prompt):
        return [checked_ids(ids, bounds, "prompt")]
    if ids:
        raise BadRequest("prompt is text, a list of token ids, or a list of several such, not a mixture", "prompt")
    several = [each for each in prompt if not isinstance(each, int)]
    return [each if isinstance(each, str) else checked_ids(tuple(each), bounds, "prompt") for each in several]


def checked_ids(ids: tuple[int, ...], bounds: Bounds, param: str) -> tuple[int, ...]:
    """Token ids as they came.

    Raises:
        BadRequest: one is none of this model's.
    """
    outside = any(not 0 <= id < bounds.vocab_size for id in ids)
    refuse(outside, param, f"token ids lie in 0 … {bounds.vocab_size - 1}")
    return ids
