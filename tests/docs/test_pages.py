"""Every command that a page tells to type is typed, in order, and works; what is not typed here, pages.toml says why.

Models have random weights, and benches the smallest arguments that they take: commands are tried, not figures.
"""

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from docsite import commands, reader, shell
from docsite.commands import Command
from docsite.reader import Reader
from docsite.shell import Typed

from preread.testing.tiny import write_tiny

ROOT = Path(__file__).parents[2]
HERE = "tests/docs/pages.toml"
NONE = {"docs/wire.md"}
"""What stands there as code is what goes through digests."""


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page needs.

    Attributes:
        before: what is typed first; some of it has a name.
        also: what is typed last: commands that stand within lines.
        here: what stands in this page, and what it is here.
        elsewhere: how a command or program begins that is not typed, and why.
        says: how one begins, and what is found in its outputs: a regular expression.
        exits: how one begins, and its exit code where that is not 0.
    """

    before: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    here: Mapping[str, str] = {}
    elsewhere: Mapping[str, str] = {}
    says: Mapping[str, str] = {}
    exits: Mapping[str, int] = {}


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """pages.toml, which says what its parts are."""

    programs: Mapping[str, str]
    here: Mapping[str, str]
    before: Mapping[str, str]
    named: Mapping[str, str]
    small: Mapping[str, Mapping[str, str | bool]]
    pages: Mapping[str, Page]


TABLE = msgspec.toml.decode((ROOT / HERE).read_bytes(), type=Table)
FILES = [
    *ROOT.glob("*.md"),
    *(file for folder in (".github", "changes", "docs", "examples") for file in (ROOT / folder).rglob("*.md")),
]
TEXTS = {name: path.read_text() for path in FILES if (name := str(path.relative_to(ROOT))) not in NONE}
WITHIN = {name: {step.text for step in shell.within(text)} for name, text in TEXTS.items()}
"""Commands that stand within lines."""
STEPS = {
    name: steps
    for name, text in sorted(TEXTS.items())
    if (steps := (*shell.typed(text), *(Typed(one, 0) for one in TABLE.pages.get(name, Page()).also)))
}
"""What is typed on a page, and that it names besides."""


def why_not(page: Page, step: Typed) -> str | None:
    """Why it is not typed here; None: it is."""
    said = [why for begin, why in page.elsewhere.items() if step.text.startswith(begin)]
    return said[0] if said else TABLE.programs.get(step.program)


def is_typed(name: str) -> list[Typed]:
    page = TABLE.pages.get(name, Page())
    return [step for step in STEPS[name] if why_not(page, step) is None]


@pytest.mark.parametrize("name", STEPS)
def test_a_page_with_commands_says_what_they_need(name: str) -> None:
    assert name in TABLE.pages, (
        f"{name} tells to type {STEPS[name][0].text!r}: add [pages.{name!r}] to {HERE}, with what is typed `before`, "
        "and with `elsewhere` for what no test can type and why; then try it: "
        f"pytest -m long tests/docs/test_pages.py -k {name}"
    )


@pytest.mark.parametrize("name", TEXTS)
def test_a_block_of_commands_says_that_it_is_one(name: str) -> None:
    known = {*TABLE.programs, "preread", "curl", "openssl", "python", "python3", "pytest"}
    lines = shell.unmarked(TEXTS[name], known)
    assert not lines, (
        f"{name}: lines {lines}: begin the block with ```sh, or ```console where it shows what is said too"
    )


@pytest.mark.parametrize("name", [name for name in TEXTS if not re.match(r"CHANGELOG|changes/[^R]", name)])
def test_a_whole_command_within_a_line_is_typed_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_CLOUD", "http://cloud:8000")
    page = TABLE.pages.get(name, Page())
    typed = [step.text for step in STEPS.get(name, ())]
    missing = [
        text
        for text in WITHIN[name]
        if is_whole(text) and not any(text in one for one in typed) and not text.startswith(tuple(page.elsewhere))
    ]
    assert not missing, f"add to `also`, or to `elsewhere`, of [pages.{name!r}] in {HERE}: {missing}"


def is_whole(text: str) -> bool:
    """Whether it is a command of preread's with all that it needs, and more than flags; FILE stands for something."""
    _, *words = next(shell.commands(text))
    path, _ = commands.called(words)
    told = [word for word in words if not word.startswith("-") and word not in path.split()]
    needs = any(re.search(r"[A-Z]{3}|%|…", word) for word in words)
    return bool(path and told and not needs) and commands.refusal(Command(tuple(words), 1, whole=True)) is None


def test_every_command_is_typed_on_some_page() -> None:
    typed = {commands.called(words[1:])[0] for words in typed_words()}
    known = {path for path, command in below(commands.tree()) if not getattr(command, "commands", None)}
    missing, stale = known - typed - TABLE.named.keys(), TABLE.named.keys() - (known - typed)
    assert not missing, f"no page tells to type these: say so on one, or say in [named] of {HERE} why: {missing}"
    assert not stale, f"take these from [named] of {HERE}, since a page has them typed, or they are gone: {stale}"


