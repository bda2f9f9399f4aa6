"""`preread models`: which models are known, which are here, what can be done with one, and bringing one in."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from preread.cli import options
from preread.cli.terminal import print_json, print_table, say, size
from preread.engine.download import installed
from preread.engine.known import known
from preread.engine.memory import Memory, Verdict, Way, verdict
from preread.engine.peek import Peeked, peek
from preread.values import geometry_of

app = typer.Typer(help="List, check and fetch models.", no_args_is_help=True)

LENGTHS: Final = (1_000, 8_000, 32_000)
"""Tokens of the contexts that `check` weighs."""
_FITTED_BITS, _HALF_BITS = 1.2, 16
_FORMS: Final = {"float16": "as float16", "fitted": "in a fitted rung"}
_WAYS: Final[dict[Way, str]] = {
    "streams": "contexts are streamed to an edge that runs it",
    "computed": "contexts are computed at the edge",
    "unknown": "it cannot be told from the file: try it, an edge computes what cannot be streamed",
    "none": "it cannot be used",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """What `preread models check` tells.

    Attributes:
        where: the file, or the address on the hub.
        here: whether it is on this machine.
        architecture, layers, parameters: of the model; parameters are those of the first part where it has several.
        way, why: what can be done with it.
        token_bytes: what one more token of a context takes; None: nothing is known.
        state_bytes: what a recurrent model keeps besides.
        context_bytes: what contexts of so many tokens take, by their length, as llama.cpp has them.
        windowed_layers, shared_layers: which look back a little only, and which keep nothing of their own.
        break_even_mbps: links above which a context comes sooner than it is computed at `prefill_rate` tokens a second:
            as float16, and in a fitted rung of 1.2 bits a value, which models whose layers differ do not have.
    """

    model: str
    where: str
    here: bool
    architecture: str
    layers: int
    parameters: int
    way: Way
    why: str
    token_bytes: int | None
    state_bytes: int | None
    context_bytes: dict[int, int]
    windowed_layers: int
    shared_layers: int
    prefill_rate: float
    break_even_mbps: dict[str, float]


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
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As --model takes it. Nothing of the hub's is kept.")],
    prefill_rate: Annotated[
        float,
        typer.Option(metavar="N", min=0.01, help="Tokens a second that the edge reads at, to compare links with."),
    ] = 100.0,
    json: options.Json = False,
) -> None:
    """Say what can be done with a model, from its file's header alone: how contexts come to it, and what they weigh."""
    found = peek(model, options.via().proxy)
    told = checked(model, found, verdict(found.header), prefill_rate)
    if json:
        print_json(told)
        return
    for line in _lines(told):
        say(line)


@app.command()
def families(
    markdown: Annotated[bool, typer.Option(help="Print the table as docs/models.md has it.")] = False,
    json: options.Json = False,
) -> None:
    """Say of well-known models what is streamed of them, and what their contexts weigh in llama.cpp's memory."""
    found = [Known(name, header.text("general.architecture"), verdict(header)) for name, header in known().items()]
    if json:
        print_json([_record(one) for one in found])
        return
    titles = ("MODEL", "ARCHITECTURE", "KEEPS", "CONTEXTS", *(f"{tokens:,} TOKENS" for tokens in LENGTHS))
    rows = [_row(one) for one in found]
    if markdown:
        for line in _markdown([title.lower() for title in titles], rows):
            say(line)
    else:
        print_table(titles, rows)


@dataclass(frozen=True, slots=True)
class Known:
    """A well-known model, its architecture by llama.cpp's name, and what can be done with it."""

    name: str
    architecture: str
    judged: Verdict


def _record(one: Known) -> dict[str, object]:
    memory = one.judged.memory
    return {
        "name": one.name,
        "architecture": one.architecture,
        "keeps": _kept(memory),
        "way": one.judged.way,
        "why": one.judged.why,
        "token_bytes": memory.token_bytes if memory else None,
        "state_bytes": memory.state_bytes if memory else None,
        "context_bytes": {tokens: memory.bytes_of(tokens) for tokens in LENGTHS} if memory else {},
    }


