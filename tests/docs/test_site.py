"""The site has every page, every command, every operation, every public module, and shows pages as a forge does."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_args, get_origin, get_type_hints

import markdown as python_markdown
import msgspec
import pytest
from docsite import __main__ as site
from docsite import cli, commands, http, links, python
from docsite.markdown import code
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import preread
from preread import wire
from preread.cli import app
from preread.edge import openapi
from preread.edge.body import Chat, Refused

ROOT = Path(__file__).parents[2]
NAVIGATION = (ROOT / "mkdocs.yml").read_text()


def test_the_navigation_has_every_page_and_no_other() -> None:
    listed = re.findall(r"^ +- (?:.*: )?([\w./-]+\.md)$", NAVIGATION, re.M)
    assert sorted(listed) == sorted(site.moved() | site.reference())


def walked(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for below in getattr(command, "commands", {}).values():
        yield from walked(below, f"{name} {below.name}")


def test_the_page_of_commands_has_each_with_all_that_its_help_tells() -> None:
    sections = dict(re.findall(r"^#+ (preread.*?)\n(.*?)(?=^#+ preread|\Z)", cli.page(), re.M | re.S))
    known = dict(walked(commands.tree(), "preread"))
    assert sections.keys() == known.keys()
    for name, command in known.items():
        assert (command.help or "") in sections[name]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts) if parameter.opts[0].startswith("-") else ():
                assert re.search(rf"^- `[^`]*{option}\b", sections[name], re.M), (name, option)


@pytest.mark.parametrize("words", ["", "edge", "publish", "fit codec", "bench ttft"])
def test_what_a_terminal_is_told_is_on_the_page(words: str) -> None:
    told = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "400", "NO_COLOR": "1"}).stdout
    named = " ".join(["preread", *words.split()])
    section = cli.page().split(f"# {named}\n")[1].split("\n#")[0]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", told))
    assert options and options <= set(re.findall(r"--[a-z][a-z0-9-]*", section))


def test_the_page_of_an_edge_has_every_operation_and_every_field() -> None:
    page = http.edge_page()
    assert list(http.operations(page)) == [f"{one.method} {one.path}" for one in openapi.OPERATIONS]
    chat = page.split("### Chat {")[1].split("\n###")[0]
    read = {field.encode_name for field in msgspec.structs.fields(Chat)} - {*Refused.__struct_fields__}
    assert {"messages", "context"} <= read == set(re.findall(r"^\| `(\w+)` \|", chat, re.M))


def test_the_page_of_an_edge_has_every_metric() -> None:
    named = set(re.findall(r'"(preread_\w+)"', (ROOT / "src/preread/edge/metrics.py").read_text()))
    rows = re.findall(r"^\| `(preread_\w+)` \| \w+ \|", http.edge_page(), re.M)
    assert {row.removesuffix("_total") for row in rows} == named and len(rows) == len(named)


def test_the_page_of_a_cloud_has_every_route_and_every_type_of_json() -> None:
    page = http.cloud_page()
    for operation, types in http.CLOUD_BODIES.items():
        method, _, path = operation.partition(" ")
        (row,) = re.findall(rf"^\| {method} \| `{re.escape(path)}` \| (.*) \|$", page, re.M)
        assert row.count("](#") == len(types)
        for one in types:
            section = page.split(f"### {one.__name__} {{")[1].split("\n###")[0]
            names = {field.encode_name for field in msgspec.structs.fields(one)}
            assert names <= set(re.findall(r"^\| `(\w+)` \|", section, re.M))


INSIDE = {"preread.edge.node", "preread.edge.residents"}
"""What programs may look at, and is nothing that stays as it is: the architecture's page tells of it."""


def used(hint: Any) -> Iterator[type]:
    """preread's own types in a type hint."""
    if isinstance(hint, type) and get_origin(hint) is None and hint.__module__.startswith("preread."):
        yield hint
    for part in get_args(hint):
        yield from used(part)


def shown(one: type) -> Iterator[type]:
    """preread's own types in a class's fields and in what its public methods take and give."""
    methods = [value for name, value in vars(one).items() if callable(value) and not name.startswith("_")]
    for of in (one, *methods):
        for hint in get_type_hints(of).values():
            yield from used(hint)


def test_every_type_that_a_program_is_given_or_gives_has_a_page() -> None:
    found, seen = {getattr(preread, name) for name in preread.__all__}, set[type]()
    while found:
        seen |= found
        found = {type for one in found for type in shown(one)} - seen
        found = {one for one in found if one.__module__ not in INSIDE}
    assert {one.__module__ for one in seen} <= {*python.modules(NAVIGATION)}
    assert {one.__name__ for one in seen} >= {"AsyncEdge", "Edge", "PrereadError", "Answer", "Timings", "Grammar"}


def imported(source: str) -> set[str]:
    """Modules of preread's that a program imports."""
    named = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            within = {f"{node.module}.{name.name}" for name in node.names}
            named |= {one if is_module(one) else str(node.module) for one in within}
        elif isinstance(node, ast.Import):
            named |= {name.name for name in node.names}
    return {name for name in named if name.partition(".")[0] == "preread"}


