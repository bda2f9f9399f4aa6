"""publish with folders, patterns, pages and documents of offices, against a cloud without a model."""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from preread.cloud import client, turns
from preread.cloud.app import create_app
from preread.errors import Overloaded
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.documents import docx, paragraph, pdf

Run = Any


@pytest.fixture
def cloud() -> Iterator[str]:
    """URL of a cloud without a model: every letter is a token, and there is room for 400."""
    publisher = small(open_store("memory:"))
    with serving(create_app(publisher.store, publisher, counter=publisher.counted)) as url:
        yield url


def small(store: Objects) -> RandomPublisher:
    return RandomPublisher(store, ("lossless",), chunk_tokens=200, window_tokens=400)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "one.md").write_text("# One\n\nThe fan has code 107.")
    (folder / "guide" / "two.txt").write_text("The pump has code 211.")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    (folder / ".secret").write_text("never")
    return folder


def names(preread: Run, url: str) -> list[str]:
    return [row["name"] for row in json.loads(preread("contexts", "ls", "--json", "--cloud", url).out)]


def test_a_dry_run_shows_what_would_be_published_and_publishes_nothing(preread: Run, cloud: str, docs: Path) -> None:
    (docs / "long.txt").write_text("a" * 500)
    ran = preread("publish", str(docs), "--dry-run", "--cloud", cloud)
    rows = [line.split() for line in ran.out.splitlines()]
    assert rows[0] == ["NAME", "TOKENS", "WHAT", "FROM"]
    assert rows[1:4] == [
        ["long", "500", "too", "long", f"{docs}/long.txt"],
        ["one", "28", "new", f"{docs}/one.md"],
        ["guide.two", "22", "new", f"{docs}/guide/two.txt"],
    ]
    assert ran.out.splitlines()[-1] == "2 new, 1 too long" and ran.code == 1
    assert "long.txt: does not fit: 500 tokens, 100 more than 400" in ran.err
    assert "hidden" in ran.err and "binary" in ran.err and "picture.png" in ran.err
    assert names(preread, cloud) == []


def test_a_folder_is_published_and_then_only_what_changed(preread: Run, cloud: str, docs: Path) -> None:
    first = preread("publish", str(docs), "--cloud", cloud)
    assert first.code == 0 and first.out.splitlines()[-1] == "2 new"
    assert "published 'guide.two': 22 tokens" in first.out and "%" not in first.err
    (docs / "one.md").write_text("# One\n\nThe fan has code 108.")
    second = preread("publish", str(docs), "--cloud", cloud)
    assert second.out.splitlines()[-1] == "1 changed, 1 as published" and "replaced 'one'" in second.out
    assert preread("publish", str(docs), "--cloud", cloud).out == "2 as published\n"
    again = preread("publish", str(docs), "--again", "--cloud", cloud)
    assert again.out.splitlines()[-1] == "2 changed"


def test_only_contexts_below_the_prefix_whose_document_is_gone_are_removed(
    preread: Run, cloud: str, docs: Path
) -> None:
    preread("publish", "-", "--name", "mine", "--cloud", cloud, stdin=b"Some text.")
    arguments = ["publish", str(docs), "--prefix", "d.", "--cloud", cloud]
    preread(*arguments)
    (docs / "one.md").unlink()
    assert preread(*arguments).out == "1 as published\n"
    assert names(preread, cloud) == ["d.guide.two", "d.one", "mine"]
    shown = preread(*arguments, "--remove", "--dry-run")
    assert ["d.one", "removed"] in [line.split() for line in shown.out.splitlines()]
    assert "removed 'd.one'" in preread(*arguments, "--remove").out
    assert names(preread, cloud) == ["d.guide.two", "mine"]
    (docs / "guide" / "two.txt").unlink()
    (docs / "three.md").write_text("Three.")
    one = preread("publish", str(docs / "three.md"), "--prefix", "d.guide.", "--remove", "--cloud", cloud)
    assert "published 'd.guide.three'" in one.out and "removed 'd.guide.two'" in one.out
    (docs / "three.md").unlink()
    emptied = preread(*arguments, "--remove")
    assert emptied.code == 1 and "nothing to publish" in emptied.err and len(names(preread, cloud)) == 2


