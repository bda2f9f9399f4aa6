"""`preread store`: is a store whole, what may be deleted from it, and upgrading one of an older release."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread.cli.terminal import contexts, note, say, size
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.store.objects import Objects

_MOST_SHOWN: Final = 50
_TELL_EVERY_S: Final = 5.0

app = typer.Typer(help="Check a store, delete what nothing leads to, upgrade one.", no_args_is_help=True)
_Store = Annotated[str, typer.Argument(metavar="FOLDER|s3://…", help="As `preread cloud --store` takes it.")]


@app.command()
def check(
    store: _Store,
    quick: Annotated[bool, typer.Option("--quick", help="Look at sizes only; read no segment.")] = False,
) -> None:
    """See whether all that is published is there and whole. Nothing is changed; clouds may run meanwhile.

    Exit code 1: something is missing or damaged.
    """
    from preread.store import upkeep

    found = asyncio.run(upkeep.check(_opened(store), _Reporter(), quick=quick))
    for line in found.damage[:_MOST_SHOWN]:
        say(line)
    if len(found.damage) > _MOST_SHOWN:
        say(f"… and {len(found.damage) - _MOST_SHOWN} more")
    state = _state(len(found.damage), "of the right size" if quick else "whole")
    say(f"{contexts(found.contexts)}, {found.objects} objects, {size(found.size_bytes)}: {state}")
    if found.orphans:
        orphaned = size(sum(one.size_bytes for one in found.orphans))
        say(f"nothing leads to {len(found.orphans)} objects, {orphaned}: see `preread store gc --dry-run`")
    if found.damage:
        note("publish the damaged contexts again: what is damaged is then written anew")
        raise typer.Exit(1)


@app.command()
def gc(
    store: _Store,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="HOURS", help="Keep what was written since.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Delete nothing; say what would be.")] = False,
) -> None:
    """Delete objects that nothing leads to, such as those of publications that were given up. Clouds may run meanwhile.

    Objects of an interrupted publication that can be gone on with stay for seven days.
    """
    from preread.store import upkeep

    async def main() -> "upkeep.Collected":
        async with (opened := _opened(store)).held():
            return await upkeep.collect(opened, _Reporter(), young_s=older_than * 3600, dry_run=dry_run)

    gone = asyncio.run(main())
    did = "would delete" if dry_run else "deleted"
    say(f"{did} {gone.objects} objects, {size(gone.size_bytes)}, and {gone.others} records")
    if gone.kept:
        note(f"no object was looked at, since {gone.kept}: see `preread store check`")
        raise typer.Exit(1)


@app.command()
def migrate(store: _Store) -> None:
    """Upgrade a store of a release before the log of names, as the first context that is published there would."""
    from preread.store import upkeep

    async def main() -> int | None:
        async with (opened := _opened(store)).held():
            return await upkeep.upgrade(opened)

    count = asyncio.run(main())
    if count is None:
        say("this store has a log of its names already: nothing to do")
    else:
        say(f"upgraded: {contexts(count)}; older releases of preread refuse this store now")


def bench(
    server: Annotated[
        str, typer.Option(metavar="moto|ceph|azurite|s3rver", help="A service that is installed here.")
    ] = "moto",
    minutes: Annotated[float, typer.Option(min=0.05, metavar="M", help="How long.")] = 10.0,
    writers: Annotated[int, typer.Option(min=1, max=16, metavar="N", help="Clouds that publish and remove.")] = 3,
) -> None:
    """Have several clouds and a garbage collection write to one bucket whose service fails; does anything get lost?

    Exit code 1: something was half there, or is missing.
    """
    from preread.bench import bucket

    found = asyncio.run(bucket.run(server, minutes * 60, writers))
    for what, count in sorted(found.done.items()):
        say(f"{count:6} {what}")
    say(f"{found.looks:6} looks at all that is published, at most {found.most_names} contexts")
    say(f"{len(found.wrong):6} wrong")
    for line in found.wrong[:_MOST_SHOWN]:
        say(line)
    if found.wrong:
        raise typer.Exit(1)


def _opened(store: str) -> "Objects":
    """A store that is there.

    Raises:
        UsageError: it is not, or it cannot be written.
    """
    from preread.store.objects import open_store

    if "://" not in store and not Path(store).expanduser().is_dir():
        raise UsageError(f"there is no store at {store!r}: name the folder or the bucket of a cloud's --store")
    return open_store(store)


def _state(damaged: int, how: str) -> str:
    return f"all {how}" if not damaged else "1 is not as it should be" if damaged == 1 else f"{damaged} are not"


class _Reporter:
    """Says how far it is now and then."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            note(f"{done} of {total} {what}")
