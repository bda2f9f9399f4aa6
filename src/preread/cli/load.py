"""`preread bench serve`, `chat`, `streams`, `gap`, `forms`, `attach`: an edge, and servers of others beside it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preread import loop
from preread.cli import arguments, options
from preread.cli.terminal import token_progress
from preread.engine.registry import DEFAULT
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.bench.deployment import Setting

WIDE = 150

_Peer = Annotated[
    list[str] | None,
    typer.Option("--peer", metavar="URL", help="Another OpenAI server, measured in turns; may be given repeatedly."),
]
_PeerCommand = Annotated[
    list[str] | None,
    typer.Option(
        "--peer-command",
        metavar="COMMAND",
        help="Starts such a server on {port}, with the file {model}, so that it can be cold again; may be repeated.",
    ),
]
_KvMemory = Annotated[
    int | None, typer.Option("--kv-memory", min=1, metavar="MIB", help="As for `preread edge`, and to be told.")
]
_EdgeOption = Annotated[
    list[str] | None,
    typer.Option("--edge-option", metavar="OPTIONS", help="More for `preread edge`: --edge-option='--cache-ram 64'."),
]
_ContextTokens = Annotated[int, typer.Option("--context-tokens", min=64)]
_PromptTokens = Annotated[int, typer.Option("--prompt-tokens", min=8, help="Of each question.")]
_AnswerTokens = Annotated[int, typer.Option("--answer-tokens", min=2)]
_Mbps = Annotated[float, typer.Option("--mbps", min=0.1, help="Rate of the emulated link, Mbit/s.")]
_RttMs = Annotated[float, typer.Option("--rtt-ms", min=0, help="Its round trip, milliseconds.")]
_Rungs = Annotated[str, typer.Option("--rung", metavar="LIST", help="Rungs to publish; the edge chooses.")]
_RUNGS = "lossless,q8,q4"


def serve(
    model: options.Model = DEFAULT,
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="Each asks again as soon as it is answered; by default 8.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Instead: requests a second, whatever happens to them.")
    ] = None,
    rates: Annotated[
        str | None, typer.Option("--rates", metavar="LIST", help="More such rates, in the warm state; see --plot.")
    ] = None,
    states: Annotated[str, typer.Option("--states", metavar="LIST", help="What is measured.")] = "cold,warm,cut",
    requests: Annotated[int, typer.Option("--requests", min=1, help="To each system in each state.")] = 100,
    blocks: Annotated[
        int, typer.Option("--blocks", min=1, help="In which they are sent: systems alternate between them.")
    ] = 4,
    contexts: Annotated[int, typer.Option("--contexts", min=1, help="Documents, asked about by Zipf's law.")] = 20,
    context_tokens: _ContextTokens = 1000,
    prompt_tokens: _PromptTokens = 25,
    answer_tokens: _AnswerTokens = 32,
    mbps: _Mbps = 100,
    rtt_ms: _RttMs = 20,
    rung: _Rungs = _RUNGS,
    profile: options.Profile = None,
    peer: _Peer = None,
    peer_command: _PeerCommand = None,
    peer_kv_mb: Annotated[
        float | None, typer.Option("--peer-kv-mb", min=0, help="What peers have for KV cache, to be told.")
    ] = None,
    kv_memory: _KvMemory = None,
    edge_option: _EdgeOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw --rates against latency: .png, .svg or .pdf.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Documents, questions and arrivals follow from it.")] = 0,
) -> None:
    """An edge under load, cold, warm and cut off from its cloud, and other OpenAI servers beside it."""
    from rich.console import Console

    from preread.bench.load import STATES
    from preread.bench.peers import Beside
    from preread.bench.serve import Options
    from preread.bench.serve import bench as bench_serve

    if users is not None and rate is not None:
        raise UsageError("--users is a closed loop and --rate an open one: give one of them")
    named = [name.strip() for name in states.split(",") if name.strip()]
    if not named or not set(named) <= set(STATES):
        raise UsageError(f"--states holds some of {', '.join(STATES)}, not {states!r}")
    more = arguments.numbers("--rates", rates) if rates else ()
    if rates and min(more) <= 0:
        raise UsageError("--rates are above 0")
    chosen = Options(
        _setting(model, context_tokens, rung, profile, mbps, rtt_ms, kv_memory, edge_option),
        Beside(tuple(peer or ()), tuple(peer_command or ())),
        tuple(state for state in STATES if state in named),
        (users or 8) if rate is None else None,
        rate,
        more,
        requests,
        blocks,
        contexts,
        prompt_tokens,
        answer_tokens,
        peer_kv_mb,
        plot,
        seed,
    )
    with token_progress() as report:
        loop.run(bench_serve(chosen, Console(width=WIDE), report))


def chat(
    model: options.Model = DEFAULT,
    turns: Annotated[int, typer.Option("--turns", min=2)] = 8,
    context_tokens: _ContextTokens = 1000,
    prompt_tokens: _PromptTokens = 25,
    answer_tokens: _AnswerTokens = 100,
    mbps: _Mbps = 100,
    rtt_ms: _RttMs = 20,
    rung: _Rungs = _RUNGS,
    profile: options.Profile = None,
    peer: _Peer = None,
    peer_command: _PeerCommand = None,
    kv_memory: _KvMemory = None,
    edge_option: _EdgeOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Document and questions follow from it.")] = 0,
) -> None:
    """One conversation about a document: time to first token of each turn, and what was computed for it."""
    from rich.console import Console

    from preread.bench.chat import Options
    from preread.bench.chat import bench as bench_chat
    from preread.bench.peers import Beside

    chosen = Options(
        _setting(model, context_tokens, rung, profile, mbps, rtt_ms, kv_memory, edge_option),
        Beside(tuple(peer or ()), tuple(peer_command or ())),
        turns,
        prompt_tokens,
        answer_tokens,
        seed,
    )
    with token_progress() as report:
        loop.run(bench_chat(chosen, Console(width=WIDE), report))


def streams(
    model: options.Model = DEFAULT,
    users: Annotated[int, typer.Option("--users", min=1, help="That ask at once.")] = 64,
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="For so long.")] = 10.0,
    contexts: Annotated[int, typer.Option("--contexts", min=1, help="Documents that are asked about in turn.")] = 4,
    context_tokens: _ContextTokens = 500,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Different ones.")] = 64,
    prompt_tokens: _PromptTokens = 25,
    answer_tokens: _AnswerTokens = 64,
    mbps: _Mbps = 100,
    rtt_ms: _RttMs = 20,
    rung: _Rungs = _RUNGS,
    profile: options.Profile = None,
    kv_memory: _KvMemory = None,
    edge_option: _EdgeOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Documents, questions and their order follow from it.")] = 0,
) -> None:
    """Many streams for a while: no gaps, memory that stays, and the answers that one user alone gets."""
    from rich.console import Console

    from preread.bench.streams import Options
    from preread.bench.streams import bench as bench_streams

    setting = _setting(model, context_tokens, rung, profile, mbps, rtt_ms, kv_memory, edge_option)
    chosen = Options(setting, users, minutes * 60, contexts, questions, prompt_tokens, answer_tokens, seed)
    with token_progress() as report:
        loop.run(bench_streams(chosen, Console(width=WIDE), report))


def gap(
    model: options.Model = DEFAULT,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each with a context that was not there.")] = 3,
    context_tokens: _ContextTokens = 4000,
    stream_tokens: Annotated[int, typer.Option("--stream-tokens", min=8, help="Of the answer beside it.")] = 600,
    mbps: _Mbps = 20,
    rtt_ms: _RttMs = 20,
    rung: _Rungs = _RUNGS,
    profile: options.Profile = None,
    kv_memory: _KvMemory = None,
    edge_option: _EdgeOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Documents and questions follow from it.")] = 0,
) -> None:
    """One user's stream while another user's context comes down a slow link: how long it stands still."""
    from rich.console import Console

    from preread.bench.gap import Options
    from preread.bench.gap import bench as bench_gap

    setting = _setting(model, context_tokens, rung, profile, mbps, rtt_ms, kv_memory, edge_option)
    with token_progress() as report:
        loop.run(bench_gap(Options(setting, rounds, stream_tokens, seed=seed), Console(width=WIDE), report))


def forms(
    model: options.Model = DEFAULT,
    answers: Annotated[int, typer.Option("--answers", min=1, help="To be validated.")] = 500,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=16, help="At most.")] = 128,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each schema beside a free answer.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of the first answer.")] = 0,
) -> None:
    """Answers that have to be JSON: whether they keep to their schema, and what that costs a token."""
    from rich.console import Console

    from preread.bench.forms import bench as bench_forms

    path = options.pulled(model)
    name = options.shown_name(model, path)
    loop.run(bench_forms(path, name, answers, answer_tokens, runs, seed, Console(width=WIDE)))


def attach(
    model: options.Model = DEFAULT,
    server_command: Annotated[
        str,
        typer.Option("--server-command", metavar="COMMAND", help="A llama-server, with {model}, {port}, {slots}."),
    ] = "llama-server -m {model} --port {port} --slot-save-path {slots} -np 1 --cache-ram 0",
    context_tokens: Annotated[str, typer.Option("--context-tokens", metavar="LIST")] = "1000,4000",
    mbps: Annotated[str, typer.Option("--mbps", metavar="LIST", help="Of the emulated links.")] = "20,100",
    rtt_ms: _RttMs = 20,
    rung: _Rungs = "lossless,b1.2",
    profile: options.Profile = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each; medians are shown.")] = 3,
) -> None:
    """A llama-server with and without `preread attach`: the first token about a context that it does not hold."""
    from rich.console import Console

    from preread.bench.attach import Setting
    from preread.bench.attach import bench as bench_attach

    path, lengths = options.pulled(model), arguments.counts("--context-tokens", context_tokens)
    links = arguments.numbers("--mbps", mbps)
    setting = Setting(server_command, path, profile, arguments.rung_names(rung), lengths, links, rtt_ms, runs)
    loop.run(bench_attach(setting, Console(width=WIDE)))


def _setting(
    model: str,
    context_tokens: int,
    rung: str,
    profile: Path | None,
    mbps: float,
    rtt_ms: float,
    kv_memory: int | None,
    edge_options: list[str] | None,
) -> "Setting":
    from preread.bench.deployment import Setting

    rungs = arguments.rung_names(rung)
    try:
        words = tuple(word for given in edge_options or () for word in shlex.split(given))
    except ValueError as error:
        raise UsageError(f"--edge-option cannot be read: {error}") from error
    path = options.pulled(model)
    memory_bytes = None if kv_memory is None else kv_memory << 20
    return Setting(
        path, options.shown_name(model, path), context_tokens, rungs, profile, mbps, rtt_ms, memory_bytes, words
    )  # fmt: skip
