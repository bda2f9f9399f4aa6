"""`preread fit`: what a model needs once, learned from the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread import loop
from preread.cli import arguments, options
from preread.cli.terminal import ALIGN_STAGE, FIT_STAGE, Report, print_json, print_table, say, size, token_progress
from preread.engine.registry import DEFAULT
from preread.errors import UsageError
from preread.fit import files

if TYPE_CHECKING:
    from preread.cloud.profiles import Stored
    from preread.codec.profile import Profile
    from preread.engine.llamacpp import LlamaCpp
    from preread.fit.align import Alignment
    from preread.fit.map import Fit
    from preread.fit.text import Text
    from preread.store.objects import Objects

_MAP_STAGES: Final = {
    "align": "aligning layers",
    "read": ALIGN_STAGE,
    "map": "mapping layers",
    "measure": "measuring what it costs",
}

app = typer.Typer(help="Learn once what a model needs to be streamed well.", no_args_is_help=True)


@app.command()
def codec(
    model: options.Model = DEFAULT,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to fit to, in UTF-8; may be repeated; by default built in."),
    ] = None,
    store: Annotated[
        str, typer.Option(metavar="FOLDER|s3://…", help="The cloud's store, which the profile is put into.")
    ] = "./store",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the profile to this file too.", dir_okay=False)
    ] = None,
    threads: options.Threads = 0,
) -> None:
    """Fit the codec to a model, and measure what each rung costs. Takes minutes.

    A cloud does this by itself before it publishes for the first time with a model. From then on this model's contexts
    are published with the newest profile; contexts that were published before keep theirs. No cloud may run on the
    store meanwhile.
    """
    from preread.cli.engine import engine_for
    from preread.fit.text import calibration, read
    from preread.store.objects import open_store

    source = read(text) if text else calibration()
    objects = open_store(store)
    if out is not None:
        arguments.check_folder(out)
    with engine_for(model, 0, threads) as engine, token_progress() as report:
        profile, kept = loop.run(_fitted(engine, source, objects, out, report))
    sized = f"{size(kept.ref.size_bytes)}, profile {kept.ref.id[:12]}…"
    say(f"fitted to {profile.calibration}: {sized} in store {store}")
    _print_ladder(profile)


async def _fitted(
    engine: "LlamaCpp", text: "Text", objects: "Objects", out: Path | None, report: Report
) -> "tuple[Profile, Stored]":
    """The fitted profile, written to `out` if that is given, and where it was put; nobody else may use the store."""
    from preread.cloud.profiles import fitted, keep
    from preread.codec import profile_bytes as profiles
    from preread.engine.worker import Worker

    worker = Worker()
    try:
        async with objects.held():
            profile = await fitted(engine, worker, text, lambda _, done, total: report(FIT_STAGE, done, total))
            if out is not None:
                files.write(out, profiles.dumps(profile))
            return profile, await keep(objects, profile)
    finally:
        worker.close()


@app.command("align")
def align(
    llm: Annotated[
        str, typer.Option("--llm", metavar="NAME|PATH|hf:…", help="The large model, named as with --model elsewhere.")
    ],
    slm: Annotated[str, typer.Option("--slm", metavar="NAME|PATH|hf:…", help="The small one.")] = DEFAULT,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to read, in UTF-8; may be repeated; by default built in."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the matrix and the path: .png, .svg or .pdf.")
    ] = None,
    threads: options.Threads = 0,
) -> None:
    """Find which layers of a large model keep what a small model's layers keep of a text.

    Both read the same windows. Layers are compared by centred kernel alignment of K (without position) and V; the map
    is the monotone one with the greatest sum. The last line is JSON.
    """
    from preread.cli.engine import engine_for
    from preread.fit.align import align as fit_align
    from preread.fit.text import calibration, read

    source = read(text) if text else calibration()
    if plot is not None:
        from preread.bench.plot import check

        check(plot)
    with (
        engine_for(slm, 0, threads) as small,
        engine_for(llm, 0, threads, streamed=False) as large,
        token_progress() as report,
    ):
        found = fit_align(small, large, source, lambda _, done, total: report(ALIGN_STAGE, done, total))
    if plot is not None:
        from preread.bench.plot import draw_alignment

        draw_alignment(found, plot)
    _print_path(found)


@app.command("map")
def map_layers(
    llm: Annotated[
        str, typer.Option("--llm", metavar="NAME|PATH|hf:…", help="The large model, named as with --model elsewhere.")
    ],
    slm: Annotated[str, typer.Option("--slm", metavar="NAME|PATH|hf:…", help="The small one.")] = DEFAULT,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="LIST", help="Layers below these stay exact; by default half of them."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to fit to, in UTF-8; may be repeated; by default built in."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to write the mapping; {split} in it is the split.")
    ] = Path("mapping-{split}.npz"),
    windows: Annotated[int, typer.Option(min=8, help="Pieces of 512 tokens to read, if the text has so many.")] = 64,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep here what was read: a fit that is ended goes on.", file_okay=False),
    ] = None,
    threads: options.Threads = 0,
) -> None:
    """Learn what a small model would keep of a text from what a large one keeps of it. Takes minutes.

    Both read the same windows; each layer from the split on is a linear map of aligned layers. What reading mapped KV
    costs is measured on windows that nothing was fitted on. The last line is JSON.
    """
    from preread.align.mapping_bytes import Kept, dumps
    from preread.cli.engine import engine_for
    from preread.fit.map import fit_mappings
    from preread.fit.text import calibration, read

    source = read(text) if text else calibration()
    arguments.check_folder(out)
    with (
        engine_for(slm, 0, threads) as small,
        engine_for(llm, 0, threads, streamed=False) as large,
        token_progress() as report,
    ):
        layers = small.spec.geometry.layers
        splits = _splits(split, layers) if split else (layers // 2,)
        if len(splits) > 1 and "{split}" not in out.name:
            raise UsageError(f"{out} is one file for {len(splits)} mappings: write {{split}} into its name")
        folder = keep and keep.expanduser()
        found = fit_mappings(
            small, large, source, splits, lambda stage, *at: report(_MAP_STAGES[stage], *at), windows, folder
        )
        for fit in found:
            quality = fit.held_out.quality
            kept = Kept(
                fit.mapping, small.spec.fingerprint, large.spec.fingerprint, small.spec.geometry, source.label,
                quality.dloss, quality.kl, quality.tokens,
            )  # fmt: skip
            files.write(Path(str(out).replace("{split}", str(fit.mapping.split))), dumps(kept))
    _print_mappings(small.spec.name, large.spec.name, source.label, found)


def _splits(asked: str, layers: int) -> tuple[int, ...]:
    try:
        splits = tuple(dict.fromkeys(int(part) for part in asked.split(",")))
    except ValueError as error:
        raise UsageError(f"--split wants numbers of layers, separated by commas, not {asked!r}") from error
    if any(not 0 <= split < layers for split in splits):
        raise UsageError(f"--split: the small model has layers 0 to {layers - 1}")
    return splits


def _print_mappings(small: str, large: str, text: str, found: "tuple[Fit, ...]") -> None:
    rows = []
    for fit in found:
        quality, (low, high) = fit.held_out.quality, fit.held_out.dloss_ci
        rows.append(
            (
                str(fit.mapping.split),
                f"{quality.dloss:+.4f} [{low:+.4f}, {high:+.4f}]",
                f"{quality.kl:.4f}",
                f"{min(fit.explained):.2f} – {max(fit.explained):.2f}",
                f"{quality.tokens:,} tokens",
            )
        )
    print_table(("EXACT BELOW", "LOSS RISES BY", "KL", "EXPLAINED", "MEASURED ON"), rows)
    told = [
        {
            "split": fit.mapping.split,
            "dloss": round(fit.held_out.quality.dloss, 5),
            "dloss_ci": fit.held_out.dloss_ci,
            "kl": round(fit.held_out.quality.kl, 5),
            "explained": [round(share, 4) for share in fit.explained],
            "reads": fit.mapping.reads,
            "rank": fit.mapping.linear.rank,
        }
        for fit in found
    ]
    print_json({"fit": "map", "slm": small, "llm": large, "text": text, "path": found[0].path, "mappings": told})


def _print_path(found: "Alignment") -> None:
    chosen = [(layer, at, found.similarity[layer, at]) for layer, at in enumerate(found.path)]
    layers = [(str(layer), str(at), f"{alike:.3f}") for layer, at, alike in chosen]
    print_table((found.small.upper(), found.large.upper(), "SIMILARITY"), layers)
    told = {
        "fit": "align", "slm": found.small, "llm": found.large, "text": found.text, "tokens": found.tokens,
        "path": found.path, "similarity": [[round(float(alike), 4) for alike in row] for row in found.similarity],
    }  # fmt: skip
    print_json(told)


def _print_ladder(profile: "Profile") -> None:
    print_table(
        ("RUNG", "BITS A VALUE", "PER TOKEN", "LOSS RISES BY", "KL", "SAME TOKEN", "MEASURED ON"),
        [
            (
                rung.name,
                f"{rung.bits:.2f}",
                size(rung.bits / 8 * profile.geometry.values_per_token),
                f"{rung.quality.dloss:+.4f}",
                f"{rung.quality.kl:.4f}",
                f"{rung.quality.top1:.1%}",
                f"{rung.quality.tokens:,} tokens",
            )
            for rung in profile.rungs
        ],
    )
