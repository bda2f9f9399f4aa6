"""docs/wire.md says what the types, headers and routes say: neither can drift alone."""

import json
import re
import struct
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import pytest

from preread.cli.batch import STAGES
from preread.cloud import app, events, turns
from preread.cloud.events import Counted, Event, Failed, Problem, Progress, Published, Request
from preread.codec import profile_bytes
from preread.errors import Overloaded, PrereadError, UnknownContext
from preread.store import routes
from preread.store.objects import open_store
from preread.values import Form
from preread.wire import fits, forms, neighbour, pages, parts, segment, tokens
from preread.wire.catalogue import MOST_REMOVED, Catalogue, Entry
from preread.wire.digest import object_id
from preread.wire.fields import MAX_CATALOGUE_BYTES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "wire.md").read_text()
SOURCE, VECTORS = ROOT / "src" / "preread", ROOT / "tests" / "vectors"


def table(head: str, below: str = "\n") -> list[list[str]]:
    """Cells of the rows of the first table that begins with the line `head`, after the text `below`."""
    _, found, rest = TEXT[TEXT.index(below) :].partition(f"\n{head}\n")
    assert found, f"no table begins with {head}"
    lines = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fields(type: Any) -> set[str]:
    """Names of a struct's fields on the wire."""
    return {field.encode_name for field in msgspec.structs.fields(type)}


def optional(type: Any) -> set[str]:
    """Those that may be left out."""
    return {field.encode_name for field in msgspec.structs.fields(type) if not field.required}


def example(head: str) -> str:
    (line,) = [line.strip() for line in TEXT.splitlines() if line.startswith(f"    {head}")]
    return line


def test_what_a_publication_takes() -> None:
    rows = {
        quoted(name)[0]: (type, meaning)
        for name, type, meaning in table("| Field | Type | Meaning |", "\n## Publishing")
    }
    assert set(rows) == fields(Request)
    assert quoted(rows["mode"][0]) == list(get_args(events.Mode))
    assert sorted(quoted(rows["form"][0])) == sorted(["auto", *get_args(Form)])
    assert {name for name, (_, meaning) in rows.items() if meaning.startswith("optional")} == {
        "form",
        "mode",
        "model",
        "priority",
    }
    assert app.MAX_BODY_BYTES == 8 * 2**20 and "need not be canonical, of at most 8 MiB." in TEXT
    assert f"At most {turns.MOST} documents wait, {turns.MOST_OF_A_CALLER} of one caller" in TEXT
    assert f"and {turns.MOST_BYTES >> 20} MiB of them" in TEXT
    assert f"be said for {app._KEEP_ALIVE_S:.0f} seconds" in TEXT


def test_what_a_publication_says() -> None:
    rows = {quoted(event)[0]: quoted(names) for event, names, _ in table("| `event` | Fields | Meaning |")}
    types = {type.__struct_config__.tag: type for type in get_args(Event)}
    assert {event: set(names) for event, names in rows.items()} == {tag: fields(type) for tag, type in types.items()}
    left_out = TEXT[TEXT.index("Of what was published, ") :].split("\n\n")[0]
    assert optional(Published) <= set(quoted(left_out[left_out.index("The\nothers") :]))


@pytest.mark.parametrize("type", [Progress, Published, Failed])
def test_examples_of_what_a_publication_says_are_that(type: Any) -> None:
    tag = type.__struct_config__.tag
    lines = [line.strip() for line in TEXT.splitlines() if line.startswith(f'    {{"event": "{tag}"')]
    assert lines
    entry = msgspec.json.encode(ENTRY).decode()
    for line in lines:
        read = msgspec.json.decode(line.replace("{…}", entry), type=Event)
        assert isinstance(read, type)
        assert json.loads(msgspec.json.encode(read)) == json.loads(line.replace("{…}", entry))


ENTRY = msgspec.json.decode((VECTORS / "catalogue.json").read_bytes(), type=Catalogue).contexts[0]


