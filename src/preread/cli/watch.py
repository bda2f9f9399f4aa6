"""`preread publish --watch`: what changes is published, until Ctrl-C. What a cloud missed it gets when it is back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preread.cli import batch
from preread.cli.drafts import Cloud, Wishes, drafts
from preread.cli.terminal import note, say
from preread.documents import names, watch
from preread.documents.find import Found, Source, find, is_url
from preread.documents.plan import plan
from preread.documents.watch import Stamp
from preread.errors import CorruptData, Overloaded, RemoteError, TransportError, Unavailable, UsageError


@dataclass(slots=True)
class _Seen:
    """What was there at the last look, and what was done with it: the names of each document's contexts.

    Attributes:
        told: whether a whole round was told of.
    """

    told: bool = False
    before: dict[Path, Stamp] | None = None
    done: dict[Path, Stamp] = field(default_factory=dict)
    names: dict[Path, tuple[str, ...]] = field(default_factory=dict)


def keep_in_step(given: Sequence[str], prefix: str, to: Cloud, wishes: Wishes) -> None:
    """Publish what is found, and then whatever changes. Ends by KeyboardInterrupt only.

    Args:
        given, prefix: as for `find`; no addresses.
        to: the cloud.
        wishes: what is to be done; `again` is meant for the start.

    Raises:
        UsageError: there is nothing of such a name at the start.
    """
    if any(map(is_url, given)):
        raise UsageError("--watch looks at files and folders; publish an address without it")
    find(given, prefix)
    seen, failures, told = _Seen(), 0, ""
    while True:
        began = time.monotonic()
        try:
            found = find(given, prefix)
            looked_s = time.monotonic() - began
            _round(found, to, wishes, seen)
            if told:
                note("back in step")
            failures, told, wishes = 0, "", replace(wishes, again=False)
        except (UsageError, TransportError, RemoteError, CorruptData, Overloaded, Unavailable) as error:
            if str(error) != told:
                note(f"{error}; trying again")
            failures, told, looked_s = failures + 1, str(error), 0.0
            seen.done.clear()  # who was away may have lost something: all is compared again, which costs little
        time.sleep(watch.pause_s(looked_s, failures))


def _round(found: Found, to: Cloud, wishes: Wishes, seen: _Seen) -> None:
    """One look, and what follows from it. After a failure in the middle all that was due is due again.

    Raises:
        TransportError, RemoteError, CorruptData: the cloud cannot be reached, or failed.
    """
    first = not seen.told
    sources = {source.place: source for source in found.sources if isinstance(source.place, Path)}
    now = {place: stamp for place in sources if (stamp := _stamp(place)) is not None}
    due, seen.before = watch.due(now, seen.before, seen.done), now
    gone = seen.names.keys() - now.keys()
    if not (due or gone or first):
        return
    for place in gone:
        seen.done.pop(place, None)
        del seen.names[place]
    made, skipped = drafts([sources[place] for place in due], to, wishes)
    if first:
        batch.tell_skipped([*found.skipped, *skipped])
    published = to.names()
    documents = [draft.document for draft in made]
    held = [name for place in now.keys() - set(due) for name in _held(place, sources[place], seen, published)]
    below = wishes.removed_below if now else ""
    steps = plan(documents, published, again=wishes.again, removed_below=below, held=held)
    failed: RemoteError | None = None
    for done in batch.publish_all(steps, made, to):
        if isinstance(done.error, RemoteError):
            failed = failed or done.error
        else:
            batch.tell(done)
    if failed is not None:
        raise failed
    if first:
        say(f"{batch.summary(steps)}; watching, Ctrl-C ends it")
        seen.told = True
    for place in due:
        seen.done[place] = now[place]
        own = sources[place].name
        seen.names[place] = tuple(one.name for one in documents if one.name in (own, *names.parts_of(own, [one.name])))


def _held(place: Path, source: Source, seen: _Seen, published: set[str]) -> tuple[str, ...]:
    """Names that a document has which is not read in this round: those that it had, or all that it may have."""
    own = seen.names.get(place)
    return (source.name, *names.parts_of(source.name, published)) if own is None else own


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
