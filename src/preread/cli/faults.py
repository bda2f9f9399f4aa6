"""Commands of `preread bench` in which something goes wrong on purpose: faults, hostile clients, clients that die."""

from typing import Annotated

import typer

from preread import loop
from preread.cli import arguments, options
from preread.cli.terminal import token_progress
from preread.engine.registry import DEFAULT
from preread.errors import UsageError

WIDTH = 118


def chaos(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="As elsewhere; tiny: random weights, many requests.")
    ] = "tiny",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Of all clients together.")] = 300,
    clients: Annotated[
        int, typer.Option("--clients", min=1, help="So many ask at once, in turns of one request of each.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Contexts, questions and faults follow from it.")] = 0,
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="FEWEST,MOST", help="Tokens of the contexts, more or less.")
    ] = "64,400",
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1)] = 4,
    cache_ram: Annotated[int, typer.Option(min=0, metavar="MIB", help="As for `preread edge`.")] = 1,
    only: Annotated[int | None, typer.Option("--only", min=0, metavar="INDEX", help="Play this turn alone.")] = None,
    start: Annotated[int, typer.Option("--from", min=0, metavar="INDEX", help="Begin with this turn.")] = 0,
) -> None:
    """Requests under random faults and kills: is each answer that of local prefill, and in time?

    In time: within 1.5 × what computing all requests of its turn one after another takes here, and 0.5 s.
    """
    from rich.console import Console

    from preread.bench import crowd
    from preread.bench.chaos import Options
    from preread.bench.chaos import bench as bench_chaos
    from preread.testing.tiny import NAME

    lengths = arguments.counts("--context-tokens", context_tokens)
    if len(lengths) != 2 or not 8 <= lengths[0] <= lengths[1]:
        raise UsageError("--context-tokens is the fewest and the most tokens, at least 8")
    turn, turns = max(start, only or 0), crowd.turns(requests, clients)
    if turn >= turns:
        raise UsageError(f"--requests {requests} with --clients {clients} has no turn {turn}: {turns}, from 0")
    path = options.pulled(DEFAULT if model == NAME else model)
    name = options.shown_name(model, path)
    chosen = Options(
        path, name, requests, seed, (lengths[0], lengths[1]), answer_tokens, cache_ram, only, start, clients
    )
    with token_progress() as report:
        loop.run(bench_chaos(chosen, Console(width=WIDTH), report))


def hostile(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="As elsewhere; tiny: random weights.")
    ] = DEFAULT,
    clients: Annotated[int, typer.Option("--clients", min=1, help="Hostile ones.")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each without and with them.")] = 3,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Of the honest client, in each.")] = 15,
) -> None:
    """An honest client among hostile ones: its time to first token, and the edge's memory."""
    from rich.console import Console

    from preread.bench.hostile import Options
    from preread.bench.hostile import bench as bench_hostile
    from preread.testing.tiny import NAME

    path = options.pulled(DEFAULT if model == NAME else model)
    chosen = Options(path, options.shown_name(model, path), clients, rounds, questions)
    loop.run(bench_hostile(chosen, Console(width=WIDTH)))


def hangups(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="As elsewhere; tiny: random weights.")
    ] = "tiny",
    times: Annotated[int, typer.Option("--times", min=1, help="Clients that are killed.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="What they ask and when they are killed follow from it.")] = 0,
) -> None:
    """Clients that are killed at random moments: what is still computed for them, and what of them stays."""
    from preread.bench.hangups import Options
    from preread.bench.hangups import bench as bench_hangups
    from preread.testing.tiny import NAME

    path = options.pulled(DEFAULT if model == NAME else model)
    chosen = Options(path, options.shown_name(model, path), times, seed)
    with token_progress() as report:
        loop.run(bench_hangups(chosen, report))