def test_stages_are_those_that_the_terminal_knows_and_those_that_need_no_words() -> None:
    told = {quoted(stage)[0] for stage, *_ in table("| `stage` | Steps | When |")}
    assert told == {*STAGES, "queue", "prefill", "encode"}


def test_the_body_of_an_error() -> None:
    shown, sent = json.loads(example('{"error": {"message"')), routes.body_of(UnknownContext("a", ()))
    assert shown["error"] | {"message": ""} == sent["error"] | {"message": ""}
    assert fields(Problem) == set(sent["error"])


def test_every_answer_that_is_an_error_is_told() -> None:
    told = {(status, code) for status, codes, _ in table("| Status | `code` | When |") for code in quoted(codes)}
    kinds = [kind for kind, _, _ in routes._ANSWERS]
    assert PrereadError in kinds
    answered = {(str(status), code) for _, status, code in routes._ANSWERS}
    for by_caller in (False, True):
        status, code = routes.status_and_code(Overloaded("", retry_after_s=1, by_caller=by_caller))
        answered.add((str(status), code))
    assert answered <= told


def test_the_fields_of_a_catalogue() -> None:
    rows = [quoted(name)[0] for name, *_ in table("| Field | Type | Bounds and meaning |", "\n## Catalogue")]
    assert {name for name in rows if "[]" not in name} | {"contexts"} == fields(Catalogue)
    assert {name.removeprefix("contexts[].") for name in rows if "[]" in name} == fields(Entry)
    assert f"at most {MOST_REMOVED:,} names" in TEXT and MAX_CATALOGUE_BYTES == 2**24
    assert f"over {pages.MAX_ENTRIES:,} or over {pages.MAX_ENTRIES_BYTES / 1e6:.1f} MB" in TEXT


def test_the_fields_of_a_manifest() -> None:
    rows = [quoted(name)[0] for name, *_ in table("| Field | Type | Bounds and meaning |", "\n## Manifest")]
    tops = fields(forms.Manifest1)
    nested: dict[str, Any] = {"model": forms.Model1, "tokens": forms.Tokens, "origin": forms.Origin}
    assert {name.partition(".")[0] for name in rows} == tops
    for top, type in nested.items():
        assert {name.split(".")[1] for name in rows if name.startswith(f"{top}.")} == fields(type)
    assert {quoted(name)[0] for name, *_ in table("| Field | Type | Bounds and meaning |", "\nA rung:")} == fields(
        forms.Rung1
    )
    rows = [quoted(name)[0] for name, *_ in table("| Field | Type | Bounds and meaning |", "A quality says what")]
    assert set(rows) == fields(forms.Quality)


def test_the_fields_of_a_manifest_of_version_2() -> None:
    head, below = "| Field | Type | Bounds and meaning |", "\n### Manifest, version 2"
    tops = {quoted(name)[0].partition(".")[0] for name, *_ in table(head, below)}
    new = fields(forms.Manifest2) - fields(forms.Manifest1)
    assert tops == new | {"version", "model", "groups"} and fields(forms.Model2) - fields(forms.Model1) == {"layers"}
    kept = {quoted(name)[0] for name, *_ in table(head, "A layer keeps nothing")}
    assert kept == {f"rows.{name}" for name in fields(forms.Rows2)} | {f"state.{name}" for name in fields(forms.State2)}
    optional_rows = {name for name, type, *_ in table(head, "A layer keeps nothing") if "optional" in type}
    assert optional_rows == {f"`rows.{name}`" for name in optional(forms.Rows2)}
    group = {quoted(name)[0] for name, *_ in table("| Field of a group | Type | Bounds and meaning |")}
    assert group == fields(parts.Group) and fields(forms.Layer2) == optional(forms.Layer2) == {"rows", "state"}
    rung = {quoted(name)[0] for name, *_ in table("| Field of a rung | Type | Bounds and meaning |")}
    assert rung == fields(forms.Rung2) - fields(forms.Rung1)


def test_what_counting_answers() -> None:
    rows = {quoted(name)[0]: meaning for name, meaning in table("| Field | Meaning |", "\n## Counting")}
    assert set(rows) == fields(Counted)
    assert {name for name, meaning in rows.items() if "left out" in meaning} == optional(Counted)


