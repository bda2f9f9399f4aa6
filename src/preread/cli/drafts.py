"""What would be published of documents: each is read, counted by the cloud that is to have it, and cut if need be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from preread.cli.patience import patiently
from preread.cli.terminal import token_progress
from preread.cloud import client
from preread.cloud.events import Counted, Mode, Priority, Progress, Published
from preread.documents import names
from preread.documents.find import Skipped, Source
from preread.documents.plan import Document, too_long
from preread.documents.read import read
from preread.documents.split import heading, split
from preread.errors import Absent, RemoteError, TransportError, UsageError
from preread.values import Form
from preread.via import DIRECT, Via
from preread.wire.names import why_unfit

_MOST_HELD_CHARACTERS: Final = 2**28
_FULL: Final = 0.9
"""How much of a part's room its text is meant to fill: tokens are not spread evenly."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where documents are published, and how they are to be read there."""

    url: str
    api_key: str | None
    form: Form | Literal["auto"]
    mode: Mode
    via: Via = DIRECT
    priority: Priority = "interactive"
    model: str | None = None

    def count(self, draft: "Draft") -> Counted:
        return client.count(
            self.url,
            draft.document.name,
            text=draft.text,
            tokens=draft.tokens,
            form=self.form,
            mode=self.mode,
            model=self.model,
            api_key=self.api_key,
            via=self.via,
        )

    def publish(self, draft: "Draft") -> Iterator[Progress | Published]:
        return client.publish(
            self.url,
            draft.document.name,
            text=draft.text,
            tokens=draft.tokens,
            form=self.form,
            mode=self.mode,
            priority=self.priority,
            model=self.model,
            api_key=self.api_key,
            via=self.via,
        )

    def remove(self, name: str) -> None:
        client.remove(self.url, name, api_key=self.api_key, via=self.via)

    def names(self) -> set[str]:
        return {entry.name for entry in client.catalogue(self.url, api_key=self.api_key, via=self.via).contexts}


@dataclass(frozen=True, slots=True)
class Draft:
    """A document, and what would be published of it: a text, or token ids."""

    document: Document
    text: str | None = None
    tokens: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be done with several documents.

    Attributes:
        cut: what does not fit is cut into parts that do.
        again: what is published as it is, is published again.
        removed_below: contexts whose names begin so and that no document has are removed; empty: none is.
    """

    cut: bool = False
    again: bool = False
    removed_below: str = ""


def drafts(sources: Sequence[Source], cloud: Cloud, wishes: Wishes) -> tuple[list[Draft], list[Skipped]]:
    """Read and count all documents. What need not be sent is forgotten but for its count.

    Args:
        sources: where they are.
        cloud: that counts.
        wishes: what is to be done with them.

    Raises:
        UsageError: all of them are too much for one command.
        TransportError, RemoteError: the cloud cannot be asked.
    """
    made: list[Draft] = []
    skipped: list[Skipped] = []
    held = 0
    with token_progress(brief=True) as report:
        for number, source in enumerate(sources):
            report("reading documents", number, len(sources))
            try:
                text = read(source, cloud.via.proxy)
            except (UsageError, RemoteError, TransportError) as error:
                made.append(Draft(Document(source.name, source.shown, failure=str(error))))
                continue
            if isinstance(text, Skipped):
                skipped.append(text)
                continue
            for draft in counted(Draft(Document(source.name, source.shown), text), cloud, cut=wishes.cut):
                held += len(draft.text or "")
                unsent = draft.document.current and not wishes.again
                made.append(replace(draft, text=None) if unsent else draft)
            if held > _MOST_HELD_CHARACTERS:
                raise UsageError(f"more than {held >> 20} million characters: publish this folder by folder")
    return made, skipped


def counted(draft: Draft, cloud: Cloud, *, cut: bool) -> list[Draft]:
    """The document with its tokens; cut into parts that fit, if it does not and is to be cut."""
    whole = _counted(draft, cloud)
    text, name, shown = draft.text, draft.document.name, draft.document.shown
    if not cut or text is None or not too_long(whole.document):
        return [whole]
    pieces = _fitting(whole, text, cloud)
    made = []
    for number, piece in enumerate(pieces, 1):
        begins = heading(piece)[:60]
        part = f"{shown}, part {number} of {len(pieces)}{begins and f': {begins}'}"
        made.append(_counted(Draft(Document(names.of_part(name, number), part), piece), cloud))
    return made


def _fitting(draft: Draft, text: str, cloud: Cloud) -> list[str]:
    """A text that was counted, in pieces that fit."""
    told = draft.document
    if not too_long(told) or len(text) < 2:
        return [text]
    most_characters = int(len(text) * told.most_tokens / (told.tokens or 1) * _FULL)
    pieces = [piece for piece in split(text, max(1, min(most_characters, len(text) - 1))) if piece.strip()]
    found = []
    for piece in pieces:
        found += _fitting(_counted(replace(draft, text=piece), cloud), piece, cloud)
    return found


def _counted(draft: Draft, cloud: Cloud) -> Draft:
    """With what the cloud says of it; a cloud of before it could tell says nothing."""
    document = draft.document
    if why_unfit(document.name):  # the plan says so
        return draft
    try:
        told = patiently(partial(cloud.count, draft))
    except Absent:
        return draft
    except UsageError as error:
        return replace(draft, document=replace(document, failure=str(error)))
    facts = replace(
        document,
        tokens=told.token_count,
        most_tokens=told.most_tokens,
        whole=told.context is not None,
        current=told.current,
    )
    return replace(draft, document=facts)
