"""`POST /v1/systemone`, TypeSafe's System One API as llama.cpp, vLLM and Ollama serve it.

After the documentation of ggml-org/llama.cpp (`tools/server/README.md`, commit 00dc805), vllm-project/vllm
(`docs/serving/online_serving/structured_decisions.md`, commit 02cc9cd) and ollama/ollama
(`docs/capabilities/decision.mdx`, commit 0950a43). Where they differ: any JSON is taken as state, `instructions` of the
whole request as from vLLM, up to 26 options and levels as from Ollama, and `confidence` is 1 − normalised entropy, as
Ollama's examples have it. Images and files are refused. Pure.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from preread.edge.decisions.odds import decidedness, expected
from preread.edge.decisions.question import MOST_OPTIONS, MOST_QUESTIONS, Inquiry, Option, Question, predicate
from preread.edge.decisions.reply import Decided, told, used
from preread.edge.openai import BadRequest, Bounds, context_named, read_json

_Orders = Annotated[int, Meta(ge=1, le=MOST_OPTIONS)]
_Id = Annotated[str, Meta(min_length=1, max_length=1000)]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["choice", "score", "noul"]
    instructions: Any
    criteria: Any = None


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/systemone."""

    state: Any
    questions: Annotated[dict[_Id, Asked], Meta(min_length=1, max_length=MOST_QUESTIONS)]
    instructions: str | None = None
    model: str | None = None
    context: str | None = None
    permutations: _Orders | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    images: list[Any] | None = None
    files: list[Any] | None = None
    stream: bool | None = None


def read(body: bytes, bounds: Bounds) -> Inquiry:
    """Read a body.

    Raises:
        BadRequest: it is not such a body, or asks for what cannot be done.
    """
    request = read_json(body, Body)
    for name in ("images", "files", "stream"):
        if getattr(request, name):
            raise BadRequest(f"{name} cannot be honoured here: leave it out", name)
    state = "" if request.state is None else _text(request.state)
    return Inquiry(
        "\n\n".join(text for text in (request.instructions, state) if text),
        None,
        tuple(_question(id, asked) for id, asked in request.questions.items()),
        context_named(request.model, request.context, bounds),
        request.permutations,
        tuple((request.chat_template_kwargs or {}).items()),
    )


def write(decided: Decided) -> bytes:
    """The answers to an inquiry."""
    answers = {question.name: _answer(question, odds) for question, odds in decided.answers}
    return msgspec.json.encode({"model": decided.model, "answers": answers, "usage": used(decided)} | told(decided))


def _answer(question: Question, odds: Sequence[float]) -> dict[str, Any]:
    if question.kind == "predicate":
        return {"type": "noul", "noul": odds[0]}
    texts = [option.text for option in question.options]
    confidence = decidedness(odds)
    if question.kind == "choice":
        chosen = max(zip(texts, odds, strict=True), key=lambda pair: pair[1])[0]
        probabilities = dict(zip(texts, odds, strict=True))
        return {"type": "choice", "choice": chosen, "probabilities": probabilities, "confidence": confidence}
    return {
        "type": "score",
        "score": expected(odds),
        "legend": {str(level): text for level, text in enumerate(texts)},
        "probabilities": {str(level): p for level, p in enumerate(odds)},
        "confidence": confidence,
    }


def _question(id: str, asked: Asked) -> Question:
    at, text, criteria = f"questions.{id}", _text(asked.instructions), asked.criteria
    if not text.strip():
        raise BadRequest("a question needs instructions: say what is to be decided", f"{at}.instructions")
    if asked.type == "noul":
        given = {} if criteria is None else criteria
        _expect(isinstance(given, dict) and given.keys() <= {"true", "false"}, f"{at}.criteria", "true and false")
        true, false = (_described(given.get(key), f"{at}.criteria.{key}") for key in ("true", "false"))
        return predicate(id, text, true, false)
    if asked.type == "choice":
        _expect(isinstance(criteria, dict), f"{at}.criteria", "an object of options")
        options = tuple(Option(key, key, _described(said, f"{at}.criteria.{key}")) for key, said in criteria.items())
    else:
        _expect(isinstance(criteria, list), f"{at}.criteria", "an array of levels")
        options = tuple(Option(level, _text(said)) for level, said in enumerate(criteria))
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise BadRequest(f"{len(options)} options: 2 to {MOST_OPTIONS} can be told apart", f"{at}.criteria")
    return Question(asked.type, id, text, options)


def _expect(true: bool, at: str, what: str) -> None:
    if not true:
        raise BadRequest(f"{at} is to be {what}", at)


def _described(said: object, at: str) -> str | None:
    _expect(said is None or isinstance(said, str), at, "a text or null")
    return said if isinstance(said, str) and said else None


def _text(said: Any) -> str:
    """What is not text is read as JSON."""
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()
