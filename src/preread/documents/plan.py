"""What happens to which context, by what was found and what is published. Pure: values in, values out."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from preread.documents import names
from preread.wire.names import why_unfit

Action = Literal["publish", "replace", "leave", "refuse", "remove"]


@dataclass(frozen=True, slots=True)
class Document:
    """What is known of a document before it is published.

    Attributes:
        name: of its context.
        shown: where it is from, for people.
        tokens: how many it has; None: nobody can tell.
        most_tokens: how many a context may have.
        whole: whether `tokens` is all of them; else they are at least so many.
        current: whether it is published under its name as it is.
        failure: why there is nothing to publish.
    """

    name: str
    shown: str
    tokens: int | None = None
    most_tokens: int = 0
    whole: bool = True
    current: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What is done with one name: with `document`, None where a context is removed; `why` says why it is refused."""

    action: Action
    name: str
    document: Document | None = None
    why: str = ""


def plan(
    documents: Sequence[Document],
    published: Collection[str],
    *,
    again: bool = False,
    removed_below: str = "",
    held: Collection[str] = (),
) -> tuple[Step, ...]:
    """A step for each document, in their order, then one for each context that is removed.

    Args:
        documents: what was found.
        published: names at the cloud.
        again: publish also what is published already.
        removed_below: contexts whose names begin so are removed if no document has their name; empty: none is.
        held: names that stay though none of `documents` has them.
    """
    count = Counter(document.name for document in documents)
    taken = set(held)

    def step(document: Document) -> Step:
        if why := document.failure or why_not(document):
            return Step("refuse", document.name, document, why)
        if count[document.name] > 1 or document.name in taken:
            others = [other.shown for other in documents if other.name == document.name and other != document]
            beside = f"{others[0]} too" if others else "another document too"
            return Step("refuse", document.name, document, f"{beside} would be called {document.name!r}: rename one")
        if document.current and not again:
            return Step("leave", document.name, document)
        return Step("replace" if document.name in published else "publish", document.name, document)

    steps = [step(document) for document in documents]
    return (*steps, *(Step("remove", name) for name in _removed(documents, published, removed_below, taken)))


def too_long(document: Document) -> bool:
    """Whether a document is known not to fit."""
    return document.tokens is not None and document.tokens > document.most_tokens


def why_not(document: Document) -> str | None:
    """Why a document cannot be published; None if it can."""
    if unfit := why_unfit(document.name):
        return f"{document.name[:200]!r} cannot name a context: {unfit}; rename it, or give --name"
    if document.tokens is not None and too_long(document):
        about = "" if document.whole else "at least "
        over = document.tokens - document.most_tokens
        return f"does not fit: {about}{document.tokens:,} tokens, {over:,} more than {document.most_tokens:,}"
    return None


def _removed(documents: Sequence[Document], published: Collection[str], below: str, held: Collection[str]) -> list[str]:
    if not below:
        return []
    stays = {*held, *(document.name for document in documents)}
    for document in documents:
        if document.failure is not None:  # it may have been published in parts when it could be read
            stays.update(names.parts_of(document.name, published))
    return sorted(name for name in published if name.startswith(below) and name not in stays)