def test_what_does_not_fit_is_cut_at_its_headings(preread: Run, cloud: str, docs: Path) -> None:
    chapters = "\n\n".join(f"# Chapter {n}\n\n" + f"Sentence of {n}. " * 15 for n in range(1, 5))
    (docs / "book.md").write_text(chapters)
    arguments = ["publish", str(docs / "book.md"), "--split", "--cloud", cloud]
    ran = preread(*arguments, "--json")
    rows = json.loads(ran.out)["contexts"]
    assert ran.code == 0 and [row["name"] for row in rows] == ["book.1", "book.2", "book.3", "book.4"]
    assert [row["source"].rpartition(": ")[2] for row in rows] == [f"Chapter {n}" for n in range(1, 5)]
    assert sum(row["tokens"] for row in rows) == len(chapters)
    assert preread(*arguments).out == "4 as published\n"
    short = preread("publish", str(docs / "one.md"), "--split", "--cloud", cloud)
    assert "published 'one'" in short.out


def test_documents_become_one_context(preread: Run, cloud: str, docs: Path) -> None:
    ran = preread("publish", str(docs), "--join", "--name", "all", "--json", "--cloud", cloud)
    parts = [f"# {docs}/one.md\n\n# One\n\nThe fan has code 107.", f"# {docs}/guide/two.txt\n\nThe pump has code 211."]
    assert json.loads(ran.out)["tokens"] == len("\n\n".join(parts))


