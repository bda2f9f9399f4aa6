"""`preread bench`: measure it."""

from pathlib import Path
from typing import Annotated

import typer

from preread import loop
from preread.cli import arguments, faults, load, options
from preread.cli.terminal import token_progress
from preread.engine.registry import DEFAULT
from preread.errors import UsageError

bench = typer.Typer(help="Measure; each bench prints a table and last one line of JSON.", no_args_is_help=True)

_WIDTH, _WIDE = faults.WIDTH, load.WIDE


@bench.command("ttft")
def ttft(
    model: options.Model = DEFAULT,
    mbps: Annotated[str, typer.Option("--mbps", metavar="LIST", help="Link rates, Mbit/s; 0: black.")] = "20,100",
    rtt_ms: Annotated[str, typer.Option("--rtt-ms", metavar="LIST", help="Round trips, milliseconds.")] = "20",
    context_tokens: Annotated[str, typer.Option("--context-tokens", metavar="LIST")] = "1000",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 32,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1, help="Compared for `same_output`.")] = 16,
    rung: Annotated[
        str, typer.Option("--rung", metavar="LIST", help="Rungs to publish and stream.")
    ] = "lossless,q8,q4",
    choose: Annotated[
        bool, typer.Option("--choose", help="One row a cell, for the rung that the edge chooses by its budget.")
    ] = False,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each way; medians are reported.")] = 5,
    profile: options.Profile = None,
    grid: Annotated[
        str | None,
        typer.Option("--grid", metavar="issue", help="issue: 99 cells, from 0 to 1000 Mbit/s; implies --choose."),
    ] = None,
    local_every: Annotated[
        int | None,
        typer.Option("--local-every", min=1, metavar="N", help="Measure local prefill in every N-th cell only."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Add rows to this file; go on where it ends.")
    ] = None,
    kv_memory: options.KvMemory = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="NAME", help="A link that changes: cellular, wifi or satellite.")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", min=1, help="With --trace: how many.")] = 30,
    seed: Annotated[int, typer.Option("--seed", help="With --trace: of the trace.")] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it over --mbps: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Time to first token: the edge against local prefill, loading everything, an oracle, and the floor."""
    from rich.console import Console

    from preread.bench import plot as pictures
    from preread.bench import traced
    from preread.bench import ttft as measured
    from preread.testing.traces import TRACES

    if grid not in (None, "issue"):
        raise UsageError(f"unknown grid {grid!r}: there is one, called issue")
    if trace is not None and trace not in TRACES:
        raise UsageError(f"unknown trace {trace!r}; known traces: {', '.join(TRACES)}")
    if trace is not None and (grid or out or plot):
        raise UsageError("--trace has one link: leave --grid, --out and --plot away")
    if plot is not None:
        pictures.check(plot)
    whole = grid is not None
    chosen = measured.Grid(
        measured.ISSUE_MBPS if whole else arguments.numbers("--mbps", mbps),
        measured.ISSUE_RTT_MS if whole else arguments.numbers("--rtt-ms", rtt_ms),
        measured.ISSUE_CONTEXT_TOKENS if whole else arguments.counts("--context-tokens", context_tokens),
        prompt_tokens,
        answer_tokens,
        arguments.rung_names(rung),
        runs,
        profile,
        choose=choose or whole,
        local_every=local_every or (4 if whole else 3 if trace else 1),
        out=out,
        kv_memory_bytes=None if kv_memory is None else kv_memory << 20,
    )
    path = options.pulled(model)
    name, console = options.shown_name(model, path), Console(width=_WIDE)
    if trace is not None:
        loop.run(traced.bench(path, name, chosen, trace, requests, seed, console))
        return
    rows = loop.run(measured.bench(path, name, chosen, console))
    if plot is not None:
        lengths = " and ".join(f"{tokens:,}" for tokens in chosen.context_tokens)
        pictures.draw_ttft(rows, f"{name}: {chosen.prompt_tokens} tokens asked about {lengths}", plot)


@bench.command("guide")
def guide_bench(
    llm: Annotated[
        str, typer.Option("--llm", metavar="NAME|PATH|hf:…", help="The large model, named as with --model elsewhere.")
    ],
    slm: Annotated[str, typer.Option("--slm", metavar="NAME|PATH|hf:…", help="The small one.")] = DEFAULT,
    mapping: Annotated[
        list[Path] | None,
        typer.Option("--map", metavar="FILE", help="What `preread fit map` wrote; may be repeated."),
    ] = None,
    guide: Annotated[
        Path | None, typer.Option("--guide", metavar="FILE", help="What `preread fit guide` wrote.")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its control; without, the guide reads another document.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text to measure on; by default preread's own."),
    ] = None,
    windows: Annotated[int, typer.Option(min=4, help="Pieces of the text.")] = 20,
    questions: Annotated[
        int, typer.Option(min=0, help="Also ask so many about Python's library: takes minutes; 0: none.")
    ] = 0,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also measure what a rung leaves of guided KV.")
    ] = None,
    rung: Annotated[str, typer.Option(metavar="RUNG", help="Which.")] = "b1.2",
) -> None:
    """What a large model's reading does for a small one: loss after contexts, in every mode, with a control."""
    from rich.console import Console

    from preread.bench.guide import Options
    from preread.bench.guide import bench as bench_guide
    from preread.fit.text import evaluation, read

    source = read(text) if text else evaluation()
    chosen = Options(source, tuple(mapping or ()), windows, questions, guide, control, profile, rung)
    small, large = ((path, options.shown_name(name, path)) for name in (slm, llm) for path in [options.pulled(name)])
    bench_guide(small, large, chosen, Console(width=_WIDE), token_progress())


