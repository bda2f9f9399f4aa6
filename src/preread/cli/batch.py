"""Publishing documents that were read and counted: what is to happen to each is told, and done, one line each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from preread.cli.drafts import Cloud, Draft
from preread.cli.patience import patiently
from preread.cli.terminal import FIT_STAGE, note, print_table, say, token_progress
from preread.cloud.events import Published
from preread.documents.find import Skipped
from preread.documents.plan import Action, Step, too_long
from preread.errors import RemoteError, UsageError

STAGES: Final = {
    "fit": FIT_STAGE,
    "read": "reading with the large model",
    "measure": "measuring what that does",
    "wait": "waiting: somebody else publishes the same",
}
_TOO_LONG: Final = "too long"
_SHOWN_OF_A_KIND: Final = 3


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was taken; `published`: what came of it; `error`: why nothing did."""

    step: Step
    published: Published | None = None
    error: UsageError | RemoteError | None = None


def publish_all(steps: Sequence[Step], made: Sequence[Draft], cloud: Cloud) -> Iterator[Done]:
    """Take the steps one after the other, and tell each when it is taken; what fails is told as refused.

    Raises:
        TransportError, Unavailable, Overloaded: the cloud cannot be reached, or was waited for in vain; what was done
            is done.
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
        Unavailable, Overloaded: it was waited for in vain.
    """
    whose = f", {draft.document.name}" if brief else ""

    def publish() -> Published:
        with token_progress(brief=brief) as report:
            for event in cloud.publish(draft):
                if isinstance(event, Published):
                    return event
                if event.stage == "queue":
                    report(waiting(event.total - event.done) + whose, 0, None)
                else:
                    report(STAGES.get(event.stage, event.stage) + whose, event.done, event.total)
        raise RemoteError(f"cloud {cloud.url} ended without having published: look at its log")

    return patiently(publish)


def waiting(ahead: int) -> str:
    """What is told of the place in the cloud's queue."""
    if not ahead:
        return "its turn has come"
    return f"waiting: {ahead} document{'s are' if ahead > 1 else ' is'} published before this one"


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
    words = [_word(step) for step in steps]
    counts = {word: words.count(word) for word in (*_WORDS.values(), _TOO_LONG)}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing to publish"


def _word(step: Step) -> str:
    refused = step.document if step.action == "refuse" else None
    return _TOO_LONG if refused is not None and too_long(refused) else _WORDS[step.action]


_WORDS: Final[dict[Action, str]] = {
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
    return step.name, count, _word(step), "" if document is None else document.shown


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
