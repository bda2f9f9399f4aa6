"""Every command of every page is one that the command line takes."""

from pathlib import Path

import pytest
from docsite import commands, markdown
from docsite.commands import Command

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
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

    X=1 preread cloud --store 'my store' \\
      --port 0 &  # preread edge
    openssl rand -hex 16 > site.key; .venv/bin/preread edge --mdns && echo preread

```sh
$ preread models ls | grep preread
```

```python
preread = "edge"
```
"""
    assert [command.words for command in commands.of_page(page)] == [
        ("cloud", "--store", "my store", "--port", "0"),
        ("edge", "--mdns"),
        ("models", "ls"),
    ]


def test_blocks_of_python_in_pages_are_python() -> None:
    for page in PAGES:
        for part in markdown.code(page.read_text()):
            if part.language == "python":
                compile(part.text, f"{page.name}:{part.line}", "exec")