def _row(one: Known) -> tuple[str, ...]:
    memory = one.judged.memory
    weights = [size(memory.bytes_of(tokens)) if memory else "?" for tokens in LENGTHS]
    way = {"streams": "streamed", "computed": "computed"}.get(one.judged.way, one.judged.way)
    return one.name, one.architecture, _kept(memory), way, *weights


def _kept(memory: Memory | None) -> str:
    """What a model's layers keep, in a few words."""
    if memory is None:
        return "?"
    states = sum(layer.state is not None for layer in memory.layers)
    told = [f"{memory.token_bytes:,} bytes a token"] if memory.token_bytes else []
    if windows := {layer.window_tokens for layer in memory.layers if layer.window_tokens is not None}:
        told.append(f"{memory.windows} of {len(memory.layers)} layers a window of {max(windows):,}")
    if memory.shared_layers:
        told.append(f"{memory.shared_layers} layers nothing of their own")
    if states:
        told.append(f"{states} of {len(memory.layers)} layers a state, {size(memory.state_bytes)} in all")
    return "; ".join(told)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    yield from (f"| {' | '.join(row)} |" for row in rows)


@app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name from `preread models ls`, hf:user/repo:Q4_K_M, or hf:user/repo/file.gguf."
        ),
    ],
) -> None:
    """Fetch a model, if it is not here, and print where it is."""
    say(str(options.pulled(name)))


def checked(model: str, found: Peeked, judged: Verdict, prefill_rate: float) -> Checked:
    """What is told of a model's header."""
    memory, header = judged.memory, found.header
    architecture = header.text("general.architecture")
    return Checked(
        model=model,
        where=found.where,
        here=found.here,
        architecture=architecture,
        layers=header.number(f"{architecture}.block_count"),
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors),
        way=judged.way,
        why=judged.why,
        token_bytes=None if memory is None else memory.token_bytes,
        state_bytes=None if memory is None else memory.state_bytes,
        context_bytes={} if memory is None else {tokens: memory.bytes_of(tokens) for tokens in LENGTHS},
        windowed_layers=0 if memory is None else memory.windows,
        shared_layers=0 if memory is None else memory.shared_layers,
        prefill_rate=prefill_rate,
        break_even_mbps={} if memory is None else _break_even(memory, prefill_rate),
    )


def _break_even(memory: Memory, prefill_rate: float) -> dict[str, float]:
    tokens = LENGTHS[0]
    mbps = memory.bytes_of(tokens) * 8 / 1e6 / (tokens / prefill_rate)
    plain = {"float16": round(mbps, 3)}
    if geometry_of(memory.layers) is None:  # then there is no fitted rung
        return plain
    return plain | {"fitted": round(mbps * _FITTED_BITS / _HALF_BITS, 3)}


def _lines(told: Checked) -> Iterator[str]:
    yield f"{told.where}{'' if told.here else ' (not fetched)'}"
    yield f"{told.architecture}, {told.layers} layers, {told.parameters / 1e6:,.0f} million parameters"
    yield _WAYS[told.way] + (f": {told.why}" if told.why else "")
    if told.token_bytes is None:
        return
    kinds = [
        f"{told.windowed_layers} layers look back through a window" if told.windowed_layers else "",
        f"{told.shared_layers} keep nothing of their own" if told.shared_layers else "",
        f"a state of {size(told.state_bytes)}" if told.state_bytes else "",
    ]
    yield "; ".join([f"{told.token_bytes:,} bytes for each token", *filter(None, kinds)])
    weights = (f"{size(size_bytes)} of {tokens:,} tokens" for tokens, size_bytes in told.context_bytes.items())
    yield f"a context takes {', '.join(weights)}"
    if told.way == "streams":
        rates = {_FORMS[form]: mbps for form, mbps in told.break_even_mbps.items()}
        yield (
            f"where {told.prefill_rate:g} tokens are read in a second, streaming alone is faster over links of more "
            f"than {', '.join(f'{mbps:,.3g} Mbit/s {form}' for form, mbps in rates.items())}"
        )
