"""`preread contexts`: what a cloud has read."""

from typing import Annotated

import typer

from preread import loop
from preread.cli import keys, options
from preread.cli.layers import in_words
from preread.cli.terminal import (
    QUALITY_HEADINGS,
    print_json,
    print_table,
    quality_cells,
    say,
    size,
)
from preread.errors import UnknownContext
from preread.wire import catalogue as catalogues
from preread.wire import manifest as manifests
from preread.wire.catalogue import Catalogue, Entry
from preread.wire.manifest import Manifest

app = typer.Typer(help="List, show and remove published contexts.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a published context.")]


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
        print_json([entry_json(entry) for entry in entries])
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
    sizes = {rung.name: rung.size_bytes for rung in manifest.rungs}
    if json:
        bases = {rung.name: rung.base for rung in manifest.rungs if rung.base}
        print_json(entry_json(entry) | {"origin": manifest.origin, "bytes": sizes, "on_top_of": bases})
        return
    origin = manifest.origin
    say(f"name      {entry.name}")
    say(f"id        {entry.context}")
    say(f"form      {entry.form}")
    say(f"tokens    {entry.token_count:,}")
    say(f"model     {entry.model}: {in_words(manifest.model.layers)}")
    say(f"made by   {origin.software}, {origin.engine}")
    say(f"read      {origin.mode}")
    cut = f"{len(manifest.chunks):,} chunks and {len(manifest.groups):,} layer groups"
    say(f"segments  {len(manifest.parts):,} for each rung, in {cut}")
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


def entry_json(entry: Entry) -> dict[str, object]:
    """An entry of the catalogue as commands print it."""
    return {
        "name": entry.name,
        "id": entry.context,
        "form": entry.form,
        "tokens": entry.token_count,
        "model": entry.model,
        "fingerprint": entry.fingerprint,
    }
