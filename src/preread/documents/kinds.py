"""What bytes are, by what they begin with, and what their name or server says. Pure; foreign bytes are not parsed."""

import codecs
from typing import Final, Literal

Kind = Literal["text", "html", "pdf", "docx"]

HEAD_BYTES: Final = 8192
"""What is looked at."""

_WORD: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_BOMS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def kind(head: bytes, suffix: str, media_type: str = "") -> Kind | None:
    """What a document is; None: nothing that text could be made of.

    Args:
        head: its first `HEAD_BYTES` bytes.
        suffix: of its name, such as ".html".
        media_type: that a server calls it, such as "text/html".
    """
    ending = suffix.lower()
    if b"%PDF-" in head[:1024] and not head.startswith(b"PK"):
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return "docx" if ending == ".docx" or media_type == _WORD else None
    page = media_type in _HTML or (not media_type and ending in (".html", ".htm", ".xhtml"))
    if page and (b"\0" not in head or head.startswith(_BOMS)):
        return "html"  # it says by itself how its letters are written
    return "text" if _is_text(head) else None


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with its mark, without that mark.

    Raises:
        UnicodeDecodeError: it is not.
    """
    return data.decode("utf-16" if data.startswith(_BOMS) else "utf-8").removeprefix("\ufeff")


def why_undecodable(data: bytes, error: UnicodeDecodeError) -> str:
    """What `decoded` raised, for people, after the document's name."""
    return (
        f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} begins no character; convert it, for "
        "example with iconv"
    )


def _is_text(head: bytes) -> bool:
    if head.startswith(_BOMS):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
