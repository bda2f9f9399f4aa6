"""Publishing several documents: what is to happen to each is found out first, told, and then done, one line each."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, TypeVar

from preread.cli.terminal import FIT_STAGE, note, print_table, say, token_progress
from preread.cloud import client
from preread.cloud.events import Counted, Mode, Progress, Published
from preread.documents import names, plan
from preread.documents.find import Skipped, Source
from preread.documents.plan import Document, Step
from preread.documents.read import read
from preread.documents.split import heading, split
from preread.errors import Absent, Overloaded, RemoteError, TransportError, UsageError
from preread.values import Form
from preread.via import DIRECT, Via
from preread.wire.names import why_unfit

T = TypeVar("T")

STAGES: Final = {
    "fit": FIT_STAGE,
    "read": "reading with the large model",
    "measure": "measuring what that does",
}
_MOST_HELD_CHARACTERS: Final = 2**28
_FULL: Final = 0.9
"""How much of a part's room its text is meant to fill: tokens are not spread evenly."""
_SHOWN_OF_A_KIND: Final = 3


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where documents are published, and how they are to be read there."""

    url: str
    api_key: str | None
    form: Form | Literal["auto"]
    mode: Mode
    via: Via = DIRECT

    def count(self, draft: "Draft") -> Counted:
        return client.count(
            self.url,
            draft.document.name,
            text=draft.text,
            tokens=draft.tokens,
            form=self.form,
            mode=self.mode,
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
class Done:
    """A step that was taken; `published`: what came of it; `error`: why nothing did."""

    step: Step
    published: Published | None = None
    error: UsageError | RemoteError | None = None


def drafts(sources: Sequence[Source], cloud: Cloud, *, cut: bool, again: bool) -> tuple[list[Draft], list[Skipped]]:
    """Read and count all documents. What need not be sent is forgotten but for its count.

    Args:
        sources: where they are.
        cloud: that counts.
        cut: whether what does not fit is cut into parts that do.
        again: whether what is published already is to be sent.

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
            for draft in counted(Draft(Document(source.name, source.shown), text), cloud, cut=cut):
                held += len(draft.text or "")
                unsent = draft.document.current and not again
                made.append(replace(draft, text=None) if unsent else draft)
            if held > _MOST_HELD_CHARACTERS:
                raise UsageError(f"more than {held >> 20} million characters: publish this folder by folder")
    return made, skipped


def counted(draft: Draft, cloud: Cloud, *, cut: bool) -> list[Draft]:
    """The document with its tokens; cut into parts that fit, if it does not and is to be cut."""
    whole = _counted(draft, cloud)
    text, name, shown = draft.text, draft.document.name, draft.document.shown
    if not cut or text is None or not _too_long(whole.document):
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
    if not _too_long(told) or len(text) < 2:
        return [text]
    most_characters = int(len(text) * told.most_tokens / (told.tokens or 1) * _FULL)
    pieces = [piece for piece in split(text, max(1, min(most_characters, len(text) - 1))) if piece.strip()]
    found = []
    for piece in pieces:
        found += _fitting(_counted(replace(draft, text=piece), cloud), piece, cloud)
    return found


def _too_long(document: Document) -> bool:
    return document.tokens is not None and document.tokens > document.most_tokens


def _counted(draft: Draft, cloud: Cloud) -> Draft:
    """With what the cloud says of it; a cloud of before it could tell says nothing."""
    document = draft.document
    if why_unfit(document.name):  # the plan says so
        return draft
    try:
        told = cloud.count(draft)
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


def publish_all(steps: Sequence[Step], made: Sequence[Draft], cloud: Cloud) -> Iterator[Done]:
    """Take the steps one after the other, and tell each when it is taken; what fails is told as refused.

    Raises:
        TransportError: the cloud cannot be reached; what was done is done.
    """
    by_document = {draft.document: draft for draft in made}
    for step in steps:
        if step.action in ("publish", "replace") and step.document is not None:
            try:
                yield Done(step, publish_one(by_document[step.document], cloud, brief=True))
            except (UsageError, RemoteError) as error:
                yield Done(replace(step, action="refuse", why=str(error)), error=error)
            continue
        if step.action == "remove":
            patiently(partial(cloud.remove, step.name))
        yield Done(step)


def publish_one(draft: Draft, cloud: Cloud, *, brief: bool = False) -> Published:
    """Publish a document, and show how far it is; `brief`: as one of many.

    Raises:
        UsageError: it cannot be published.
        TransportError, RemoteError: the cloud cannot be reached, or failed.
    """

    def publish() -> Published:
        with token_progress(brief=brief) as report:
            for event in cloud.publish(draft):
                if isinstance(event, Published):
                    return event
                if event.stage == "queue":
                    report(waiting(event.total - event.done), 0, None)
                else:
                    report(STAGES.get(event.stage, event.stage), event.done, event.total)
        raise RemoteError(f"cloud {cloud.url} ended without having published: look at its log")

    return patiently(publish)


def waiting(ahead: int) -> str:
    """What is told of the place in the cloud's queue."""
    if not ahead:
        return "its turn has come"
    return f"waiting: {ahead} document{'s are' if ahead > 1 else ' is'} published before this one"


def patiently(call: Callable[[], T]) -> T:
    """What a call gives; where the cloud has too much to do, it is called again when the cloud says."""
    while True:
        try:
            return call()
        except Overloaded as error:
            note(f"{error}: again in {error.retry_after_s:.0f} s")
            time.sleep(error.retry_after_s)


def tell(done: Done) -> None:
    """A line on what was done, or on stderr on what was not."""
    step = done.step
    if done.published is not None:
        for line in done.published.notes:
            say(line)
        word = "replaced" if step.action == "replace" else "published"
        count = done.published.entry.token_count
        say(f"{word} {step.name!r}: {count:,} tokens in {done.published.seconds:.1f} s")
    elif step.action == "remove":
        say(f"removed {step.name!r}")
    elif step.action == "refuse":
        note(_refused(step))


def tell_plan(steps: Sequence[Step]) -> None:
    """A table of what would be done."""
    print_table(("NAME", "TOKENS", "WHAT", "FROM"), [_row(step) for step in steps])
    say(summary(steps))
    for step in steps:
        if step.action == "refuse":
            note(_refused(step))


def summary(steps: Sequence[Step]) -> str:
    """How many of what."""
    counts = {word: sum(_WORDS[step.action] == word for step in steps) for word in _WORDS.values()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing to publish"


_WORDS: Final[dict[plan.Action, str]] = {
    "publish": "new",
    "replace": "changed",
    "leave": "as published",
    "remove": "removed",
    "refuse": "refused",
}


def _row(step: Step) -> tuple[str, str, str, str]:
    document = step.document
    tokens = document.tokens if document is not None else None
    about = "" if document is None or document.whole else "≥ "
    count = "" if tokens is None else f"{about}{tokens:,}"
    return step.name, count, _WORDS[step.action], "" if document is None else document.shown


def _refused(step: Step) -> str:
    shown = step.document.shown if step.document is not None else step.name
    return step.why if step.why.startswith(shown) else f"{shown}: {step.why}"


def tell_skipped(skipped: Sequence[Skipped]) -> None:
    """What was passed over, by why, on stderr."""
    by_why: dict[str, list[str]] = {}
    for one in skipped:
        by_why.setdefault(one.why, []).append(one.shown)
    for why, shown in by_why.items():
        more = f" and {len(shown) - _SHOWN_OF_A_KIND} more" if len(shown) > _SHOWN_OF_A_KIND else ""
        note(f"passed over, {why}: {', '.join(shown[:_SHOWN_OF_A_KIND])}{more}")