def below(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from below(one, f"{path} {name}".strip())


def test_nothing_is_said_of_what_no_page_has_any_more() -> None:
    assert TABLE.pages.keys() <= STEPS.keys()
    stale = [
        f"{name}: {begin!r}"
        for name, page in TABLE.pages.items()
        for begin in (*page.elsewhere, *page.says, *page.exits)
        if not any(text.startswith(begin) for text in (*WITHIN[name], *(step.text for step in STEPS[name])))
    ]
    texts = [text for page in TABLE.pages.values() for text in page.before]
    stale += [f"{name}: {one}" for name, page in TABLE.pages.items() for one in page.also if one not in WITHIN[name]]
    stale += [f"before: {name}" for name in TABLE.before.keys() - {*texts}]
    called = {commands.called(words[1:])[0] for words in typed_words()}
    stale += [f"small: {path}" for path in TABLE.small.keys() - called]
    for begin in TABLE.here:
        if not any(begin in text for text in (*TEXTS.values(), *texts, *TABLE.before.values())):
            stale.append(f"here: {begin}")
    assert not stale, f"{HERE} tells of what is in no page: {stale}"


def typed_words() -> Iterator[tuple[str, ...]]:
    """The commands of preread's that are typed, on all pages."""
    for name in STEPS:
        for step in is_typed(name):
            if step.language == "sh":
                yield from (words for words in shell.commands(step.text) if words[0] == "preread")


def test_tests_that_run_what_is_not_typed_here_are_there() -> None:
    reasons = [
        *TABLE.programs.values(),
        *TABLE.named.values(),
        *(why for page in TABLE.pages.values() for why in page.elsewhere.values()),
    ]
    named = {path for why in reasons for path in re.findall(r"(?:tests|scripts)/[\w/]+(?:\.py)?", why)}
    assert named and [path for path in named if not (ROOT / path).exists()] == []


@pytest.fixture
def typist(smollm: Path) -> Iterator[Reader]:
    """Somebody in a folder with the repository's documents. Its path is short: sockets are in it."""
    if shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("needs curl and openssl: on Debian, apt-get install curl openssl")
    with tempfile.TemporaryDirectory(prefix="page-") as made:
        folder = Path(made)
        model = write_tiny(folder / "tiny.gguf", smollm, hidden=512)  # all of its words: a page fits its window
        large = write_tiny(folder / "large.gguf", smollm, seed=1, hidden=512)
        (folder / "docs").mkdir()
        for page in (ROOT / "docs").rglob("*.md"):
            shutil.copy(page, folder / "docs")
        ports = {name: str(free_port()) for name in ("cloud", "edge", "attach", "share")}
        here = {"model": str(model), "large": str(large), "folder": made, **ports}
        yield Reader(
            folder,
            here,
            TABLE.small,
            reader.environment(folder, PREREAD_MODEL=str(model), PREREAD_MODELS=str(smollm.parent)),
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def filled(table: Mapping[str, str | bool], values: Mapping[str, str]) -> dict[str, str | bool]:
    return {
        key: re.sub(r"\{(\w+)\}", lambda at: values.get(at[1], at[0]), value) if isinstance(value, str) else value
        for key, value in table.items()
    }


def of_page(typist: Reader, page: Page) -> tuple[Reader, list[Typed]]:
    """Who reads this page, and what is typed first."""
    values = typist.here
    here = filled({**TABLE.here, **page.here}, values)
    smaller = {path: filled(options, values) for path, options in typist.smaller.items()}
    first = filled({name: TABLE.before.get(name, name) for name in page.before}, values)
    steps = [Typed(str(first[name]).strip(), 0) for name in page.before]
    told = {key: str(value) for key, value in here.items()}
    return Reader(typist.folder, told, smaller, typist.environment), steps


@pytest.mark.parametrize("name", STEPS)
def test_the_command_line_takes_what_is_typed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_CLOUD", "http://cloud:8000")
    names = "model", "large", "cloud", "edge", "attach", "share"
    here = {name: str(8000 + at) for at, name in enumerate(names)} | {"folder": str(tmp_path)}
    somebody, first = of_page(Reader(tmp_path, here, TABLE.small, {}), TABLE.pages.get(name, Page()))
    for step in (step for step in (*first, *is_typed(name)) if step.language == "sh"):
        for words in shell.commands(somebody.told(step)):
            if words[0] == "preread" and not any("$" in word for word in words):
                assert commands.refusal(Command(words[1:], 1, whole=True)) is None, f"{name}: {' '.join(words)}"


@pytest.mark.long
@pytest.mark.timeout(3600)  # the page of benchmarks has twenty commands, and a busy machine is slow
@pytest.mark.parametrize("name", [name for name in STEPS if is_typed(name)])
def test_what_a_page_tells_to_type_works(name: str, typist: Reader) -> None:
    page = TABLE.pages.get(name, Page())
    somebody, first = of_page(typist, page)
    steps = [*first, *is_typed(name)]
    with ExitStack() as stack:
        came = somebody.follow(steps)
        stack.callback(came.close)  # type: ignore[attr-defined]
        for step, one in zip(steps, came, strict=True):
            code = next((code for begin, code in page.exits.items() if step.text.startswith(begin)), 0)
            assert one.code == code, f"{name}:{step.line}: {one.typed.text}\nexit code {one.code}\n{one.said}"
            assert "Traceback" not in one.said, f"{name}:{step.line}: {one.typed.text}\n{one.said}"
            for begin, said in page.says.items():
                if step.text.startswith(begin):
                    assert re.search(said, one.said), f"{name}:{step.line}: {one.typed.text}: no {said}\n{one.said}"
