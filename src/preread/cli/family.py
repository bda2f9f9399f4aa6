"""`preread fit family`: whether a model may read KV that another quantisation of it computed."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preread.cli import arguments, options
from preread.cli.terminal import print_json, print_table, say, token_progress
from preread.engine.registry import DEFAULT
from preread.errors import CorruptData, UsageError
from preread.plan.choose import MAX_DLOSS

if TYPE_CHECKING:
    from preread.codec.profile import Profile
    from preread.edge.profiles import Embed
    from preread.fit.family import Change, Gate, Source

_STAGE = "measuring what the other model's KV costs"


def fit(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="NAME|PATH|hf:…|FOLDER",
            help="The model whose KV is read, named as with --model; or a checkpoint's folder, as vLLM runs it.",
        ),
    ],
    model: options.Model = DEFAULT,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The profile that the other model's contexts are published with."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to measure on, in UTF-8; may be repeated; built in."),
    ] = None,
    windows: Annotated[int, typer.Option(min=4, help="Measure on so many pieces of 640 tokens.")] = 32,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; by default where an edge finds it.", dir_okay=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="In which a checkpoint computes: bfloat16, float16 or float32; as it says."),
    ] = None,
    threads: options.Threads = 0,
) -> None:
    """Measure what it costs a model to read the KV of another quantisation of it. Takes minutes; the last line is JSON.

    The loss on text is compared with that after the model's own prefill. An edge with this model streams contexts of
    the other one from then on, where the upper end of a 95 % interval and what the rung costs keep its budget.
    """
    from preread.cli.engine import engine_for
    from preread.fit import family, files
    from preread.fit.text import read

    if out is not None:
        arguments.check_folder(out)
    fitted = None if profile is None else _profile(profile)
    chosen = read(text) if text else family.default_text()
    with ExitStack() as stack:
        own = stack.enter_context(engine_for(model, 1024, threads))
        if Path(source).is_dir():
            other, embed = _checkpoint(Path(source), options.pulled(model), dtype)
        else:
            engine = stack.enter_context(engine_for(source, 1024, threads))
            other, embed = family.Quantised(engine), engine.embeddings
        through = None if fitted is None else family.Through(fitted, embed)
        report = stack.enter_context(token_progress())
        gate = family.measured(own, other, chosen, lambda _, *at: report(_STAGE, *at), windows, through)
        names = own.spec.name, other.name
    path = out or family.usual_path(gate)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, family.dumps(gate))
    print_table(
        (f"{names[0].upper()} READS", "LOSS CHANGES BY", "MEASURED ON"),
        [(_named(change, names[1]), _shown(change), f"{change.tokens:,} tokens") for change in gate.measured],
    )
    _say(gate, names, path)
    print_json(_told(gate, names, path))


def _checkpoint(folder: Path, gguf: Path, dtype: str | None) -> "tuple[Source, Embed]":
    from preread.vllm.source import Checkpointed

    found = Checkpointed(folder, gguf, dtype)
    return found, found.embeddings


def _profile(path: Path) -> "Profile":
    from preread.codec import profile_bytes
    from preread.wire.fields import MAX_PROFILE_BYTES

    try:
        with path.open("rb") as file:
            return profile_bytes.loads(file.read(MAX_PROFILE_BYTES + 1))
    except (OSError, CorruptData) as error:
        raise UsageError(f"{path} is no profile ({error}): `preread fits pull codec` fetches one") from error


def _named(change: "Change", source: str) -> str:
    from preread.fit.family import HALF, LOSSLESS

    at = {LOSSLESS: "as it is", HALF: "for the second half"}
    return f"KV of {source}, {at.get(change.what, f'at rung {change.what}')}"


def _shown(change: "Change") -> str:
    return f"{change.dloss:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"


def _say(gate: "Gate", names: tuple[str, str], path: Path) -> None:
    from preread.fit.family import HALF, LOSSLESS

    own, other = names
    say(f"loss: {own} {gate.loss:.4f} with its own KV, {other} {gate.source_loss:.4f} with its own")
    worst = max(gate.high(what) or 0.0 for what in (LOSSLESS, HALF))
    if worst <= MAX_DLOSS:
        say(f"written to {path}: an edge with {own} streams contexts of {other}")
    else:
        say(f"written to {path}: an edge with {own} streams contexts of {other} from --max-dloss {worst:.3g} on")


def _told(gate: "Gate", names: tuple[str, str], path: Path) -> dict[str, Any]:
    measured = [
        {
            "what": one.what,
            "dloss": round(one.dloss, 5),
            "dloss_ci": [round(one.low, 5), round(one.high, 5)],
            "tokens": one.tokens,
        }
        for one in gate.measured
    ]  # fmt: skip
    return {
        "fit": "family", "model": names[0], "from": names[1], "family": gate.family, "text": gate.text,
        "loss": round(gate.loss, 5), "source_loss": round(gate.source_loss, 5), "measured": measured, "path": str(path),
    }  # fmt: skip