@bench.command("taught")
def taught(
    document: Annotated[Path, typer.Argument(metavar="FILE", help="The document, in UTF-8, that was taught.")],
    slm: Annotated[str, typer.Option("--slm", metavar="NAME|PATH|hf:…", help="The small model.")] = DEFAULT,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `fit study` wrote; by default FILE.study.")
    ] = None,
    taught: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `fit teach` wrote; by default FILE.taught.")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same, with `fit teach --lessons` of another document.")
    ] = None,
    profile: Annotated[Path | None, typer.Option(metavar="FILE", help="Also measure what a rung leaves of it.")] = None,
    rung: Annotated[str, typer.Option(metavar="RUNG", help="Which.")] = "b1.2",
) -> None:
    """What teaching a context did: answers held out, with exact and taught KV, and with a control."""
    from rich.console import Console

    from preread.bench.taught import Options
    from preread.bench.taught import bench as bench_taught
    from preread.fit.text import read

    (text,) = read([document]).parts
    chosen = Options(
        text, study or Path(f"{document}.study"), taught or Path(f"{document}.taught"), control, profile, rung
    )
    path = options.pulled(slm)
    bench_taught((path, options.shown_name(slm, path)), chosen, Console(width=_WIDE))


@bench.command("site")
def site(
    model: options.Model = DEFAULT,
    edges: Annotated[str, typer.Option("--edges", metavar="LIST", help="How many ask at once.")] = "1,2,4",
    mbps: Annotated[float, typer.Option(min=0.1, help="Rate of the uplink that all share, Mbit/s.")] = 20,
    rtt_ms: Annotated[float, typer.Option("--rtt-ms", min=0, help="Its round trip, milliseconds.")] = 20,
    context_tokens: Annotated[int, typer.Option("--context-tokens", min=64)] = 1000,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 32,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1)] = 4,
    rung: Annotated[str, typer.Option("--rung", metavar="RUNG", help="What is published and streamed.")] = "lossless",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each; medians are reported.")] = 3,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Of each edge; 0: the cores divided by the most edges.")
    ] = 0,
    profile: options.Profile = None,
) -> None:
    """Several edges behind one uplink, one cold context: bytes and time to first token, with neighbours or without."""
    from rich.console import Console

    from preread.bench.site import Options
    from preread.bench.site import bench as bench_site

    arguments.check_rung(rung)
    counts = arguments.counts("--edges", edges)
    chosen = Options(
        counts, mbps, rtt_ms, context_tokens, prompt_tokens, answer_tokens, rung, runs, threads, profile
    )  # fmt: skip
    path = options.pulled(model)
    loop.run(bench_site(path, options.shown_name(model, path), chosen, Console(width=_WIDTH)))


@bench.command("decode")
def decode(
    model: options.Model = DEFAULT,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 64,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=2)] = 64,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each; medians are reported.")] = 9,
) -> None:
    """Decode rate: the edge against llama-cpp-python's own loop."""
    from rich.console import Console

    from preread.bench.decode import bench

    path = options.pulled(model)
    name = options.shown_name(model, path)
    loop.run(bench(path, name, prompt_tokens, answer_tokens, runs, Console(width=_WIDTH)))


@bench.command("quotes")
def quotes(
    model: options.Model = DEFAULT,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=2)] = 128,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each question; medians are reported.")] = 3,
) -> None:
    """Decode rate of answers that quote their document, and of others, with guesses and without."""
    from rich.console import Console

    from preread.bench.quotes import bench

    path = options.pulled(model)
    loop.run(bench(path, options.shown_name(model, path), answer_tokens, runs, Console(width=_WIDTH)))


