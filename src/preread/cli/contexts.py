"""`preread publish` and `preread contexts`: what a cloud has read, and what it is to read."""

import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import typer

from preread import loop
from preread.cli import keys, options
from preread.cli.terminal import (
    FIT_STAGE,
    QUALITY_HEADINGS,
    print_json,
    print_table,
    quality_cells,
    say,
    size,
    token_progress,
)
from preread.cloud.events import Mode
from preread.errors import RemoteError, UnknownContext, UsageError
from preread.values import Form
from preread.wire import catalogue as catalogues
from preread.wire import manifest as manifests
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.manifest import Manifest

if TYPE_CHECKING:
    from preread.cloud.events import Published

app = typer.Typer(help="List, show and remove published contexts.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a published context.")]
Style = Literal["auto", "chat", "text"]
_STAGES: Final = {
    "queue": "waiting for documents that came before",
    "fit": FIT_STAGE,
    "read": "reading with the large model",
    "measure": "measuring what that does",
}


def publish(
    cloud: options.Cloud,
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Document in UTF-8; -: standard input.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What to call it; by default the file's stem.")
    ] = None,
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
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """Have a cloud read a document, so that edges can ask questions about it."""
    form = style
    if (file is None) == (system is None):
        raise UsageError("name a FILE to publish, or give a system prompt with --system TEXT")
    if system is not None:
        if tokens or style == "text":
            raise UsageError("--system publishes a chat's system prompt: leave --tokens and --as text away")
        form = "chat"
    if name is None and (file is None or file == "-"):
        raise UsageError("say with --name what to call the context")
    key = keys.own(api_key, api_key_file, cloud)
    text = _text(file) if file is not None else system
    if not text or not text.strip():
        raise UsageError(f"{_shown(file)} is empty: there is nothing to publish")
    ids = _ids(text, _shown(file)) if tokens else None
    called = unicodedata.normalize("NFC", name or Path(file or "").stem)  # file names of macOS are not
    done = _publish(cloud, called, None if tokens else text, ids, form, mode, key)
    if json:
        print_json(_published_json(done))
        return
    entry = done.entry
    for note in done.notes:
        say(note)
    how = entry.form if done.mode == "exact" else f"{entry.form}, {done.mode}"
    say(f"published {entry.name!r} ({how}): {entry.token_count:,} tokens in {done.seconds:.1f} s")
    print_table(
        ("RUNG", "ON TOP OF", "SIZE", "PER TOKEN"),
        [
            (rung, done.bases.get(rung, ""), size(count), size(count / entry.token_count))
            for rung, count in done.rung_bytes.items()
        ],
    )


def _publish(
    cloud: str,
    name: str,
    text: str | None,
    ids: list[int] | None,
    form: Form | Literal["auto"],
    mode: Mode,
    api_key: str | None,
) -> "Published":
    from preread.cloud.client import publish as publish_at
    from preread.cloud.events import Published

    with token_progress() as report:
        for event in publish_at(
            cloud, name, text=text, tokens=ids, form=form, mode=mode, api_key=api_key, via=options.via()
        ):
            if isinstance(event, Published):
                return event
            report(_STAGES.get(event.stage, event.stage), event.done, event.total)
    raise RemoteError(f"cloud {cloud} ended without having published: look at its log")


def _shown(file: str | None) -> str:
    return "--system" if file is None else "standard input" if file == "-" else file


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{_shown(file)} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} begins no character; "
            "convert it, for example with iconv"
        ) from error


def _ids(text: str, shown: str) -> list[int]:
    try:
        if text.lstrip().startswith("["):
            return msgspec.json.decode(text, type=list[int])
        return [int(word) for word in text.split()]
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"{shown} holds no token ids: {error}") from error


@app.command("ls")
def list_contexts(
    cloud: options.Cloud,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """List what a cloud has published."""
    from preread.cloud.client import catalogue

    key = keys.own(api_key, api_key_file, cloud)
    entries = sorted(catalogue(cloud, api_key=key, via=options.via()).contexts, key=lambda entry: entry.name)
    if json:
        print_json([_entry_json(entry) for entry in entries])
        return
    print_table(
        ("NAME", "TOKENS", "FORM", "MODEL", "ID"),
        [(entry.name, f"{entry.token_count:,}", entry.form, entry.model, entry.context[:12]) for entry in entries],
    )


@app.command()
def show(
    name: Name,
    cloud: options.Cloud,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """Show what a context is made of, and how large it is on the wire."""
    entry, manifest = loop.run(_described(name, cloud, keys.own(api_key, api_key_file, cloud)))
    sizes = {rung.name: sum(cell.size_bytes for row in rung.segments for cell in row) for rung in manifest.rungs}
    if json:
        bases = {rung.name: rung.base for rung in manifest.rungs if rung.base}
        print_json(_entry_json(entry) | {"origin": manifest.origin, "bytes": sizes, "on_top_of": bases})
        return
    shape, origin = manifest.model.geometry, manifest.origin
    say(f"name      {entry.name}")
    say(f"id        {entry.context}")
    say(f"form      {entry.form}")
    say(f"tokens    {entry.token_count:,}")
    say(f"model     {entry.model}: {shape.layers} layers, {shape.kv_heads} KV heads of {shape.head_dim}")
    say(f"made by   {origin.software}, {origin.engine}")
    say(f"read      {origin.mode}")
    say(f"segments  {len(manifest.chunks)} chunks × {len(manifest.groups)} layer groups for each rung")
    say()
    print_table(
        ("RUNG", "ON TOP OF", "CODEC", "SIZE", "PER TOKEN", *QUALITY_HEADINGS),
        [
            (
                rung.name,
                rung.base or "",
                rung.codec,
                size(sizes[rung.name]),
                size(sizes[rung.name] / entry.token_count),
                *quality_cells(rung.name, rung.quality),
            )
            for rung in manifest.rungs
        ],
    )


@app.command("rm")
def remove(
    name: Name, cloud: options.Cloud, api_key: options.CloudKey = None, api_key_file: options.CloudKeyFile = None
) -> None:
    """Have a cloud forget a context. Edges that hold it keep it until they are asked for something else."""
    from preread.cloud.client import remove as remove_at

    remove_at(cloud, name, api_key=keys.own(api_key, api_key_file, cloud), via=options.via())
    say(f"removed {name!r}")


async def _described(name: str, cloud: str, api_key: str | None) -> tuple[Entry, Manifest]:
    from preread.store.egress import CloudLink

    async with CloudLink(cloud, api_key=api_key, via=options.via()) as link:
        found = await link.catalogue()
        listed = catalogues.loads(found[0]) if found else Catalogue()
        by_name = {entry.name: entry for entry in listed.contexts}
        if name not in by_name:
            raise UnknownContext(name, tuple(by_name))
        entry = by_name[name]
        return entry, manifests.loads(await link.get(catalogues.manifest_ref(entry)))


def _entry_json(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "id": entry.context,
        "form": entry.form,
        "tokens": entry.token_count,
        "model": entry.model,
        "fingerprint": entry.fingerprint,
    }


def _published_json(done: "Published") -> dict[str, object]:
    return _entry_json(done.entry) | {
        "bytes": done.rung_bytes,
        "on_top_of": done.bases,
        "seconds": done.seconds,
        "mode": done.mode,
        "notes": done.notes,
    }
