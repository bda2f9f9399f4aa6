"""The pages of both servers' HTTP, from an edge's own description of itself and from the types that a cloud reads."""

import json
from collections.abc import Iterable, Iterator, Mapping
from inspect import cleandoc
from typing import Any, Final, cast

import msgspec
from griffe import Docstring, DocstringSectionKind
from prometheus_client.parser import text_string_to_metric_families

from preread.cloud import events
from preread.cloud.app import create_app
from preread.edge import openapi
from preread.edge.core import Stats
from preread.edge.metrics import Memory, Metrics
from preread.edge.request import Timings
from preread.store.objects import open_store
from preread.wire.catalogue import Catalogue
from preread.wire.fits import Fit, Fits
from preread.wire.manifest import Manifest

_REF: Final = "#/components/schemas/{name}"
_WORDS: Final = {"integer": "integer", "number": "number", "string": "text", "boolean": "boolean", "null": "null"}
_BOUNDS: Final = (
    ("minimum", "≥ {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "≤ {}"),
    ("exclusiveMaximum", "< {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {}"),
    ("maxItems", "at most {}"),
    ("pattern", "`{}`"),
)

CLOUD_BODIES: Final[Mapping[str, tuple[type, ...]]] = {
    "POST /v1/contexts": (events.Request, events.Progress, events.Published, events.Failed),
    "POST /v1/count": (events.Request, events.Counted),
    "GET /v1/catalogue": (Catalogue,),
    "GET /v1/manifests/{id}": (Manifest,),
    "GET /v1/fits": (Fits,),
    "PUT /v1/fits/{id}": (Fit,),
}
"""Of the operations whose bodies are JSON, the types of what is sent and answered."""


def edge_page() -> str:
    """What an edge answers, as Markdown."""
    told = json.loads(openapi.description())
    operations = [(path, method, of) for path, methods in told["paths"].items() for method, of in methods.items()]
    parts = [
        "# HTTP of an edge\n",
        "What `GET /openapi.json` describes, which is made from the types that read requests. "
        "[api.md](../api.md) tells what the fields do. " + told["info"]["description"] + "\n",
        "## Operations\n",
        *(_operation(path, method, of) for path, method, of in operations),
        "## Errors\n",
        "| Status | Meaning |\n|---:|---|",
        *(f"| {status} | {meaning} |" for status, meaning in _refusals(operations[0][2]).items()),
        "\n## Timings\n",
        "What `timings` of an answer says: the fields of [Timings](python/preread.edge.request.md).\n",
        "## Metrics\n",
        "What `GET /metrics` tells, for Prometheus.\n",
        "| Metric | Kind | Labels | Meaning |\n|---|---|---|---|",
        *_metrics(),
        "\n## Bodies\n",
        *_bodies(told["components"]["schemas"]),
    ]
    return "\n".join(parts)


def cloud_page() -> str:
    """What a cloud answers, as Markdown."""
    routes = cast(list[Any], create_app(open_store("memory:"), cast(Any, None)).routes)
    served = [(", ".join(route.methods - {"HEAD"}), route.path) for route in routes if "/page" not in route.path]
    types = list({type: None for used in CLOUD_BODIES.values() for type in used})
    refs, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    links = dict(zip(types, (_type(ref) for ref in refs), strict=True))
    parts = [
        "# HTTP of a cloud\n",
        "Its routes, and the types of what is JSON. [wire.md](../wire.md#http) is normative, also for what is not.\n",
        "| Method | Path | Bodies |\n|---|---|---|",
        *(
            f"| {method} | `{path}` | {', '.join(links[type] for type in CLOUD_BODIES.get(f'{method} {path}', ()))} |"
            for method, path in served
        ),
        "\n## Bodies\n",
        *_bodies(schemas),
    ]
    return "\n".join(parts)


def _operation(path: str, method: str, told: dict[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}\n", f"{told['summary']}.\n"]
    for parameter in told.get("parameters", ()):
        lines.append(f"- `{parameter['name']}`, in the {parameter['in']}: {_type(parameter['schema'])}")
    if "requestBody" in told:
        lines.append(f"- Body: {_type(told['requestBody']['content']['application/json']['schema'])}")
    answer = next(of for status, of in told["responses"].items() if status < "400")
    for kind, content in answer.get("content", {}).items():
        always = ", ".join(f"`{name}`" for name in content["schema"].get("required", ()))
        lines.append(f"- Answer: `{kind}`" + (f" with {always}" if always else ""))
    return "\n".join([*lines, ""])


def _metrics() -> Iterator[str]:
    """A row for each metric, of an edge that has just answered."""
    metrics = Metrics(lambda: Stats(0, 0, 0, 0, {"free": 0}, 0, 0, {"prompts": 0}), lambda: Memory(0, 0, {"cloud": 0}))
    metrics.answered(Timings(predicted_n=2))
    for family in text_string_to_metric_families(metrics.text().decode()):
        if not family.name.endswith("_created"):
            found = {f"`{label}`": None for sample in family.samples for label in sample.labels if label != "le"}
            name = family.name + "_total" * (family.type == "counter")
            yield f"| `{name}` | {family.type} | {', '.join(found)} | {family.documentation} |"


def _refusals(told: dict[str, Any]) -> dict[str, str]:
    return {status: of["description"] for status, of in told["responses"].items() if status >= "400"}


def _bodies(schemas: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    for name, schema in schemas.items():
        text, meanings = _docstring(schema.get("description", ""))
        yield f"### {_short(name)} {{ #{_anchor(name)} }}\n\n{text}\n"
        required = schema.get("required", ())
        yield (
            "| Field | Type | Default | Meaning |\n|---|---|---|---|"
            if meanings
            else "| Field | Type | Default |\n|---|---|---|"
        )
        for field, of in schema.get("properties", {}).items():
            default = "required" if field in required else f"`{json.dumps(of.get('default'), ensure_ascii=False)}`"
            yield f"| `{field}` | {_type(of)} | {default} |" + (f" {meanings.get(field, '')} |" if meanings else "")
        yield ""


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a type's docstring says of it, and of each of its fields."""
    said, meanings = list[str](), dict[str, str]()
    for section in Docstring(cleandoc(text)).parse("google"):
        if section.kind is DocstringSectionKind.attributes:
            for one in section.value:
                meanings |= {name: _escaped(one.description) for name in one.name.split(", ")}
        else:
            said.append(str(section.value))
    return "\n\n".join(said), meanings


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in words, for a cell of a table."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_short(name)}](#{_anchor(name)})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(of) for of in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value, ensure_ascii=False)}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    kind = " or ".join(_WORDS.get(one, one) for one in ([kind] if isinstance(kind, str) else kind))
    if kind == "array" and "prefixItems" in schema:
        kind = f"[{', '.join(_type(of) for of in schema['prefixItems'])}]"
    elif kind == "array":
        kind = f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    bounds = [said.format(_escaped(str(schema[bound]))) for bound, said in _BOUNDS if bound in schema]
    return ", ".join([kind, *bounds])


def _short(name: str) -> str:
    """A schema's name without its package; with its module where several have that name."""
    return name.removeprefix("preread.").removeprefix("edge.")


def _anchor(name: str) -> str:
    return "body-" + name.lower().replace(".", "-")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def operations(text: str) -> Iterable[str]:
    """The operations that a page of an edge's HTTP has, as `POST /v1/…`."""
    return (line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ") and " /" in line)
