"""`preread fit decisions` and `preread bench decisions`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preread import loop
from preread.cli import arguments, options
from preread.cli.terminal import Report, print_json, print_table, say, token_progress
from preread.engine.registry import DEFAULT

if TYPE_CHECKING:
    from preread.bench.judge import Asked
    from preread.edge.decisions.question import Kind
    from preread.fit.calibration import Quality
    from preread.fit.facts import Register
    from preread.values import Fingerprint

_WIDTH = 150


def fit(
    model: options.Model = DEFAULT,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; by default where an edge finds it.", dir_okay=False),
    ] = None,
    registers: Annotated[
        int, typer.Option(min=2, help="Documents to ask about, 20 questions each; half of them judge the other half.")
    ] = 10,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Ask about the wrong documents too, to compare.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Documents and questions follow from it.")] = 0,
    threads: options.Threads = 0,
) -> None:
    """Fit how sure decisions may be to a model, and measure what they are worth. Takes minutes.

    The model is asked questions whose answers are known, drawn by code. An edge with this model scales its
    probabilities from then on. The last line is JSON.
    """
    from preread.bench import judge
    from preread.fit import decisions as kept
    from preread.fit import facts, files

    if out is not None:
        arguments.check_folder(out)
    path = options.pulled(model)
    drawn = facts.registers(registers, seed=seed)
    with token_progress() as report:
        fingerprint, asked, shuffled = loop.run(_asked(path, drawn, report, threads, control=control))
    calibration = judge.calibration(asked)
    target = out or kept.usual_path(fingerprint)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write(target, kept.dumps(calibration, fingerprint))
    told = _judged(asked, shuffled)
    print_table(
        ("QUESTIONS", "", "NUMBER", "ACCURACY", "CALIBRATION ERROR", "BRIER"),
        [(kind, what, str(each.questions), *map(_shown, _measures(each))) for kind, what, each in told],
    )
    say(f"written to {target}: an edge with this model uses it")
    scales = {kind: {"temperature": s.temperature, "bias": s.bias} for kind, s in calibration.scales.items()}
    rows = [{"kind": kind, "what": what, **_json(each)} for kind, what, each in told]
    print_json({"fit": "decisions", "model": options.shown_name(model, path), "scales": scales, "rows": rows})


async def _asked(
    path: Path, drawn: "list[Register]", report: Report, threads: int, *, control: bool
) -> "tuple[Fingerprint, list[Asked], list[Asked]]":
    """All questions, asked about their documents and about others."""
    from preread.bench import judge
    from preread.edge.edge import AsyncEdge

    async with AsyncEdge(str(path), threads=threads) as edge:
        asked = await judge.ask(edge.residents, drawn, report, shuffled=False)
        shuffled = await judge.ask(edge.residents, drawn, report, shuffled=True) if control else []
        return edge.node.engine.spec.fingerprint, asked, shuffled


def _judged(asked: "list[Asked]", shuffled: "list[Asked]") -> "list[tuple[str, str, Quality]]":
    from preread.bench import judge
    from preread.fit.calibration import KINDS

    found = list[tuple[str, str, "Quality"]]()
    kinds: tuple[Kind | None, ...] = (None, *KINDS)
    for kind in kinds:
        name = kind or "all"
        found += [
            (name, "one order", judge.unscaled(asked, kind, first=True)),
            (name, "all orders", judge.unscaled(asked, kind)),
            (name, "all orders, fitted", judge.held_out(asked, kind)),
        ]
        if shuffled:
            found.append((name, "control: another document", judge.unscaled(shuffled, kind)))
    return found


def _measures(quality: "Quality") -> tuple[tuple[float, float, float], ...]:
    return quality.accuracy, quality.calibration_error, quality.brier


def _shown(measure: tuple[float, float, float]) -> str:
    value, low, high = measure
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _json(quality: "Quality") -> dict[str, Any]:
    names = ("accuracy", "calibration_error", "brier")
    measured = {name: [round(each, 4) for each in of] for name, of in zip(names, _measures(quality), strict=True)}
    return {"questions": quality.questions, **measured}


def bench(
    model: options.Model = DEFAULT,
    questions: Annotated[int, typer.Option("--questions", min=5, help="About one context.")] = 20,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of each way; medians are reported.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Document and questions follow from it.")] = 0,
) -> None:
    """Many questions about a resident context: as decisions, as chats of one token, and the floor."""
    from rich.console import Console

    from preread.bench.decisions import Options
    from preread.bench.decisions import bench as bench_decisions
    from preread.bench.deployment import Setting

    path = options.pulled(model)
    chosen = Options(Setting(path, options.shown_name(model, path)), questions, rounds, seed)
    with token_progress() as report:
        loop.run(bench_decisions(chosen, Console(width=_WIDTH), report))
