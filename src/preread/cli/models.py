"""`preread models`: which models are known, which are here, and bringing one in."""

from typing import Annotated

import typer

from preread.cli import options
from preread.cli.terminal import print_json, print_table, say, size
from preread.engine.download import installed

app = typer.Typer(help="List and fetch models.", no_args_is_help=True)


@app.command("ls")
def list_models(json: options.Json = False) -> None:
    """List the models that are known by name, and those that were fetched from the hub."""
    found = installed()
    if json:
        print_json(
            [
                {
                    "name": model.name,
                    "bytes": model.size_bytes,
                    "licence": model.licence,
                    "present": model.present,
                    "path": str(model.path),
                }
                for model in found
            ]
        )
        return
    print_table(
        ("NAME", "SIZE", "LICENCE", "HERE"),
        [
            (
                model.name,
                "?" if model.size_bytes is None else size(model.size_bytes),
                model.licence,
                str(model.path) if model.present else "no",
            )
            for model in found
        ],
    )


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `preread models ls`, or hf:user/repo/file.")],
) -> None:
    """Fetch a model, if it is not here, and print where it is."""
    say(str(options.pulled(name)))