def test_documents_of_offices_and_pages_are_published_as_text(preread: Run, cloud: str, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2", reason="converting documents needs: pip install 'preread[documents]'")
    (tmp_path / "pump.pdf").write_bytes(pdf("The pump has code 211."))
    (tmp_path / "fan.docx").write_bytes(docx(paragraph("The fan has code 107.")))
    page = Starlette(routes=[Route("/guide/", lambda request: HTMLResponse("<main><p>Change it weekly.</main>"))])
    with serving(page) as site:
        given = [str(tmp_path / "pump.pdf"), str(tmp_path / "fan.docx"), f"{site}/guide/"]
        ran = preread("publish", *given, "--json", "--cloud", cloud)
    rows = {row["name"]: row["tokens"] for row in json.loads(ran.out)["contexts"]}
    assert rows == {"pump": 22, "fan": 21, "guide": 17}
    one = preread("publish", str(tmp_path / "fan.docx"), "--name", "blower", "--json", "--cloud", cloud)
    assert json.loads(one.out)["name"] == "blower" and "bytes" in json.loads(one.out)


def test_what_fails_is_told_and_the_rest_is_published(preread: Run, cloud: str, docs: Path) -> None:
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (docs / "m\u0430nual.md").write_text("letters that look alike")
    (docs / "one.txt").write_text("another of this name")
    ran = preread("publish", str(docs), "--cloud", cloud)
    assert ran.code == 1 and ran.out.splitlines()[-1] == "1 new, 4 refused"
    assert "broken.pdf: it is a damaged PDF" in ran.err or "preread[documents]" in ran.err
    assert "look alike" in ran.err and "one.txt too would be called 'one'" in ran.err
    assert names(preread, cloud) == ["guide.two"]


def test_a_cloud_of_before_it_could_count_gets_all_that_is_found(preread: Run, docs: Path, tmp_path: Path) -> None:
    publisher = small(open_store("memory:"))
    of_before = create_app(publisher.store, publisher)
    of_before.router.routes[:] = [one for one in of_before.router.routes if getattr(one, "path", "") != "/v1/count"]
    with serving(of_before) as url:
        (docs / "long.txt").write_text("a" * 500)
        for end in ("2 new, 1 refused", "2 changed, 1 refused"):
            ran = preread("publish", str(docs), "--cloud", url)
            assert ran.out.splitlines()[-1] == end and "of before it could count" in ran.err
            assert "100 more than the window" in ran.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.md", "b.md", "--name", "x"], "--join makes them one"),
        (["a.md", "--name", "x", "--prefix", "d."], "leave it away"),
        (["a.md", "--join"], "--name"),
        (["a.md", "--remove"], "--remove needs --prefix"),
        (["a.md", "--watch", "--json"], "--watch goes on"),
        (["a.md", "-"], "for one document"),
        (["-", "--name", "x", "--join"], "are for files"),
        (["--system", "x", "--name", "x", "--watch"], "are for files"),
        (["a.md", "--tokens", "--remove"], "are for files"),
        (["https://x.example/", "--watch"], "without it"),
        (["a.md", "absent.md"], "no such file"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_sent(
    preread: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("text")
    ran = preread("publish", *arguments, "--cloud", "http://127.0.0.1:1", stdin=b"text")
    assert ran.code == 1 and told in ran.err and ran.out == ""


def test_who_waits_reads_how_many_are_before(preread: Run, docs: Path, tmp_path: Path) -> None:
    publisher = small(open_store("memory:"))
    begun, go_on = threading.Event(), threading.Event()

    async def slow(*arguments: Any) -> Any:
        import asyncio

        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return await publisher(*arguments)

    with serving(create_app(publisher.store, slow, counter=publisher.counted)) as url:
        before = threading.Thread(target=lambda: list(client.publish(url, "before", text="text")))
        before.start()
        assert begun.wait(60)
        seen = threading.Timer(0.5, go_on.set)
        seen.start()
        ran = preread("publish", str(docs / "one.md"), "--cloud", url)
        before.join()
    assert ran.code == 0 and "waiting: 1 document is published before this one\n" in ran.err
    assert "its turn has come\n" in ran.err


@pytest.mark.parametrize("treated", ["published", "counted"])
def test_a_cloud_that_has_too_much_to_do_is_asked_again_when_it_says(
    preread: Run, cloud: str, docs: Path, monkeypatch: pytest.MonkeyPatch, treated: str
) -> None:
    check, refused = turns.Turns._check, [True]

    def once(self: turns.Turns, caller: str, size_bytes: int) -> None:
        if self._treated == treated and refused:
            refused.pop()
            raise Overloaded(f"9 documents wait to be {treated}", retry_after_s=1.0)
        check(self, caller, size_bytes)

    monkeypatch.setattr(turns.Turns, "_check", once)
    ran = preread("publish", str(docs), "--cloud", cloud)
    assert ran.code == 0 and "9 documents wait" in ran.err and "again in 1 s" in ran.err
    assert ran.out.splitlines()[-1] == "2 new"


@dataclass
class Watching:
    """A command that watches, whose lines are read as they come."""

    process: "subprocess.Popen[str]"
    lines: "queue.Queue[str]"

    def until(self, words: str) -> str:
        """The next line with these words; a minute is far more than it takes."""
        while words not in (line := self.lines.get(timeout=60)):
            pass
        return line


@pytest.fixture
def watch() -> Iterator[Callable[..., Watching]]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> Watching:
        command = [sys.executable, "-m", "preread.cli", "publish", *arguments, "--watch"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(process)
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        stream = process.stdout
        threading.Thread(target=lambda: [lines.put(line) for line in stream], daemon=True).start()
        return Watching(process, lines)

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_what_changes_in_a_folder_is_published_until_ctrl_c(
    preread: Run, cloud: str, docs: Path, watch: Callable[..., Watching]
) -> None:
    watching = watch(str(docs), "--prefix", "d.", "--remove", "--cloud", cloud)
    watching.until("2 new; watching")
    (docs / "three.md").write_text("Three.")
    watching.until("published 'd.three'")
    (docs / "one.md").write_text("Changed.")
    watching.until("replaced 'd.one'")
    (docs / "three.md").unlink()
    watching.until("removed 'd.three'")
    assert names(preread, cloud) == ["d.guide.two", "d.one"]
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(timeout=60) == 130
    assert not [line for line in watching.lines.queue if "Traceback" in line]


def test_a_cloud_that_was_away_gets_what_changed_meanwhile(
    preread: Run, docs: Path, tmp_path: Path, watch: Callable[..., Watching]
) -> None:
    publisher = small(open_store("memory:"))
    app = create_app(publisher.store, publisher, counter=publisher.counted)
    with serving(app) as url:
        watching = watch(str(docs), "--cloud", url)
        watching.until("2 new; watching")
    (docs / "three.md").write_text("Three.")
    watching.until("cannot be reached")
    port = int(url.rpartition(":")[2])
    with serving(app, port=port) as url:
        watching.until("published 'three'")
        watching.until("back in step")
        assert names(preread, url) == ["guide.two", "one", "three"]
