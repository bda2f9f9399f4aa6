"""The edge's API as OpenAPI 3.1 describes it: `GET /openapi.json`. Bodies are described by the types that read them.

Pure. A test holds the operations here against the routes that are served.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import msgspec

from preread.edge import listed, messages, native, responses, texts
from preread.edge.body import Chat, Completion, Refused
from preread.edge.decisions import openai as decisions
from preread.edge.decisions import systemone

_REF: Final = "#/components/schemas/{name}"
_REFUSALS: Final = {
    "400": "The request is not understood, or asks for what cannot be honoured; `param` says which field.",
    "401": "A key is needed.",
    "403": "The key does not allow this.",
    "404": "There is no such context or model.",
    "413": "The body is too large.",
    "415": "The body is not JSON, or is encoded in another way than gzip or deflate.",
    "421": "The server is not known by this name.",
    "429": "The caller has too much inside: see Retry-After.",
    "500": "The engine failed.",
    "502": "The cloud sent what is of no use.",
    "503": "There is no room, or the cloud cannot be asked: see Retry-After.",
    "504": "The cloud did not answer in time.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that can be asked for.

    Attributes:
        method, path: of its route.
        summary: what it does.
        body: the type that reads its body; None: it has none.
        fields: that its answer always has; none: the answer is no JSON.
        streams: whether it may be answered in events.
        parameters: in the path or the query, with their schemas.
    """

    method: str
    path: str
    summary: str
    body: type | None = None
    fields: tuple[str, ...] = ()
    streams: bool = False
    parameters: tuple[tuple[str, str, dict[str, Any]], ...] = ()


_LIMIT: Final = {"type": "integer", "minimum": 1, "maximum": listed.MOST}
_TEXT: Final = {"type": "string"}

OPERATIONS: Final = (
    Operation("GET", "/v1/health", "Whether the edge lives", fields=("status", "model")),
    Operation("GET", "/readyz", "Whether the edge is ready for requests", fields=("status",)),
    Operation("GET", "/v1/models", "The model, alone and with each context", fields=("object", "data")),
    Operation("GET", "/v1/models/{id}", "One of them", fields=("id",), parameters=(("id", "path", _TEXT),)),
    Operation(
        "GET", "/v1/contexts", "What is published, and where it is now", fields=("data", "has_more"),
        parameters=(("limit", "query", _LIMIT), ("after", "query", _TEXT)),
    ),
    Operation("GET", "/metrics", "Counts and durations, for Prometheus"),
    Operation("GET", "/props", "Properties, as llama-server tells them", fields=("default_generation_settings",)),
    Operation("GET", "/openapi.json", "This description", fields=("openapi", "paths")),
    Operation("DELETE", "/v1/conversations", "Keep nothing of what this caller said"),
    Operation("POST", "/v1/chat/completions", "Answer a chat", Chat, ("choices", "usage", "timings"), True),
    Operation("POST", "/v1/chat/completions/input_tokens", "Count the tokens of a chat", Chat, ("input_tokens",)),
    Operation("POST", "/v1/completions", "Continue texts", Completion, ("choices", "usage", "timings"), True),
    Operation(
        "POST", "/v1/responses", "Answer, in OpenAI's newer form", responses.Response, ("output", "status"), True
    ),
    Operation(
        "POST", "/v1/responses/input_tokens", "Count the tokens of such a request", responses.Response,
        ("input_tokens",),
    ),
    Operation("POST", "/v1/messages", "Answer, in Anthropic's form", messages.Messages, ("content", "usage"), True),
    Operation(
        "POST", "/v1/messages/count_tokens", "Count the tokens of such a request", messages.Messages, ("input_tokens",)
    ),
    Operation("POST", "/v1/decisions", "Decide questions about a state", decisions.Body, ("usage",)),
    Operation("POST", "/v1/systemone", "The same, as System One asks for it", systemone.Body, ("usage",)),
    Operation("POST", "/completion", "Continue a text, as llama-server", Completion, ("content", "timings"), True),
    Operation("POST", "/infill", "Fill in the middle of a text", native.Infill, ("content", "timings"), True),
    Operation("POST", "/tokenize", "The tokens of a text", texts.Tokenize, ("tokens",)),
    Operation("POST", "/detokenize", "The text of tokens", texts.Detokenize, ("content",)),
    Operation("POST", "/apply-template", "A chat as the model reads it", Chat, ("prompt",)),
)  # fmt: skip


@cache
def description() -> bytes:
    """All of it as JSON."""
    bodies = list({operation.body: None for operation in OPERATIONS if operation.body is not None})
    refs, schemas = msgspec.json.schema_components(bodies, ref_template=_REF)
    ref_of = dict(zip(bodies, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        ref = ref_of[operation.body] if operation.body is not None else None
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, ref)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "preread edge",
                "version": version("preread"),
                "description": "Every path under /v1 is served without /v1 too.",
            },
            "security": [{}, {"bearer": []}, {"key": []}],
            "paths": paths,
            "components": {
                "schemas": {name: _taken(schema) for name, schema in schemas.items()} | {"Error": _ERROR},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                },
            },
        }
    )


_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "code": _TEXT, "param": {"type": ["string", "null"]}},
        }
    },
}


def _described(operation: Operation, ref: dict[str, Any] | None) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    refusals = {status: {"description": why, "content": error} for status, why in _REFUSALS.items()}
    told: dict[str, Any] = {"summary": operation.summary, "responses": {**_answer(operation), **refusals}}
    if operation.parameters:
        told["parameters"] = [
            {"name": name, "in": place, "required": place == "path", "schema": schema}
            for name, place, schema in operation.parameters
        ]
    if ref is not None:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref}}}
    return told


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.method == "DELETE":
        return {"204": {"description": "Done."}}
    if not operation.fields:
        return {"200": {"description": "The answer.", "content": {"text/plain": {"schema": _TEXT}}}}
    # /completion answers several prompts with an array
    kinds = ["object", "array"] if operation.path == "/completion" else "object"
    content: dict[str, Any] = {"application/json": {"schema": {"type": kinds, "required": list(operation.fields)}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": _TEXT}
    return {"200": {"description": "The answer.", "content": content}}


def _taken(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the fields that are refused."""
    if "properties" not in schema:
        return schema
    taken = {name: of for name, of in schema["properties"].items() if name not in Refused.__struct_fields__}
    return {**schema, "properties": taken}
