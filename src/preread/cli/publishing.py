"""`preread publish`: what a cloud is to read. One document that is named, or all that is found."""

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import typer

from preread.cli import keys, options
from preread.cli.contexts import entry_json
from preread.cli.terminal import note, print_json, print_table, say, size
from preread.cloud.events import Mode, Priority
from preread.documents import kinds
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.cli.batch import Done
    from preread.cli.drafts import Cloud, Draft, Wishes
    from preread.cloud.events import Published
    from preread.documents.find import Skipped, Source
    from preread.documents.plan import Step

Style = Literal["auto", "chat", "text"]
_STDIN: Final = "-"


def publish(
    cloud: options.Cloud,
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|FOLDER|PATTERN|URL…",
            help="Markdown, text, source code; with the extra `documents` also HTML, PDF and DOCX. -: standard input.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What to call it; by default as its file is called.")
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="What all names begin with that are made from files.")
    ] = "",
    style: Annotated[
        Style,
        typer.Option("--as", help="chat: the system prompt of chats; text: a bare prefix; auto: as the model can."),
    ] = "auto",
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="Publish this as the system prompt of chats.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="FILE holds token ids: a JSON list, or separated by white space.")
    ] = False,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="exact: as the model itself reads; mapped: as a large one does; guided: with something of that; "
            "taught: what a large one taught, if its gate lets it; auto: the best of these",
        ),
    ] = "exact",
    priority: Annotated[
        Priority, typer.Option("--priority", help="interactive: somebody waits; background: when nobody does.")
    ] = "interactive",
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Which one reads it, where the cloud runs several.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show what would be published, and how many tokens it has.")
    ] = False,
    split: Annotated[
        bool, typer.Option("--split", help="Cut what does not fit, at its headings, into NAME.1, NAME.2, …")
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Publish all together as one context, each under its file's name.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Of several documents, publish also those that are published as they are.")
    ] = False,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Remove contexts whose names begin with --prefix and that no document has."),
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and publish what changes, until Ctrl-C.")] = False,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """Have a cloud read documents, so that edges can ask questions about them."""
    from preread.cli.batch import tell_skipped
    from preread.cli.drafts import Cloud, Wishes, counted
    from preread.cli.watch import keep_in_step
    from preread.documents.find import find

    paths = given or []
    _check_given(paths, name, system, style, tokens=tokens)
    typed = system is not None or tokens or _STDIN in paths
    if typed and (join or remove or watch or prefix):
        raise UsageError("--join, --remove, --watch and --prefix are for files: leave them away")
    _check_chosen(name, prefix, join=join, remove=remove, watch=watch, dry_run=dry_run, json=json)
    key = keys.own(api_key, api_key_file, cloud)
    to = Cloud(cloud, key, "chat" if system is not None else style, mode, options.via(), priority, model)
    called = None if name is None else unicodedata.normalize("NFC", name)
    wishes = Wishes(split, again, prefix if remove else "")
    if watch:
        keep_in_step(paths, prefix, to, wishes)
        return
    if typed:
        alone: Draft | None = _typed(paths[0] if paths else None, system, called, tokens=tokens)
        sources: tuple[Source, ...] = ()
        skipped: list[Skipped] = []
    else:
        found = find(paths, prefix)
        tell_skipped(found.skipped)
        skipped = list(found.skipped)
        sources = _called(found.sources, paths, called, join=join)
        alone = _read_alone(sources, called, join=join, planned=split or dry_run or remove)
    if alone is not None and not (split or dry_run):
        _publish_alone(alone, to, json=json)
        return
    made = counted(alone, to, cut=split) if alone is not None else None
    _publish_several(made, sources, skipped, to, wishes, dry_run=dry_run, json=json)


def _check_given(paths: Sequence[str], name: str | None, system: str | None, style: Style, *, tokens: bool) -> None:
    if bool(paths) == (system is not None):
        raise UsageError("name a FILE to publish, or give a system prompt with --system TEXT")
    if system is not None and (tokens or style == "text"):
        raise UsageError("--system publishes a chat's system prompt: leave --tokens and --as text away")
    if (tokens or _STDIN in paths) and len(paths) > 1:
        raise UsageError("standard input and --tokens are for one document: give it alone")
    if name is None and (system is not None or _STDIN in paths):
        raise UsageError("say with --name what to call the context")


def _check_chosen(
    name: str | None, prefix: str, *, join: bool, remove: bool, watch: bool, dry_run: bool, json: bool
) -> None:
    if name is not None and prefix:
        raise UsageError("--prefix is for names that are made from files: leave it away, or --name")
    if join and (name is None or remove or watch):
        raise UsageError(
            "--join makes one context: say with --name what to call it, and leave --remove and --watch away"
        )
    if remove and not prefix:
        raise UsageError("--remove needs --prefix, which says whose contexts may be removed")
    if watch and (dry_run or json or name is not None):
        raise UsageError("--watch goes on and on: leave --dry-run, --json and --name away")


def _typed(file: str | None, system: str | None, name: str | None, *, tokens: bool) -> "Draft":
    """What comes from standard input, from the command line, or as token ids."""
    from preread.cli.drafts import Draft
    from preread.documents.plan import Document

    shown = "--system" if file is None else "standard input" if file == _STDIN else file
    text = _text(file, shown) if file is not None else system
    if not text or not text.strip():
        raise UsageError(f"{shown} is empty: there is nothing to publish")
    document = Document(name or unicodedata.normalize("NFC", Path(file or "").stem), shown)
    return Draft(document, tokens=_ids(text, shown)) if tokens else Draft(document, text)


def _called(
    sources: "tuple[Source, ...]", paths: Sequence[str], name: str | None, *, join: bool
) -> "tuple[Source, ...]":
    """The documents, with the name that was given for one."""
    if not sources:
        raise UsageError(f"{', '.join(paths)}: there is nothing to publish")
    if name is None or join:
        return sources
    if len(sources) > 1:
        raise UsageError(f"--name is for one document, and here are {len(sources)}: --join makes them one")
    return (replace(sources[0], name=name),)


def _read_alone(sources: "tuple[Source, ...]", name: str | None, *, join: bool, planned: bool) -> "Draft | None":
    """What is published as one: all documents together, or the one that was named; None: it is `planned` first."""
    from preread.cli.batch import tell_skipped
    from preread.cli.drafts import Draft
    from preread.documents.find import Skipped
    from preread.documents.plan import Document
    from preread.documents.read import read

    proxy = options.via().proxy
    if join:
        texts = [(source.shown, read(source, proxy)) for source in sources]
        tell_skipped([text for _, text in texts if isinstance(text, Skipped)])
        whole = "\n\n".join(f"# {shown}\n\n{text}" for shown, text in texts if isinstance(text, str))
        return Draft(Document(name or "", f"{len(sources)} documents"), whole)
    if len(sources) > 1 or not sources[0].given or planned:
        return None
    text = read(sources[0], proxy)
    if isinstance(text, Skipped):
        raise UsageError(f"{text.shown} is {text.why}: there is nothing to publish")
    return Draft(Document(sources[0].name, sources[0].shown), text)


def _publish_alone(draft: "Draft", to: "Cloud", *, json: bool) -> None:
    from preread.cli.batch import publish_one

    done = publish_one(draft, to)
    if json:
        print_json(_published_json(done))
        return
    entry = done.entry
    for line in done.notes:
        say(line)
    how = entry.form if done.mode == "exact" else f"{entry.form}, {done.mode}"
    say(f"published {entry.name!r} ({how}): {entry.token_count:,} tokens in {done.seconds:.1f} s")
    print_table(
        ("RUNG", "ON TOP OF", "SIZE", "PER TOKEN"),
        [
            (rung, done.bases.get(rung, ""), size(count), size(count / entry.token_count))
            for rung, count in done.rung_bytes.items()
        ],
    )


def _publish_several(
    made: "list[Draft] | None",
    sources: "tuple[Source, ...]",
    skipped: "list[Skipped]",
    to: "Cloud",
    wishes: "Wishes",
    *,
    dry_run: bool,
    json: bool,
) -> None:
    """Find out what happens to which document, and do it, or only tell. `made`: what was read already."""
    from preread.cli import batch
    from preread.cli.drafts import drafts
    from preread.documents.plan import plan

    if made is None:
        made, empty = drafts(sources, to, wishes)
        batch.tell_skipped(empty)
        skipped += empty
        if not made:
            raise UsageError("there is nothing to publish: all that was found was passed over")
    documents = [draft.document for draft in made]
    steps = plan(documents, to.names(), again=wishes.again, removed_below=wishes.removed_below)
    if any(step.document and step.document.tokens is None and step.action != "refuse" for step in steps):
        note(f"cloud {to.url} is of before it could count: nobody knows what fits, or is published already")
    done: list[Done] = []
    if dry_run and not json:
        batch.tell_plan(steps)
    elif not dry_run:
        for one in batch.publish_all(steps, made, to):
            done.append(one)
            if not json:
                batch.tell(one)
        steps = tuple(one.step for one in done)
        if not json:
            say(batch.summary(steps))
    if json:
        published = {one.step.name: one.published for one in done if one.published is not None}
        rows = [_step_json(step, published.get(step.name)) for step in steps]
        told = [{"source": one.shown, "why": one.why} for one in skipped]
        print_json({"contexts": rows, "skipped": told})
    if any(step.action == "refuse" for step in steps):
        raise typer.Exit(1)


def _text(file: str, shown: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == _STDIN else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        return kinds.decoded(data)
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} {kinds.why_undecodable(data, error)}") from error


def _ids(text: str, shown: str) -> list[int]:
    try:
        if text.lstrip().startswith("["):
            return msgspec.json.decode(text, type=list[int])
        return [int(word) for word in text.split()]
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"{shown} holds no token ids: {error}") from error


def _published_json(done: "Published") -> dict[str, object]:
    return entry_json(done.entry) | {
        "bytes": done.rung_bytes,
        "on_top_of": done.bases,
        "seconds": done.seconds,
        "mode": done.mode,
        "notes": done.notes,
    }


def _step_json(step: "Step", published: "Published | None") -> dict[str, object]:
    document = step.document
    row: dict[str, object] = {"name": step.name, "action": step.action}
    if document is not None:
        row |= {"source": document.shown, "tokens": document.tokens, "most_tokens": document.most_tokens or None}
    if step.why:
        row["why"] = step.why
    return row if published is None else row | _published_json(published)
