"""What was learnt on one machine is of use on another that could not have learnt it: every kind, from file to answer.

Two clouds, and two folders as two machines have them. The model has random weights and is its own large one; the guide
changes nothing, and says of itself what the gate wants to hear.
"""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docsite import reader
from docsite.reader import Reader
from docsite.shell import Typed

from preread.align.mapping_bytes import Kept
from preread.align.mapping_bytes import dumps as dumps_mapping
from preread.testing.fits import of_model
from preread.wire.digest import object_id
from preread.wire.fits import FitKind

pytestmark = pytest.mark.long

KINDS: dict[FitKind, str] = {
    "codec": "codec-{}.profile",
    "map": "map-{}.npz",
    "guide": "guide-{}.npz",
    "decisions": "decisions-{}.json",
}
ASKED = (
    '{"context": "guided", "input": "", "questions": [{"type": "choice", "instructions": "Which?", '
    '"choices": [{"value": "1"}, {"value": "2"}]}]}'
)


def port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
def learnt(tmp_path: Path, tiny_model: Path, tiny_mapping: Kept) -> dict[FitKind, bytes]:
    """A file of each kind, as a machine with a GPU left them in its folder."""
    files: dict[FitKind, bytes] = {**of_model(tiny_model), "map": dumps_mapping(tiny_mapping)}
    (tmp_path / "there").mkdir()
    for kind, data in files.items():
        (tmp_path / "there" / kind).write_bytes(data)
    return files


@pytest.fixture
def machine(tmp_path: Path, tiny_model: Path) -> Callable[[str], Reader]:
    """A machine's folder, cache and ports, by its name."""

    def at(name: str) -> Reader:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "text.txt").write_text(" ".join(str(n * n * n % 9973) for n in range(1500)))
        (folder / "short.txt").write_text(" ".join(str(n * n * n % 9973) for n in range(200)))
        here = {"MODEL": str(tiny_model), "CLOUD": port(), "EDGE": port()}
        return Reader(folder, here, {}, reader.environment(folder, PREREAD_MODEL=str(tiny_model)))

    return at


def typed(somebody: Reader, *lines: str) -> Iterator[str]:
    """What each command says; all have to work."""
    for came in somebody.follow(Typed(line, 0) for line in lines):
        assert came.code == 0, f"{came.typed.text}\n{came.said}"
        yield came.said


def test_what_was_learnt_there_is_used_here(learnt: dict[FitKind, bytes], machine: Callable[[str], Reader]) -> None:
    there, here = machine("there"), machine("here")
    address = f"http://127.0.0.1:{there.here['CLOUD']}"
    ids = {kind: object_id(data) for kind, data in learnt.items()}
    first = typed(
        there,
        "preread cloud --port CLOUD --rungs lossless",
        f"preread fits push {' '.join(learnt)} --cloud {address}",
    )
    next(first)
    assert next(first).count("pushed ") == 4

    got = typed(
        here,
        f"preread fits ls --json --cloud {address}",
        *(f"preread fits pull --id {one[:12]} --out . --cloud {address}" for one in ids.values()),
        f"preread fits pull decisions --cloud {address}",
        f"preread fits pull codec --store ./store --cloud {address}",
    )
    listed = {one["kind"]: one["id"] for one in json.loads(next(got))}
    assert listed == ids
    assert len(list(got)) == 6
    for kind, name in KINDS.items():
        assert (here.folder / name.format(ids[kind][:12])).read_bytes() == learnt[kind]
    list(first)  # from here on the other cloud is away

    guide, mapping = (KINDS[kind].format(ids[kind][:12]) for kind in ("guide", "map"))
    *_, told = typed(
        here,
        f"preread bench guide --llm MODEL --slm MODEL --guide {guide} --map {mapping} --text text.txt --windows 4",
    )
    rows = {row["mode"]: row for row in json.loads(told.splitlines()[-1])["rows"]}
    assert rows.keys() == {"llm", "slm", "guided", "mapped-4"} and abs(rows["guided"]["dloss"]) < 1e-3

    _, guided, mapped, exact, shown, _, streamed, decided = typed(
        here,
        f"preread cloud --port CLOUD --store ./store --llm MODEL --guide {guide} --map {mapping} --rungs lossless,b4",
        "preread publish short.txt --name guided --mode guided --cloud http://127.0.0.1:CLOUD",
        "preread publish short.txt --name mapped --mode mapped --cloud http://127.0.0.1:CLOUD",
        "preread publish short.txt --name exact --cloud http://127.0.0.1:CLOUD",
        "preread contexts show exact --json --cloud http://127.0.0.1:CLOUD",
        "preread edge --port EDGE --cloud http://127.0.0.1:CLOUD --rung b4",
        "preread ask --edge http://127.0.0.1:EDGE --context guided --max-tokens 4 'Which?'",
        f"curl -sf http://127.0.0.1:EDGE/v1/decisions -H 'Content-Type: application/json' -d '{ASKED}'",
    )
    assert "published 'guided' (chat, guided)" in guided and "published 'mapped' (chat, mapped)" in mapped
    assert "published 'exact' (chat)" in exact and json.loads(shown)["bytes"].keys() == {"lossless", "b4"}
    assert "tokens streamed, b4" in streamed
    assert json.loads(decided)["calibration"]["fitted_on"] == 120
