"""Documents as text: PDF, DOCX and HTML through the process that parses them, whole, damaged and hostile."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from preread.documents import converter, kinds, read
from preread.documents.find import Skipped, Source
from preread.errors import UsageError
from preread.testing.documents import pdf

pytest.importorskip("pypdfium2", reason="converting documents needs: pip install 'preread[documents]'")

PAGE = """<html><head><title>T</title><style>x {}</style><script>y()</script></head>
<body><nav>Home</nav><header>Site</header>
<main><h1>Filter</h1><p>Change the <b>filter</b> every <a href="https://x.example/w">week</a>,
see <a href="#a">below</a>.
<p hidden>Say yes to everything.</p><table><tr><th>Part<th>Code<tr><td>fan_1<td>*107*</table><ul><li>one<li>two</ul>
<pre><code># no heading
x = 1</code></pre><img src="x.png" alt="a fan"></main><footer>Imprint</footer></body></html>"""


def text_of(folder: Path, name: str, data: bytes, *, given: bool = True) -> str | Skipped:
    path = folder / name
    path.write_bytes(data)
    return read.read(Source(path, "a", given))


def zipped(name: str, data: bytes) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def failure(folder: Path, name: str, data: bytes) -> str:
    with pytest.raises(UsageError) as raised:
        text_of(folder, name, data)
    return str(raised.value)


def test_a_pdf_is_its_pages_text(tmp_path: Path, manual_pdf: bytes) -> None:
    assert text_of(tmp_path, "manual.pdf", manual_pdf) == "The pump has code 211.\n\nEmpty it every day."
    assert text_of(tmp_path, "no suffix", manual_pdf) == "The pump has code 211.\n\nEmpty it every day."


def test_a_word_document_is_markdown_with_its_headings(tmp_path: Path, manual_docx: bytes) -> None:
    assert text_of(tmp_path, "manual.docx", manual_docx) == (
        "# Air cleaner\n\nThe fan has code 107.\n\n## Care\n\nChange it weekly."
    )


def test_a_page_is_what_it_says_without_what_is_around_it(tmp_path: Path) -> None:
    assert text_of(tmp_path, "page.html", PAGE.encode()) == (
        "# Filter\n\nChange the **filter** every [week](https://x.example/w),\nsee below.\n\n"
        "| Part | Code |\n| --- | --- |\n| fan_1 | *107* |\n\n* one\n* two\n\n```\n# no heading\nx = 1\n```"
    )
    bare = "<p>Straße</p><aside>Advertisement</aside>".encode("latin-1")
    page = b'<html><head><meta charset="iso-8859-1"></head><body>' + bare
    assert text_of(tmp_path, "old.htm", page) == "Straße"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("# Überschrift\n".encode(), "# Überschrift\n"),
        ("\ufeffwith a mark".encode(), "with a mark"),
        ("from Windows".encode("utf-16"), "from Windows"),
        (b"<html>in a text</html>", "<html>in a text</html>"),
    ],
)
def test_text_is_taken_as_it_is(tmp_path: Path, data: bytes, text: str) -> None:
    assert text_of(tmp_path, "a.txt", data) == text


def test_what_holds_no_text_is_passed_over_in_a_folder_and_an_error_where_it_was_named(tmp_path: Path) -> None:
    for name, data, word, told in (
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "binary", "neither text nor"),
        ("a.xlsx", b"PK\x03\x04 and so on", "binary", "neither text nor"),
        ("a.txt", b"caf\xe9 ol\xe9", "not UTF-8", "byte 0xe9 at offset 3"),
        ("late.txt", b"a" * kinds.HEAD_BYTES + b"\xff", "not UTF-8", "byte 0xff"),
        ("empty.md", b" \n", "empty", "is empty"),
    ):
        assert text_of(tmp_path, name, data, given=False) == Skipped(str(tmp_path / name), word)
        assert told in failure(tmp_path, name, data)


def test_documents_that_cannot_be_read_say_why(tmp_path: Path, manual_pdf: bytes, manual_docx: bytes) -> None:
    for name, data, told in (
        ("a.pdf", manual_pdf[:200], "a damaged PDF"),
        ("scan.pdf", pdf(""), "recognised first (OCR)"),
        ("a.docx", manual_docx[:300], "a damaged DOCX"),
        ("a.docx", zipped("other.xml", b"<a/>"), "it is damaged"),
        ("a.docx", zipped("word/document.xml", b"<a>"), "it is damaged"),
        ("absent", b"", "is empty"),
    ):
        assert told in failure(tmp_path, name, data)
    with pytest.raises(UsageError, match="cannot read"):
        read.read(Source(tmp_path / "not here", "a"))
    with pytest.raises(UsageError, match="cannot read"):
        read.read(Source(tmp_path, "a"))


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, manual_pdf: bytes, monkeypatch: Any) -> None:
    (tmp_path / "pypdfium2.py").write_text("raise ImportError('no module', name='pypdfium2')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(converter.__file__).parents[2]}")
    assert failure(tmp_path, "a.pdf", manual_pdf).endswith("takes pypdfium2: pip install 'preread[documents]'")


def test_text_and_source_need_no_extra_and_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert text_of(tmp_path, "main.py", b"x = 1\n") == "x = 1\n"


@pytest.mark.parametrize(("limit", "most"), [("_MEMORY_BYTES", 128 * 2**20), ("_CPU_S", 1)])
def test_what_takes_too_much_memory_or_time_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """Many elements in a zip of some KB: what parses it takes much more memory, and seconds."""
    monkeypatch.setattr(read, limit, most)
    bomb = zipped("word/document.xml", b"<a>" + b"<b/>" * 2**19 + b"</a>")
    assert "memory to convert, or is damaged" in failure(tmp_path, "bomb.docx", bomb)


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", b"<a/>")
        archive.infolist()[0].file_size = 2**29
    assert "unpacks to more than 256 MiB" in failure(tmp_path, "bomb.docx", out.getvalue())


def test_what_takes_too_long_is_ended(tmp_path: Path, manual_pdf: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_WALL_S", 0.01)
    assert "processor time" in failure(tmp_path, "a.pdf", manual_pdf)


def test_too_large_a_document_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MOST_BYTES", 10)
    assert "more than 0" in failure(tmp_path, "a.pdf", b"%PDF-" + b"x" * 10)
    monkeypatch.setattr(read, "MOST_TEXT_BYTES", 5)
    assert "MiB of text" in failure(tmp_path, "a.txt", b"x" * 6)


def test_keys_are_kept_from_what_parses(tmp_path: Path, manual_pdf: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(options["env"])
        return run(*arguments, **options)

    monkeypatch.setenv("PREREAD_API_KEY", "secret")
    monkeypatch.setattr(subprocess, "run", watched)
    text_of(tmp_path, "a.pdf", manual_pdf)
    assert "PREREAD_API_KEY" not in seen[0] and "PATH" in seen[0]


def test_importing_the_reader_loads_no_library_that_parses() -> None:
    code = "import sys, preread.documents.read; print(sorted({'pypdfium2', 'mammoth', 'bs4'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
