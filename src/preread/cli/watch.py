"""`preread publish --watch`: what changes is published, until Ctrl-C. What a cloud missed it gets when it is back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preread.cli import batch
from preread.cli.batch import Cloud
from preread.cli.terminal import note, say
from preread.documents import names, watch
from preread.documents.find import Found, Source, find, is_url
from preread.documents.plan import plan
from preread.documents.watch import Stamp
from preread.errors import CorruptData, Overloaded, RemoteError, TransportError, UsageError


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


def keep_in_step(given: Sequence[str], prefix: str, to: Cloud, *, cut: bool, remove: bool, again: bool) -> None:
    """Publish what is found, and then whatever changes. Ends by KeyboardInterrupt only.

    Args:
        given, prefix: as for `find`; no addresses.
        to: the cloud.
        cut: whether what does not fit is cut.
        remove: whether contexts are removed whose names begin with `prefix` and that no document has.
        again: whether all is published at the start, also what is published as it is.

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
            _round(found, prefix if remove else "", to, seen, cut=cut, again=again)
            if told:
                note("back in step")
            failures, told, again = 0, "", False
        except (UsageError, TransportError, RemoteError, CorruptData, Overloaded) as error:
            if str(error) != told:
                note(f"{error}; trying again")
            failures, told, looked_s = failures + 1, str(error), 0.0
            seen.done.clear()  # who was away may have lost something: all is compared again, which costs little
        time.sleep(watch.pause_s(looked_s, failures))


def _round(found: Found, below: str, to: Cloud, seen: _Seen, *, cut: bool, again: bool) -> None:
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
    made, skipped = batch.drafts([sources[place] for place in due], to, cut=cut, again=again)
    if first:
        batch.tell_skipped([*found.skipped, *skipped])
    published = to.names()
    documents = [draft.document for draft in made]
    held = [name for place in now.keys() - set(due) for name in _held(sources[place], seen, published)]
    steps = plan(documents, published, again=again, removed_below=below if now else "", held=held)
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


def _held(source: Source, seen: _Seen, published: set[str]) -> tuple[str, ...]:
    """Names that a document has which is not read in this round: those that it had, or all that it may have."""
    assert isinstance(source.place, Path)
    own = seen.names.get(source.place)
    return (source.name, *names.parts_of(source.name, published)) if own is None else own


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
