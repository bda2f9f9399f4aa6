"""OpenAI's `POST /v1/decisions`: a body becomes an `Inquiry`, and what was decided its answers.

The form is that of openai-python 3.57, `types/decision*.py`. Texts, JSON parts, messages, calls of functions and tools
with their results are read; images are refused, since no model here sees. Where OpenAI takes 255 choices, there are as
many as letters here: each needs a label of one token. Pure.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from preread.edge.decisions.odds import expected
from preread.edge.decisions.question import MOST_OPTIONS, MOST_QUESTIONS, Inquiry, Option, Question, predicate
from preread.edge.decisions.reply import Decided, told, used
from preread.edge.openai import BadRequest, Bounds, context_named, read_json

MOST_DATA: Final = 1 << 18
"""Bytes of a part that is JSON."""

_Orders = Annotated[int, Meta(ge=1, le=MOST_OPTIONS)]
_Short = Annotated[str, Meta(max_length=1000)]


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    data: Any = None


Content = str | list[Part]


class Item(msgspec.Struct, frozen=True):
    """A message, a call of a function or a tool, or what came of one."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Literal["user", "developer", "system", "assistant"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None


class Choice(msgspec.Struct, frozen=True):
    value: str | bool
    description: str | None = None


class Level(msgspec.Struct, frozen=True):
    label: _Short
    description: str | None = None


class Predicate(msgspec.Struct, frozen=True, tag="predicate"):
    instructions: Content
    name: _Short | None = None


class ChoiceQuestion(msgspec.Struct, frozen=True, tag="choice"):
    instructions: Content
    choices: Annotated[list[Choice], Meta(min_length=2)]
    name: _Short | None = None


class ScoreQuestion(msgspec.Struct, frozen=True, tag="score"):
    instructions: Content
    levels: Annotated[list[Level], Meta(min_length=2)]
    name: _Short | None = None


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/decisions. What is said of OpenAI's prompt cache is taken, and means nothing here."""

    input: str | list[Item]
    questions: Annotated[
        list[Predicate | ChoiceQuestion | ScoreQuestion], Meta(min_length=1, max_length=MOST_QUESTIONS)
    ]
    model: str | None = None
    context: str | None = None
    permutations: _Orders | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream: bool | None = None


def read(body: bytes, bounds: Bounds) -> Inquiry:
    """Read a body.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    request = read_json(body, Body)
    if request.stream:
        raise BadRequest("decisions come all at once: leave stream out", "stream")
    system, state = _state(request.input)
    return Inquiry(
        state,
        system,
        tuple(_question(question, f"questions[{number}]") for number, question in enumerate(request.questions)),
        context_named(request.model, request.context, bounds),
        request.permutations,
        tuple((request.chat_template_kwargs or {}).items()),
    )


def write(decided: Decided) -> bytes:
    """The answers to an inquiry."""
    answers = [_answer(question, odds) for question, odds in decided.answers]
    cached = {"cached_tokens": decided.cached_tokens, "cache_write_tokens": 0}
    usage = {
        **used(decided),
        "input_tokens_details": cached,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": decided.input_tokens,
    }
    return msgspec.json.encode(
        {"object": "decision", "model": decided.model, "answers": answers, "usage": usage} | told(decided)
    )


def _answer(question: Question, odds: Sequence[float]) -> dict[str, Any]:
    asked = {"type": question.kind, "name": question.name}
    each = list(zip(question.options, odds, strict=True))
    if question.kind == "predicate":
        return asked | {"probability": odds[0]}
    confidence = max(odds)
    if question.kind == "choice":
        chosen = max(each, key=lambda pair: pair[1])[0]
        probabilities = [{"value": option.value, "probability": p} for option, p in each]
        return asked | {"choice": chosen.value, "confidence": confidence, "probabilities": probabilities}
    levels = [{"value": option.value, "label": option.text, "probability": p} for option, p in each]
    return asked | {"score": expected(odds), "confidence": confidence, "probabilities": levels}


def _question(asked: Predicate | ChoiceQuestion | ScoreQuestion, at: str) -> Question:
    text = _text(asked.instructions, f"{at}.instructions")
    if not text.strip():
        raise BadRequest("a question needs instructions: say what is to be decided", f"{at}.instructions")
    if isinstance(asked, Predicate):
        return predicate(asked.name, text)
    if isinstance(asked, ChoiceQuestion):
        options = tuple(Option(each.value, _shown(each.value), each.description) for each in asked.choices)
        _check(options, f"{at}.choices")
        return Question("choice", asked.name, text, options)
    levels = tuple(Option(level, each.label, each.description) for level, each in enumerate(asked.levels))
    _check(levels, f"{at}.levels")
    return Question("score", asked.name, text, levels)


def _check(options: Sequence[Option], at: str) -> None:
    if len(options) > MOST_OPTIONS:
        raise BadRequest(
            f"{len(options)} options: at most {MOST_OPTIONS} have labels of one token; ask in two steps", at
        )
    if len({(type(option.value), option.value) for option in options}) < len(options):
        raise BadRequest("each option must be unique", at)


def _shown(value: str | bool) -> str:
    return value if isinstance(value, str) else ("true" if value else "false")


def _state(given: str | list[Item]) -> tuple[str | None, str]:
    """The system prompt, if the input begins with one, and the rest as one text."""
    if isinstance(given, str):
        return None, given
    system = [item for item in given[:1] if item.type == "message" and item.role in ("system", "developer")]
    rest = list(enumerate(given))[len(system) :]
    calls: set[str] = set()
    texts = [_item(item, f"input[{number}]", calls, alone=len(rest) == 1) for number, item in rest]
    begun = _text(system[0].content or "", "input[0].content") if system else None
    return begun, "\n\n".join(texts)


def _item(item: Item, at: str, calls: set[str], *, alone: bool) -> str:
    """An item as text; a user's message that is all there is stands for itself."""
    if item.type == "message":
        if item.role is None or item.content is None:
            raise BadRequest(f"{at}: a message has a role and content", at)
        text = _text(item.content, f"{at}.content")
        return text if alone and item.role == "user" else f"{item.role}: {text}"
    if item.call_id is None:
        raise BadRequest(f"{at}: a call has a call_id", f"{at}.call_id")
    if item.type.endswith("_output"):
        if item.call_id not in calls:
            raise BadRequest(f"{at}: no call before it has the id {item.call_id!r}", f"{at}.call_id")
        return f"result: {_text(item.output or '', f'{at}.output')}"
    calls.add(item.call_id)
    given = item.arguments if item.type == "function_call" else item.input
    if item.name is None or given is None:
        raise BadRequest(f"{at}: a call has a name, and arguments or input", at)
    return f"call: {item.name}({given})"


def _text(content: Content, at: str) -> str:
    """Parts are joined by line breaks."""
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{at}[{number}]") for number, part in enumerate(content))


def _part(part: Part, at: str) -> str:
    if part.type == "input_json":
        if not isinstance(part.data, dict | list):
            raise BadRequest(f"{at}: data is an object, or an array of objects", f"{at}.data")
        data = msgspec.json.encode(part.data)
        if len(data) > MOST_DATA:
            raise BadRequest(f"{at}: {len(data)} bytes of JSON: at most {MOST_DATA}", f"{at}.data")
        return data.decode()
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("input_text", "output_text", "refusal", "text") or text is None:
        raise BadRequest(f"{at}: a part of type {part.type!r} cannot be read here: send text or JSON", at)
    return text