def test_the_list_of_fits() -> None:
    rows = [row for row in table("| Field | Type | Bounds and meaning |", "\n## Fits")]
    assert {name for names, *_ in rows for name in quoted(names)} == fields(fits.Fit)
    missing = {name for names, _, meaning in rows for name in quoted(names) if "missing where" in meaning}
    assert missing | {"created"} == optional(fits.Fit)
    assert quoted(rows[0][1]) == list(get_args(fits.FitKind))
    rows = table("| Field of `measured` | Type | Bounds and meaning |", "\n## Fits")
    assert {quoted(name)[0] for name, *_ in rows} == fields(fits.Measured)
    assert {quoted(name)[0] for name, _, meaning in rows if "missing where" in meaning} == optional(fits.Measured)
    assert f"most\n{fits.MAX_FITS} of these" in TEXT and fits.MAX_FITS_BYTES == 2**23 and fits.MAX_FIT_BYTES == 2**28


def test_the_head_of_a_profile() -> None:
    rows = {
        quoted(name)[0]: meaning for name, _, meaning in table("| Field | Type | Bounds and meaning |", "\n## Profile")
    }
    assert set(rows) == fields(profile_bytes._Head)
    assert {name for name, meaning in rows.items() if "may be missing" in meaning} == optional(profile_bytes._Head)


def test_what_an_edge_tells_its_neighbours() -> None:
    (answer,) = [
        answer for _, path, answer in table("| Method | Path | Answer |", "\n### Between edges") if "edge" in path
    ]
    assert set(re.findall(r'"(\w+)":', answer)) | {"nonce", "proof"} == fields(neighbour.Introduction)
    assert {"nonce", "proof"} <= set(quoted(answer)) and optional(neighbour.Introduction) == {"nonce", "proof"}
    assert f"at most {neighbour.MAX_INTRODUCTION_BYTES:,} bytes" in answer


@pytest.mark.parametrize(
    ("section", "header", "magic"),
    [
        ("\n## Segment", segment.HEADER, segment.MAGIC),
        ("For others, version 2:", segment.WIDE_HEADER, segment.MAGIC),
        ("\n## Token object", tokens.HEADER, tokens.MAGIC),
    ],
)
def test_headers_of_objects_have_these_fields_at_these_places(
    section: str, header: struct.Struct, magic: bytes
) -> None:
    *rows, last = table("| Offset | Bytes | Type | Field | Must be |", section)
    letters = {"u16": "H", "u32": "I", "u64": "Q"}
    told = "".join(letters.get(type, f"{size}s") for _, size, type, *_ in rows)
    assert struct.Struct(f"<{told}").format == header.format
    stops = [int(offset) + int(size) for offset, size, *_ in rows]
    assert [int(offset) for offset, *_ in rows] == [0, *stops[:-1]]
    assert int(last[0]) == header.size and rows[0][4] == f"`{magic.decode()}`"


def test_what_a_cloud_answers() -> None:
    told = {path.strip("`") for _, path, _ in table("| Method | Path | Answer |", "\n## HTTP")}
    served = app.create_app(open_store("memory:"), cast(Any, None)).routes
    assert told == {path for route in served if not (path := cast(Any, route).path).startswith("/page") and path != "/"}


def test_reasons_of_refusal_are_those_that_the_code_gives() -> None:
    told = {quoted(reason)[0] for reason, *_ in table("| Reason | What is wrong | Of |")}
    sources = [path for layer in ("wire", "codec", "store") for path in (SOURCE / layer).rglob("*.py")]
    given = {reason for path in sources for reason in re.findall(r'CorruptData\(\s*"(\w+)"', path.read_text())}
    assert told == given


def test_golden_files_are_those_that_are_listed() -> None:
    rows = {quoted(file)[0]: (int(size), quoted(id)[0]) for file, size, id in table("| File | Bytes | BLAKE3 |")}
    read = {file: (VECTORS / file).read_bytes() for file in rows}
    assert rows == {file: (len(data), object_id(data)) for file, data in read.items()}
