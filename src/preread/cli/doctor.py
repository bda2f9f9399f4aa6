"""`preread doctor`: what this machine and its link can do, printed."""

import subprocess
from typing import TYPE_CHECKING, Annotated

import typer

from preread.cli import checkout, keys, options
from preread.cli.layers import in_words
from preread.cli.terminal import QUALITY_HEADINGS, print_json, print_table, quality_cells, rate, say, size
from preread.engine.registry import DEFAULT
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.edge.doctor import Engine, Link, Report
    from preread.edge.machine import Machine


def doctor(
    model: options.Model = DEFAULT,
    cloud: options.OptionalCloud = None,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    threads: options.Threads = 0,
    native: Annotated[
        bool, typer.Option("--native", help="Then compile llama.cpp for this processor, in a checkout: some minutes.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Measure this machine and its link to the cloud, and say whether streaming pays. Exit code 1: something fails."""
    from preread.edge.doctor import examine
    from preread.store.egress import CloudLink

    link = CloudLink(cloud, api_key=keys.own(api_key, api_key_file, cloud), via=options.via()) if cloud else None
    path = options.pulled(model)
    report = examine(path, options.shown_name(model, path), link, cloud, threads=threads)
    if json:
        print_json(report)
    else:
        _print(report)
    if native:
        _compile()
    if report.link is not None and report.link.problem:
        raise typer.Exit(1)


def _print(report: "Report") -> None:
    rows = [*_machine(report.machine), *_engine(report.engine), *_link(report.link)]
    for what, value in rows:
        say(f"{what:<11}{value}")
    say()
    print_table(
        ("RUNG", "PER TOKEN", "", *QUALITY_HEADINGS, "STREAMING BEATS COMPUTING ABOVE"),
        [
            (
                cost.rung,
                size(cost.bytes_per_token),
                "measured" if cost.measured else "estimate",
                *quality_cells(cost.rung, cost.quality),
                rate(cost.break_even_bytes_s),
            )
            for cost in report.rungs
        ],
    )
    say()
    say(report.verdict)


def _compile() -> None:
    """Compile llama.cpp in the checkout that preread was installed from. Servers that run go on with what they have.

    Raises:
        UsageError: there is none, or it cannot be compiled.
    """
    script = checkout.root("llama.cpp is compiled") / "scripts" / "install"
    if subprocess.run([script, "native"]).returncode:
        raise UsageError("llama.cpp could not be compiled: see above. What was there is still in use")
    say("compiled for this processor: servers that are started from now on use it, and `preread doctor` measures it")


def _machine(machine: "Machine") -> list[tuple[str, str]]:
    memory = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    return [
        ("cpu", f"{machine.cpu}, {machine.cores} cores: {' '.join(machine.features) or 'features unknown'}"),
        ("memory", memory),
        ("software", f"preread {machine.preread}, {machine.engine}, Python {machine.python}"),
        ("llama.cpp", ", ".join(machine.engine_features)),
        *([("", _prebuilt(machine))] if machine.prebuilt else []),
    ]


def _prebuilt(machine: "Machine") -> str:
    unused = f", which has {', '.join(machine.unused)} besides" if machine.unused else ""
    return f"prebuilt: `preread doctor --native` compiles it for this processor{unused}"


def _engine(engine: "Engine") -> list[tuple[str, str]]:
    spec = engine.model
    tested = f"off: {engine.no_injection}" if engine.no_injection else "works: logits are bit-identical"
    return [
        (
            "model",
            f"{spec.name} ({spec.architecture}): {in_words(spec.layers)}, trained for {spec.trained_tokens:,} tokens",
        ),
        ("injection", tested),
        (
            "attention",
            "in tiles that requests share"
            if engine.tiles
            else "llama.cpp's own: long contexts, and many requests, are slower",
        ),
        (
            "rates",
            f"prefill {engine.prefill_tokens_s:.0f} tokens/s, decode {engine.decode_tokens_s:.0f} tokens/s "
            f"with {engine.threads} threads",
        ),
    ]


def _link(link: "Link | None") -> list[tuple[str, str]]:
    if link is None:
        return [("cloud", "none named: --cloud URL measures the link")]
    if link.problem:
        return [("cloud", f"{link.cloud}: {link.problem}")]
    trip = "" if link.rtt_s is None else f", round trip {link.rtt_s * 1e3:.1f} ms"
    carried = link.note if link.bytes_s is None else f"{rate(link.bytes_s)} ({link.note})"
    return [("cloud", f"{link.cloud}{trip}"), ("link", carried or "")]
