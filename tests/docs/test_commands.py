"""Every command of every page is one that the command line takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docsite import commands, markdown
from docsite.commands import Command

ROOT = Path(__file__).parents[2]
FOUND = [page for folder in (".", "changes", "examples") for page in (ROOT / folder).glob("*.md")]
PAGES = [page for page in (*FOUND, *(ROOT / "docs").rglob("*.md")) if page.name != "CHANGELOG.md"]
"""All but the one that tells of releases that were."""
NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
BYTES = "docs/wire.md"
"""What stands there as code is what goes through digests, and some of it begins with `preread`."""


@pytest.mark.parametrize("name", sorted(NAMES.keys() - {BYTES}))
def test_every_command_of_a_page_exists_with_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = NAMES[name].read_text()
    for variable in ("PREREAD_CLOUD", "PREREAD_MODEL"):
        if variable in text:  # a page that tells of it may leave out what it spares
            monkeypatch.setenv(variable, "http://cloud:8000")
    wrong = [
        f"{name}:{command.line}: preread {' '.join(command.words)}: {why}"
        for command in commands.of_page(text)
        if (why := commands.refusal(command))
    ]
    assert not wrong, "\n".join(wrong)


OTHERS = {
    "docs/guides/kubernetes.md": {"--set", "--wheels"},  # Helm's, and scripts/image's
    "docs/guides/systemd.md": {"--slot-save-path"},  # llama-server's
    "docs/attach.md": {"--kv-unified", "--no-cache-idle-slots", "--no-slots"},  # llama-server's
    "docs/clients.md": {"--schema", "--functions"},  # llm's
    "docs/operations.md": {"--network"},  # Docker's
    "docs/releasing.md": {"--builder"},  # scripts/release's
}


def test_every_option_that_a_page_names_is_one_of_some_command() -> None:
    known = {name for command in below(commands.tree()) for option in command.params for name in names_of(option)}
    for name, page in NAMES.items():
        named = {part.text for part in markdown.code(page.read_text()) if part.kind == "inline"}
        options = {re.split("[ =]", text)[0] for text in named if text.startswith("--")}
        assert options - known <= OTHERS.get(name, set()), name


def below(command: Any) -> Iterator[Any]:
    yield command
    for one in getattr(command, "commands", {}).values():
        yield from below(one)


def names_of(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def test_every_variable_that_a_page_names_is_read_somewhere() -> None:
    read = [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.[ch]"),
        *(ROOT / "tests").rglob("*.py"),
        ROOT / "Makefile",
    ]
    known = {name for file in read for name in re.findall(r"PREREAD_[A-Z_]+", file.read_text())}
    for name, page in NAMES.items():
        assert set(re.findall(r"PREREAD_[A-Z_]+", page.read_text())) <= known, name


@pytest.mark.parametrize(
    "words",
    [
        "pubish manual.txt",
        "publish",
        "publish manual.txt --nme manual",
        "publish manual.txt --mode thoroughly",
        "edge --max-queue many",
        "edge --cloud",
        "--prxy http://a edge",
        "bench ttft --grids issue",
    ],
)
def test_what_the_command_line_refuses_is_wrong_in_a_block(words: str) -> None:
    assert commands.refusal(Command(tuple(words.split()), 1, whole=True))


@pytest.mark.parametrize("words", ["edge --help", "--version", "models pull tiny", "--ca a.pem edge --port 0"])
def test_what_the_command_line_takes_is_right(words: str) -> None:
    assert commands.refusal(Command(tuple(words.split()), 1, whole=True)) is None


def test_within_a_line_a_command_may_lack_what_it_needs_but_not_have_what_it_lacks() -> None:
    text = "Then `preread publish`, `preread edge …` and `preread fit study`; not `preread publish --nme x`."
    found = commands.of_page(text)
    assert [bool(commands.refusal(command)) for command in found] == [False, False, False, True]


def test_commands_are_found_where_a_shell_finds_them() -> None:
    page = """
A server:

```sh
X=1 preread cloud --store 'my store' \\
  --port 0 &  # preread edge
openssl rand -hex 16 > site.key; .venv/bin/preread edge --mdns && echo preread
```

```console
$ preread models ls | grep preread
```

```bash
curl http://127.0.0.1:8080/v1/completions -d '{"model": "preread@manual",
  "prompt": "preread edge
  preread cloud"}'; preread doctor
```

```
preread is not typed
```

```python
preread = "edge"
```
"""
    assert [command.words for command in commands.of_page(page)] == [
        ("cloud", "--store", "my store", "--port", "0"),
        ("edge", "--mdns"),
        ("models", "ls"),
        ("doctor",),
    ]


def test_blocks_of_python_in_pages_are_python() -> None:
    blocks = [(page, part) for page in PAGES for part in markdown.code(page.read_text()) if part.language == "python"]
    wrong = [f"{page.name}:{part.line}: {error}" for page, part in blocks if (error := syntax_error(part.text))]
    assert blocks and not wrong


def syntax_error(text: str) -> str | None:
    try:
        compile(text, "a page", "exec")
    except SyntaxError as error:
        return str(error)
    return None


def test_a_block_that_is_no_python_is_noticed() -> None:
    assert syntax_error("answer = client.(") and syntax_error("answer = 1") is None
