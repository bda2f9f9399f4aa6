"""publish, contexts ls, show and rm, against a cloud without a model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

Run = Any


@pytest.fixture
def manual(tmp_path: Path) -> str:
    path = tmp_path / "manual.txt"
    path.write_text("The filter is changed every week.")
    return str(path)


def test_published_file_is_named_after_its_stem_listed_shown_and_removed(
    preread: Run, quick_cloud: str, manual: str
) -> None:
    done = preread("publish", manual, "--cloud", quick_cloud)
    assert done.code == 0 and "published 'manual'" in done.out and "33 tokens" in done.out
    assert "prefill: 100 %" in done.err and "\x1b" not in done.err
    listed = preread("contexts", "ls", "--cloud", quick_cloud)
    assert listed.out.splitlines()[0].split() == ["NAME", "TOKENS", "FORM", "MODEL", "ID"]
    assert listed.out.splitlines()[1].split()[:2] == ["manual", "33"]
    shown = preread("contexts", "show", "manual", "--cloud", quick_cloud)
    assert "tokens    33" in shown.out and "lossless" in shown.out and "q4" in shown.out and "ON TOP OF" in shown.out
    assert re.search(r"segments  \d+ for each rung, in \d+ chunks and \d+ layer groups", shown.out)
    assert preread("contexts", "rm", "manual", "--cloud", quick_cloud).out == "removed 'manual'\n"
    assert json.loads(preread("contexts", "ls", "--json", "--cloud", quick_cloud).out) == []


def test_a_file_with_a_name_as_macos_writes_it_is_published_as_it_is_typed(
    preread: Run, quick_cloud: str, tmp_path: Path
) -> None:
    (tmp_path / "cafe\u0301.txt").write_text("Some text.")
    assert preread("publish", str(tmp_path / "cafe\u0301.txt"), "--cloud", quick_cloud).code == 0
    assert preread("contexts", "rm", "caf\u00e9", "--cloud", quick_cloud).code == 0


def test_json_output_is_one_object_alone_on_stdout(preread: Run, quick_cloud: str, manual: str) -> None:
    published = json.loads(preread("publish", manual, "--json", "--cloud", quick_cloud).out)
    assert published["tokens"] == 33 and set(published["bytes"]) == {"lossless", "q4"}
    (listed,) = json.loads(preread("contexts", "ls", "--json", "--cloud", quick_cloud).out)
    assert listed["id"] == published["id"]
    shown = json.loads(preread("contexts", "show", "manual", "--json", "--cloud", quick_cloud).out)
    assert shown["bytes"] == published["bytes"] and shown["on_top_of"] == published["on_top_of"] == {}


def test_cloud_is_taken_from_the_environment(
    preread: Run, quick_cloud: str, manual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREREAD_CLOUD", quick_cloud)
    assert preread("publish", manual).code == 0
    monkeypatch.delenv("PREREAD_CLOUD")
    missing = preread("contexts", "ls")
    assert missing.code == 2 and "PREREAD_CLOUD" in missing.err


def test_standard_input_and_system_prompts_need_a_name(preread: Run, quick_cloud: str) -> None:
    for arguments in (["-"], ["--system", "Be terse."]):
        nameless = preread("publish", *arguments, "--cloud", quick_cloud, stdin=b"Some text.")
        assert nameless.code == 1 and "--name" in nameless.err
    assert preread("publish", "-", "--name", "piped", "--cloud", quick_cloud, stdin=b"Some text.").code == 0
    system = preread("publish", "--system", "Be terse.", "--name", "terse", "--json", "--cloud", quick_cloud)
    assert json.loads(system.out)["form"] == "chat"


@pytest.mark.parametrize("text", [b"[72, 105]", b"72 105\n", b" 72\n105 "])
def test_token_ids_are_read_as_json_or_words(preread: Run, quick_cloud: str, text: bytes) -> None:
    done = preread("publish", "-", "--tokens", "--name", "ids", "--json", "--cloud", quick_cloud, stdin=text)
    assert json.loads(done.out)["tokens"] == 2


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (b"abc\xff\xfe", [], "byte 0xff at offset 3"),
        (b"", [], "is empty"),
        (b" \n\t", [], "is empty"),
        (b"a" * 5000, [], "904 more"),
        (b"1 2 x", ["--tokens"], "no token ids"),
        (b'[1, "2"]', ["--tokens"], "no token ids"),
        (b"-1", ["--tokens"], "refuses"),
        (b"text", ["--name", "a/b"], "cannot name a context"),
    ],
)
def test_what_cannot_be_published_is_told_in_one_line(
    preread: Run, quick_cloud: str, text: bytes, options: list[str], told: str
) -> None:
    ran = preread("publish", "-", "--name", "x", *options, "--cloud", quick_cloud, stdin=text)
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("preread: ") and ran.err.count("\n") == 1 and told in ran.err
    assert json.loads(preread("contexts", "ls", "--json", "--cloud", quick_cloud).out) == []


@pytest.mark.parametrize(("file", "told"), [("absent.txt", "cannot read"), (".", "there is nothing to publish")])
def test_file_that_cannot_be_read(preread: Run, tmp_path: Path, file: str, told: str) -> None:
    ran = preread("publish", str(tmp_path / file), "--name", "x", "--cloud", "http://127.0.0.1:1")
    assert ran.code == 1 and told in ran.err


@pytest.mark.parametrize("command", ["show", "rm"])
def test_unknown_context_names_the_known_ones(preread: Run, quick_cloud: str, manual: str, command: str) -> None:
    preread("publish", manual, "--cloud", quick_cloud)
    ran = preread("contexts", command, "nope", "--cloud", quick_cloud)
    assert ran.code == 1 and ran.err == "preread: unknown context 'nope'; known contexts: manual\n"


def test_cloud_that_is_not_there(preread: Run) -> None:
    ran = preread("contexts", "ls", "--cloud", "http://127.0.0.1:1")
    assert ran.code == 1 and "cannot be reached" in ran.err and ran.err.count("\n") == 1