@bench.command("codec")
def codec(
    model: options.Model = DEFAULT,
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="Texts to measure on; by default preread's own.")
    ] = None,
    rungs: Annotated[
        str | None, typer.Option("--rungs", metavar="LIST", help="Rows; by default all, other schemes too.")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Pieces of the text.")] = 20,
    context_tokens: Annotated[str, typer.Option("--context-tokens", metavar="LIST")] = "512,2048",
    tail: Annotated[int, typer.Option("--tail", min=2, help="Tokens predicted after each context.")] = 128,
    profile: options.Profile = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """Bytes against quality: every rung, and other schemes, on text that no fit has seen."""
    from rich.console import Console

    from preread.bench.codec import Options
    from preread.bench.codec import bench as bench_codec
    from preread.fit.text import evaluation, read

    lengths = arguments.counts("--context-tokens", context_tokens)
    names = tuple(dict.fromkeys(name.strip() for name in (rungs or "").split(",") if name.strip()))
    path = options.pulled(model)
    texts, counts = read(text) if text else evaluation(), tuple(dict.fromkeys(lengths))
    chosen = Options(texts, names, windows, counts, tail, profile, plot)
    bench_codec(path, options.shown_name(model, path), chosen, Console(width=_WIDTH), token_progress())


@bench.command("states")
def states(
    model: options.Model = DEFAULT,
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="Texts to measure on; by default preread's own.")
    ] = None,
    rungs: Annotated[
        str | None, typer.Option("--rungs", metavar="LIST", help="Codecs of states; by default all.")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Pieces of the text.")] = 20,
    context_tokens: Annotated[str, typer.Option("--context-tokens", metavar="LIST")] = "512,1024",
    tail: Annotated[int, typer.Option("--tail", min=2, help="Tokens predicted after each context.")] = 128,
) -> None:
    """Bytes against quality of recurrent states, in every codec that they have."""
    from rich.console import Console

    from preread.bench.states import Options
    from preread.bench.states import bench as bench_states
    from preread.fit.text import evaluation, read

    lengths = tuple(dict.fromkeys(arguments.counts("--context-tokens", context_tokens)))
    names = tuple(dict.fromkeys(name.strip() for name in (rungs or "").split(",") if name.strip()))
    path = options.pulled(model)
    chosen = Options(read(text) if text else evaluation(), names, windows, lengths, tail)
    bench_states(path, options.shown_name(model, path), chosen, Console(width=_WIDTH), token_progress())


@bench.command("publish")
def publish(
    model: options.Model = DEFAULT,
    documents: Annotated[
        Path | None,
        typer.Option("--documents", metavar="FOLDER", help="Texts to publish; by default two dozen of preread's own."),
    ] = None,
    most_tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Longer documents are cut after so many tokens.")
    ] = 1536,
    profile: options.Profile = None,
) -> None:
    """Publishing with defaults: what it costs, and whether the rung that an edge takes keeps its budget."""
    from rich.console import Console

    from preread.bench import documents as own
    from preread.bench.publish import bench as bench_publish

    chosen = own.below(documents) if documents else own.documents()
    path = options.pulled(model)
    with token_progress() as report:
        bench_publish(
            path, options.shown_name(model, path), chosen, most_tokens, profile, Console(width=_WIDTH), report
        )


bench.command("chaos")(faults.chaos)
bench.command("hostile")(faults.hostile)
bench.command("hangups")(faults.hangups)


@bench.command("push")
def push(
    edges: Annotated[int, typer.Option("--edges", min=1, help="That are connected.")] = 50,
    changes: Annotated[int, typer.Option("--changes", min=1, help="While all is well.")] = 20,
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Of each fault.")] = 3,
    idle_s: Annotated[float, typer.Option("--idle-s", min=0, metavar="S", help="Count bytes for so long.")] = 300.0,
    secured: Annotated[bool, typer.Option("--tls", help="Over TLS.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Which changes are made follows from it.")] = 0,
) -> None:
    """How soon changes in a cloud reach many edges, after any fault too, and what idle edges take in a month."""
    from rich.console import Console

    from preread.bench.push import Options
    from preread.bench.push import bench as bench_push

    loop.run(bench_push(Options(edges, changes, rounds, idle_s, secured, seed), Console(width=_WIDTH)))


bench.command("serve")(load.serve)
bench.command("chat")(load.chat)
bench.command("streams")(load.streams)
bench.command("gap")(load.gap)
bench.command("attach")(load.attach)
bench.command("forms")(load.forms)
