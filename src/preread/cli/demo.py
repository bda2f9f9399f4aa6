"""`preread demo`: see it work."""

from pathlib import Path
from typing import Annotated, Final

import typer

from preread.cli import arguments, options
from preread.engine.registry import DEFAULT

_WIDTH: Final = 118


def demo(
    model: options.Model = DEFAULT,
    mbps: Annotated[float, typer.Option(min=0, help="Rate of the emulated link, Mbit/s.")] = 100,
    rtt_ms: Annotated[float, typer.Option("--rtt-ms", min=0, help="Its round trip, milliseconds.")] = 20,
    rung: Annotated[str, typer.Option("--rung", help="Rungs to stream, separated by commas.")] = "lossless,q8,q4",
    document: Annotated[
        Path | None, typer.Option("--document", help="A text; by default a machine's handbook.")
    ] = None,
    question: Annotated[str | None, typer.Option("--question", help="What to ask about it.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1)] = 48,
) -> None:
    """Show it all on this machine: a cloud, an edge, an emulated link, one question answered both ways."""
    from rich.console import Console

    from preread import demo as story

    path = options.pulled(model)
    asked = question or (story.QUESTION if document is None else "What is this document about?")
    chosen = story.Options(
        options.shown_name(model, path), path, mbps, rtt_ms, arguments.rung_names(rung), document, asked, max_tokens
    )
    story.run(chosen, Console(width=_WIDTH))