def surface() -> dict[str, str]:
    """Modules that programs of others are told to import, and who tells them; with those of the wire format."""
    told = {f"preread.wire.{module.name}": "wire.md" for module in iter_modules(wire.__path__)}
    for name, text in site.written().items():
        programs = [block.text for block in code(text) if block.language == "python"]
        named = {module for program in programs for module in imported(program)}
        told |= dict.fromkeys(named | {one for one in re.findall(r"\bpreread(?:\.\w+)+", text) if is_module(one)}, name)
    extending = re.findall(
        r"(?:\bThe seams? (?:is|are) [^.]*?|\bof )`((?:\w+/)+\w+)\.py`", (ROOT / "docs/extending.md").read_text()
    )
    told |= {f"preread.{path.replace('/', '.')}": "extending.md" for path in extending if path.split("/")[0] != "tests"}
    for program in (ROOT / "examples").glob("*.py"):
        told |= dict.fromkeys(imported(program.read_text()), program.name)
    return told


def is_module(name: str) -> bool:
    package, _, module = name.rpartition(".")
    return (ROOT / "src" / name.replace(".", "/")).with_suffix(".py").is_file() and bool(package and module)


def test_every_module_that_programs_of_others_are_told_of_has_a_page() -> None:
    told = surface()
    missing = {module: by for module, by in told.items() if module not in python.modules(NAVIGATION)}
    assert not missing, f"add reference/python/MODULE.md to the nav of mkdocs.yml for {missing}"
    seams = {"preread", "preread.cloud.client", "preread.codec.base", "preread.engine.base", "preread.testing.codec"}
    assert (
        seams <= told.keys()
        and {"preread.edge.sources", "preread.testing.tiny", "preread.wire.manifest"} <= told.keys()
    )


def test_every_page_of_a_module_is_of_one_that_is_there() -> None:
    for module in python.modules(NAVIGATION):
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


ELEMENTS = r"<(table|tr|li|ul|ol|pre|h[1-6]|img|a|em|strong|blockquote)\b"
FORGE = MarkdownIt("commonmark").enable("table")


def elements(html: str) -> Counter[str]:
    """How many there are of each element, but for what is code."""
    return Counter(re.findall(ELEMENTS, re.sub(r"<(pre|code)[^>]*>.*?</\1>", r"<\1>", html, flags=re.S)))


def on_the_site(text: str) -> str:
    wanted = ["admonition", "attr_list", "md_in_html", "tables", "pymdownx.highlight", "pymdownx.superfences"]
    plain = {"pymdownx.highlight": {"use_pygments": False}}
    return python_markdown.markdown(text, extensions=wanted, extension_configs=plain)


@pytest.mark.parametrize("path", sorted(site.written()))
def test_a_page_has_the_same_lists_tables_and_code_on_a_forge_and_on_the_site(path: str) -> None:
    text = site.written()[path]
    assert elements(FORGE.render(text)) == elements(on_the_site(text))


def test_a_list_that_only_a_forge_would_see_is_found() -> None:
    text = "Some of them:\n- one\n- two\n"
    assert elements(FORGE.render(text)) != elements(on_the_site(text))


def test_links_lead_where_their_files_are_on_the_site() -> None:
    text = "[a](docs/api.md#tools) [b](CHANGELOG.md) [c](src/x.py) [d](https://e.org) ![e](docs/e.svg) `[f](docs/f.md)`"
    told = "[a](../api.md#tools) [b](changelog.md) [c](../source/src/x.py.md) [d](https://e.org) ![e](../e.svg)"
    assert links.moved(text, "README.md") == f"{told} `[f](docs/f.md)`"
    assert links.outside(text, "README.md") == {"CHANGELOG.md", "src/x.py"}
    text = '[a](api.md) [b](../README.md#top) [c](../../src/x.py) [d](#here) <img src="../page.webp">'
    told = '[a](api.md) [b](../project/readme.md#top) [c](../source/src/x.py.md) [d](#here) <img src="../page.webp">'
    assert links.moved(text.replace("](../R", "](../../R"), "docs/guides/g.md") == told


def test_what_pages_link_to_and_is_no_page_is_shown_by_one() -> None:
    shown, pages = site.sources(), site.written()
    assert {links.place(path) for name, text in pages.items() for path in links.outside(text, name)} <= {
        *shown,
        *map(links.place, pages),
    }
    assert (ROOT / "examples" / "ask.py").read_text() in shown["source/examples/ask.py.md"]


@given(st.text(max_size=200))
def test_text_without_links_is_as_it_was(text: str) -> None:
    assert links.moved(text, "docs/a.md") == text or "](" in text or '="' in text


@pytest.mark.long
def test_the_site_is_built_without_a_warning_and_takes_nothing_from_elsewhere(tmp_path: Path) -> None:
    for command in (["docsite", "build/docs"], ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(["scripts", *sys.path]), "NO_MKDOCS_2_WARNING": "1"}
        run = [sys.executable, "-m", *command]
        built = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="([^"]+)"', page.read_text())
        assert not [target for target in loaded if re.match(r"(https?:)?//", target)], page
