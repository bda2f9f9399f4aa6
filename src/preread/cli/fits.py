"""`preread fits`: what was learnt of models, from those who could learn it to those who need it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from preread import files, loop
from preread.cli import keys, options
from preread.cli.terminal import print_json, print_table, say, size
from preread.engine.registry import DEFAULT
from preread.errors import CorruptData, UsageError
from preread.values import Fingerprint
from preread.wire.fits import MAX_FIT_BYTES, Fit, FitKind, Measured, ref

app = typer.Typer(
    help="List, push and pull what `preread fit` learned: profiles, mappings, guides, calibrations.",
    no_args_is_help=True,
)
_Cloud = Annotated[
    str | None, typer.Option("--cloud", envvar="PREREAD_CLOUD", metavar="URL", help="The cloud whose fits are meant.")
]
_SUFFIXES: dict[FitKind, str] = {
    "codec": "profile",
    "map": "npz",
    "guide": "npz",
    "decisions": "json",
    "family": "json",
}


@app.command("ls")
def list_fits(
    cloud: _Cloud = None,
    store: Annotated[
        str | None, typer.Option(metavar="FOLDER|s3://…", help="List those of a cloud's store instead.")
    ] = None,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """List what a cloud, or a store, has learned or was given: of which models, and what it was measured to be worth.

    Losses are in nats a token, on what the fit did not learn from; intervals are of 95 %.
    """
    if store is not None:
        found = loop.run(_in_store(store))
    elif cloud is not None:
        from preread.cloud.client import fits

        found = fits(cloud, api_key=keys.own(api_key, api_key_file, cloud), via=options.via())
    else:
        raise UsageError("say whose fits are to be listed: --cloud URL (or PREREAD_CLOUD), or --store FOLDER")
    if json:
        print_json([fit_json(fit) for fit in found])
        return
    print_table(
        ("KIND", "MODEL", "READS", "SIZE", "LOSS CHANGES BY", "LEARNED FROM", "CREATED", "ID"),
        [
            (
                fit.kind,
                _model(fit.model, fit.fingerprint),
                "" if fit.large is None else _model(fit.large_model, fit.large),
                size(fit.size_bytes),
                _worths(fit.measured),
                fit.text if len(fit.text) <= 40 else f"{fit.text[:39]}…",
                fit.created or "",
                fit.id[:12],
            )
            for fit in found
        ],
    )


@app.command()
def push(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="What a `preread fit` wrote.")],
    cloud: options.Cloud,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """Give a cloud what was learned, for all who use it; takes a key that may publish.

    A profile becomes that of its model: contexts are published with it from then on. Pushing again changes nothing.
    """
    from preread.cloud.client import push_fit
    from preread.fit.fits import described

    key = keys.own(api_key, api_key_file, cloud)
    for path in paths:
        data = _read(path)
        try:
            described(data)
        except CorruptData as error:
            raise UsageError(f"{path} cannot be pushed: {error}") from error
        fit = push_fit(cloud, data, api_key=key, via=options.via())
        if json:
            print_json(fit_json(fit))
            continue
        say(f"pushed {fit.kind} {fit.id[:12]}…, {size(fit.size_bytes)}, of model {fit.fingerprint[:12]}…")
        if fit.kind == "codec":
            say(f"contexts of that model are published with it from now on at {cloud}; published ones keep theirs")


@app.command()
def pull(
    cloud: options.Cloud,
    kind: Annotated[
        FitKind | None,
        typer.Argument(metavar="[KIND]", help="Only codec, map, guide, decisions or family."),
    ] = None,
    model: options.Model = DEFAULT,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Only this one, whatever model it is of: its first letters, from `preread fits ls`."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write the files; by default here, and calibrations and gates where an edge finds them.",
            file_okay=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|s3://…", help="Put a profile into this store, on which no cloud runs now."),
    ] = None,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    json: options.Json = False,
) -> None:
    """Fetch what a cloud has for a model, check it, and put it where it is found. Nothing is fitted.

    Of calibrations the newest is taken.
    """
    from preread.cloud.client import fits
    from preread.engine.model import fingerprint_of

    if out is not None and not out.expanduser().is_dir():
        raise UsageError(f"--out {out} is no folder: make it first")
    key = keys.own(api_key, api_key_file, cloud)
    listed = fits(cloud, api_key=key, via=options.via())
    if id is not None:
        wanted: tuple[Fit, ...] = (named(listed, id),)
        if kind not in (None, wanted[0].kind):
            raise UsageError(f"{wanted[0].id[:12]}… is a {wanted[0].kind}: leave {kind} away")
        name = wanted[0].model or f"FILE-OF-{wanted[0].fingerprint[:12]}"
    else:
        path = options.pulled(model)
        name, of = options.shown_name(model, path), fingerprint_of(path)
        wanted = chosen(listed, of, kind)
        if not wanted:
            raise UsageError(
                f"cloud {cloud} has no {kind or 'fit'} for {name} ({of[:12]}…): `preread fits ls` lists what it has, "
                "and `preread fit` learns it"
            )
    for fit in wanted:
        data = loop.run(_fetched(cloud, key, fit))
        if fit.kind == "codec" and store is not None:
            loop.run(_into_store(store, fit, data))
            where = store
        else:
            where = str(_written(fit, data, out))
        if json:
            print_json(fit_json(fit) | {"path": where})
        else:
            say(f"{fit.kind} {fit.id[:12]}… is in {where}: {_use(fit, where, name, out, store)}")


@app.command("rm")
def remove(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `preread fits ls` shows it: its first letters will do.")],
    cloud: options.Cloud,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
) -> None:
    """Have a cloud forget a fit. Who has pulled it keeps it."""
    from preread.cloud.client import fits, remove_fit

    key = keys.own(api_key, api_key_file, cloud)
    found = named(fits(cloud, api_key=key, via=options.via()), id)
    remove_fit(cloud, found.id, api_key=key, via=options.via())
    say(f"removed {found.id}")


def named(fits: Sequence[Fit], id: str) -> Fit:
    """The one fit whose digest begins so.

    Raises:
        UsageError: none does, or several do.
    """
    found = [fit for fit in fits if fit.id.startswith(id)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} fits begin with {id[:64]!r}; see `preread fits ls`")
    return found[0]


def chosen(fits: Sequence[Fit], of: Fingerprint, kind: FitKind | None) -> tuple[Fit, ...]:
    """What a model has use for, of a list with the oldest first.

    Of profiles and calibrations only the newest, and of gates the newest for each model whose KV is read.
    """
    ours = [fit for fit in fits if fit.fingerprint == of and kind in (None, fit.kind)]
    newest = {(fit.kind, fit.large): fit.id for fit in ours}
    return tuple(fit for fit in ours if fit.kind in ("map", "guide") or newest[fit.kind, fit.large] == fit.id)


def fit_json(fit: Fit) -> dict[str, object]:
    """A fit as commands print it."""
    return {
        "kind": fit.kind,
        "id": fit.id,
        "bytes": fit.size_bytes,
        "model": fit.model,
        "fingerprint": fit.fingerprint,
        "large_model": fit.large_model,
        "large": fit.large,
        "text": fit.text,
        "measured": [
            {
                "what": one.what,
                "dloss": one.dloss_micronats / 1e6,
                "dloss_ci": one.interval_micronats and [end / 1e6 for end in one.interval_micronats],
                "tokens": one.tokens,
            }
            for one in fit.measured
        ],
        "created": fit.created,
    }


async def _in_store(store: str) -> tuple[Fit, ...]:
    from preread.cloud.fits import FitKeeper
    from preread.cloud.turns import Turns
    from preread.store.objects import open_store

    return (await FitKeeper(open_store(store), {}, Turns()).listed()).fits


async def _fetched(cloud: str, api_key: str | None, fit: Fit) -> bytes:
    from preread.store.egress import CloudLink

    async with CloudLink(cloud, api_key=api_key, via=options.via()) as link:
        return checked(fit, await link.get(ref(fit)))


def checked(listed: Fit, data: bytes) -> bytes:
    """The bytes, if they are what was listed.

    Raises:
        CorruptData: "kind", they are of another kind or model; else as for `preread.fit.fits.described`.
    """
    from preread.fit.fits import described

    found = described(data)
    if (found.kind, found.fingerprint, found.large) != (listed.kind, listed.fingerprint, listed.large):
        raise CorruptData("kind", f"{listed.id[:12]}… is listed as {_of(listed)}, and is {_of(found)}: nothing is kept")
    return data


def _of(fit: Fit) -> str:
    return f"{fit.kind} of model {fit.fingerprint[:12]}…"


async def _into_store(store: str, fit: Fit, data: bytes) -> None:
    from preread.store.objects import open_store

    objects = open_store(store)
    async with objects.held():
        await objects.put_profile_of(Fingerprint(fit.fingerprint), await objects.put("profiles", data))


def _written(fit: Fit, data: bytes, out: Path | None) -> Path:
    """Where the file is now."""
    from preread.fit import decisions, family

    if fit.kind == "decisions" and out is None:
        path = decisions.usual_path(Fingerprint(fit.fingerprint))
    elif fit.kind == "family" and out is None:
        path = family.usual_path(family.loads(data))
    else:
        path = (out or Path()).expanduser() / f"{fit.kind}-{fit.id[:12]}.{_SUFFIXES[fit.kind]}"
    try:
        files.put_below(path, data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _use(fit: Fit, where: str, name: str, out: Path | None, store: str | None) -> str:
    """What a fit that lies there changes, and how."""
    if fit.kind == "decisions":
        started = "started from now on" if out is None else f"started with --decisions {where}"
        return f"an edge with {name} that is {started} scales its probabilities by it"
    if fit.kind == "family":
        started = "started from now on" if out is None else f"started with --family {where}"
        return f"an edge with {name} that is {started} streams contexts of {fit.large_model or 'the other model'}"
    if fit.kind == "codec" and store is not None:
        return f"a cloud on it publishes contexts of {name} with it, and need not fit first"
    if fit.kind == "codec":
        return f"for --profile {where}; `preread fits push {where}` gives it to another cloud, --store to one's store"
    return f"`preread cloud --model {name} --llm {fit.large_model or 'LARGE'} --{fit.kind} {where}` reads by it"


def _read(path: Path) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_FIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_FIT_BYTES:
        raise UsageError(f"{path} cannot be pushed: it has more than {size(MAX_FIT_BYTES)}")
    return data


def _model(name: str | None, fingerprint: Fingerprint) -> str:
    return f"{name} {fingerprint[:12]}" if name else fingerprint[:12]


def _worths(measured: Sequence[Measured]) -> str:
    """All that was measured; of more than two, as a profile's rungs are, the first and the last."""
    between = ", " if len(measured) <= 2 else " … "
    return between.join(map(_worth, measured if len(measured) <= 2 else (measured[0], measured[-1])))


def _worth(one: Measured) -> str:
    low_high = one.interval_micronats
    ends = "" if low_high is None else f" [{low_high[0] / 1e6:+.4f}, {low_high[1] / 1e6:+.4f}]"
    return f"{one.what} {one.dloss_micronats / 1e6:+.4f}{ends}"
