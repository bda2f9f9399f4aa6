"""`preread ask` and `preread run`: questions from the terminal, one, or one after the other."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from preread.cli import keys, options
from preread.engine.registry import DEFAULT
from preread.errors import UsageError
from preread.plan.choose import MAX_DLOSS

if TYPE_CHECKING:
    from preread.edge.options import OptionFields
    from preread.engine.sampling import SamplingFields

Context = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="The published context that the question is about.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0, help="0: always the likeliest token.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Same seed, same answer.")]
Local = Annotated[bool, typer.Option("--local", help="Compute the context here instead of streaming it.")]


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask; -: read it from standard input.")],
    context: Context = None,
    model: options.Model = DEFAULT,
    cloud: options.OptionalCloud = None,
    edge: Annotated[
        str | None, typer.Option("--edge", metavar="URL", help="Ask this running edge instead of loading the model.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="PREREAD_API_KEY",
            metavar="KEY",
            help="Key of the cloud, or of the edge. Other users see it here: use the variable, or a file.",
            callback=keys.checked,
        ),
    ] = None,
    api_key_file: options.CloudKeyFile = None,
    rung: options.Rung = None,
    max_dloss: options.MaxDloss = MAX_DLOSS,
    refine: options.Refine = None,
    ctx_size: options.Window = 0,
    threads: options.Threads = 0,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    local: Local = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Ask one question. The answer goes to stdout as it is generated, and what came from where to stderr."""
    from preread.cli.answers import print_answer_json, show_answer
    from preread.cli.inside import find, open_edge
    from preread.cli.remote import ask as ask_edge

    prompt = sys.stdin.read() if question == "-" else question
    if not prompt.strip():
        raise UsageError("the question is empty")
    key = keys.own(api_key, api_key_file, edge or cloud)
    sampling: SamplingFields = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with ExitStack() as stack:
        if edge is not None:
            if local:
                raise UsageError("--local computes in this process: leave --edge away")
            pieces = ask_edge(edge, prompt, context, sampling, api_key=key, via=options.via())
        else:
            _check_cloud(context, cloud)
            chosen: OptionFields = {
                "api_key": key,
                "rung": rung,
                "max_dloss": max_dloss,
                "refine": refine,
                "window_tokens": ctx_size,
                "threads": threads,
            }
            opened = stack.enter_context(open_edge(model, cloud, **chosen))
            if context is not None:
                find(opened, context)
            pieces = opened.answer(opened.asynchronous.question(prompt, context, (), sampling, local=local))
        if json:
            print_answer_json(pieces)
        else:
            show_answer(pieces, verbose=verbose)


def run(
    model: options.Model = DEFAULT,
    cloud: options.OptionalCloud = None,
    context: Context = None,
    api_key: options.CloudKey = None,
    api_key_file: options.CloudKeyFile = None,
    rung: options.Rung = None,
    max_dloss: options.MaxDloss = MAX_DLOSS,
    refine: options.Refine = None,
    ctx_size: options.Window = 0,
    threads: options.Threads = 0,
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    local: Local = False,
    verbose: options.Verbose = False,
) -> None:
    """Chat in the terminal. /? lists what can be typed besides questions."""
    from preread.cli.inside import find, open_edge
    from preread.cli.talk import Talk

    _check_cloud(context, cloud)
    chosen: OptionFields = {
        "api_key": keys.own(api_key, api_key_file, cloud),
        "rung": rung,
        "max_dloss": max_dloss,
        "refine": refine,
        "window_tokens": ctx_size,
        "threads": threads,
    }
    with open_edge(model, cloud, **chosen) as opened:
        if opened.asynchronous.node.engine.chat is None:
            raise UsageError(f"{model} has no chat template: use `preread ask`, or a model that can chat")
        if context is not None:
            find(opened, context)
        usual = opened.asynchronous.node.engine.sampling
        sampling = replace(usual, max_tokens=max_tokens, temperature=temperature, seed=seed)
        Talk(opened, context, sampling, local=local, verbose=verbose).loop()


def _check_cloud(context: str | None, cloud: str | None) -> None:
    if context is not None and cloud is None:
        raise UsageError("contexts come from a cloud: name it with --cloud or PREREAD_CLOUD")
