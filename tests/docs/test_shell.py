"""What a page tells to type is found in it, with all that belongs to it; and what is no command is not."""

import pytest
from docsite import commands, shell
from hypothesis import given
from hypothesis import strategies as st

PAGE = """
```sh
$ preread cloud --store 'a b' \\
  --port 0   # a server
# nothing
(umask 077; openssl rand -hex 16 > site.key)
python3 - <<'END'
print("it's")
END
X=1 Y=2 .venv/bin/preread edge
```

```console
$ preread contexts ls
NAME   it's
```

```sh
N=3
preread publish $N
```

```python
print(1)
```

    systemctl start it

Named: `preread doctor`, `curl`.
"""


def test_what_is_typed_at_once_stays_together() -> None:
    found = shell.typed(PAGE)
    assert [step.program for step in found] == [
        "preread",
        "umask",
        "python3",
        "preread",
        "preread",
        "preread",
        "python",
    ]
    assert found[0].text.endswith("# a server") and found[2].text.count("\n") == 2
    assert found[5].text == "N=3\npreread publish $N\n" and found[6].language == "python"
    assert [step.line for step in found] == [2] * 4 + [13, 18, 23]
    assert [step.text for step in shell.within(PAGE)] == ["preread doctor"]
    assert list(shell.commands(found[3].text)) == [(".venv/bin/preread", "edge")]


def test_a_block_of_commands_that_does_not_say_so_is_found() -> None:
    assert shell.unmarked(PAGE, {"systemctl"}) == (27,) and shell.unmarked(PAGE, {"preread"}) == ()


@pytest.mark.parametrize("page", ["```sh\necho 'a\n```\n", "```sh\ncat <<END\na\n```\n", "```sh\necho \\\n```\n"])
def test_what_does_not_end_is_told(page: str) -> None:
    with pytest.raises(ValueError, match="does not end"):
        shell.typed(page)


@given(st.lists(st.text("ab -$|'\"\\\n#", max_size=12), max_size=6))
def test_no_line_is_lost(lines: list[str]) -> None:
    try:
        found = shell.whole(lines)
    except ValueError:
        return
    assert "\n".join(found) == "\n".join(lines)


def test_a_command_is_called_by_its_words_and_gets_other_options() -> None:
    path, flags = commands.called(["--proxy", "http://a", "bench", "ttft", "--choose", "--runs", "5"])
    assert path == "bench ttft" and {"--choose", "--help"} <= flags and "--runs" not in flags
    words = ["bench", "ttft", "--runs", "5", "--choose", "--seed=3", "--plot", "a.svg"]
    options = {"--runs": "1", "--choose": False, "--seed": "4", "--plot": False, "--json": True}
    assert shell.changed(words, options, flags) == ["bench", "ttft", "--runs", "1", "--seed", "4", "--json"]
