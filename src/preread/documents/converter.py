"""Where documents of others are parsed: a process that does nothing else, and that its limits end.

A PDF or a DOCX may be made to loop or to fill all memory, and so may libraries that read them. It gets the bytes on
standard input, and answers in JSON with a text or with why there is none. It is the one home of those libraries, which
the extra `documents` installs; none of them opens a connection or another file here.
"""

import io
import re
import resource
import sys
import zipfile
from typing import Final

import msgspec

MOST_BYTES: Final = 64 * 2**20
"""Of a document."""
MOST_TEXT_BYTES: Final = 8 * 2**20
"""As a cloud takes it."""
_MOST_PAGES: Final = 5000
_MOST_UNZIPPED_BYTES: Final = 256 * 2**20
_NO_TEXT: Final = ("script", "style", "noscript", "template", "nav", "svg", "iframe", "form", "button", "dialog")
_AROUND: Final = ("footer", "aside")
_UNSEEN: Final = '[hidden], [style*="display:none"], [style*="display: none"], a.headerlink'
_BLANK_LINES: Final = re.compile(r"\n{3,}")
_BROKEN_WORD: Final = re.compile("[\ufffe\x02]\n?|\xad\n")
"""What PDFium makes of a hyphen at the end of a line."""


class Converted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes back: a text, or why there is none."""

    text: str = ""
    failure: str = ""


class Unfit(Exception):
    """Why a document is not converted; for people, after its name."""


def pdf(data: bytes) -> str:
    """The text of a PDF's pages. Raises Unfit: it is locked, damaged, too long, or has no text."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        locked = "password" in str(error).lower()
        raise Unfit("it is locked with a password" if locked else f"it is a damaged PDF ({error})") from error
    if len(document) > _MOST_PAGES:
        raise Unfit(f"it has {len(document)} pages, more than {_MOST_PAGES}")
    pages = []
    for page in document:
        text = page.get_textpage()
        pages.append(_BROKEN_WORD.sub("", text.get_text_range().replace("\r\n", "\n")))
        text.close()
        page.close()
    if not any(map(str.strip, pages)):
        raise Unfit("it holds no text: it may be a scan, whose text has to be recognised first (OCR)")
    return "\n\n".join(page.strip() for page in pages if page.strip())


def docx(data: bytes) -> str:
    """A Word document as Markdown. Raises Unfit: it is damaged, or too large when it is unpacked."""
    import mammoth

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MOST_UNZIPPED_BYTES:
                raise Unfit(f"it unpacks to more than {_MOST_UNZIPPED_BYTES >> 20} MiB")
        made = mammoth.convert_to_html(
            io.BytesIO(data), include_embedded_style_map=False, external_file_access=False, convert_image=_no_image
        )
    except zipfile.BadZipFile as error:
        raise Unfit(f"it is a damaged DOCX ({error})") from error
    return html(made.value.encode(), "utf-8")


def html(data: bytes, charset: str = "") -> str:
    """What a page says as Markdown: without menus, scripts, pictures, and what is not shown."""
    import bs4
    from markdownify import MarkdownConverter

    page = bs4.BeautifulSoup(data, "lxml", from_encoding=charset or None)
    for tag in [*page.find_all(_NO_TEXT), *page.select(_UNSEEN)]:
        tag.decompose()
    inner = page.select("main, [role=main]") or page.select("article")
    body = inner[0] if len(inner) == 1 else page.body or page
    if body not in inner:
        for tag in body.find_all(_AROUND):
            tag.decompose()
    for link in body.find_all("a"):
        if not str(link.get("href", "")).startswith(("http://", "https://")):
            link.unwrap()  # where a link leads within its site tells a reader nothing
    markdown = MarkdownConverter(
        heading_style="ATX", strip=["img"], escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    text = markdown.convert_soup(body)
    lines = "\n".join(line.rstrip() for line in text.replace("\xa0", " ").splitlines())
    return _BLANK_LINES.sub("\n\n", lines).strip()


def _no_image(image: object) -> list[object]:
    return []


def convert(kind: str, charset: str, data: bytes) -> Converted:
    """A document's text."""
    try:
        text = html(data, charset) if kind == "html" else pdf(data) if kind == "pdf" else docx(data)
    except ImportError as error:
        return Converted(failure=f"converting it takes {error.name}: pip install 'preread[documents]'")
    except Unfit as error:
        return Converted(failure=str(error))
    except RecursionError:
        return Converted(failure="it is nested too deeply")
    except MemoryError:
        raise  # a limit of this process, which ends
    except Exception as error:  # a library met what its author did not foresee
        return Converted(failure=f"it is damaged ({type(error).__name__}: {str(error)[:200]})")
    clean = text.encode(errors="replace").decode()
    if len(clean.encode()) > MOST_TEXT_BYTES:
        return Converted(failure=f"its text has more than {MOST_TEXT_BYTES >> 20} MiB: publish it in parts")
    return Converted(clean)


def main() -> None:
    """`converter KIND CHARSET MEMORY CPU`: one document from standard input, within bytes and seconds."""
    kind, charset, memory_bytes, cpu_s = sys.argv[1:5]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MOST_TEXT_BYTES, 8 * MOST_TEXT_BYTES))
    sys.stdout.buffer.write(msgspec.json.encode(convert(kind, charset, sys.stdin.buffer.read(MOST_BYTES + 1))))


if __name__ == "__main__":
    main()
