"""Options that several commands share, so that they are named, explained and read from the environment alike."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from preread.cli import keys
from preread.cli.arguments import RUNGS
from preread.cli.terminal import byte_progress
from preread.engine.download import pull
from preread.errors import UsageError
from preread.plan.place import POLICIES
from preread.tls import Identity, context
from preread.via import Proxy, Via

PROXY: Final = "PREREAD_PROXY"
CLIENT_CERT: Final = "PREREAD_CLIENT_CERT"
CLIENT_KEY: Final = "PREREAD_CLIENT_KEY"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="PREREAD_MODEL",
        metavar="NAME|PATH|hf:…",
        help="Model: a name from `preread models ls`, a GGUF file, or hf:user/repo:Q4_K_M; fetched if absent.",
    ),
]
Cloud = Annotated[str, typer.Option("--cloud", envvar="PREREAD_CLOUD", metavar="URL", help="The cloud to talk to.")]
OptionalCloud = Annotated[
    str | None,
    typer.Option(
        "--cloud",
        envvar="PREREAD_CLOUD",
        metavar="URL",
        help="The cloud that contexts come from; without one, everything is computed here.",
    ),
]
CloudKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="PREREAD_API_KEY",
        metavar="KEY",
        help="Key that the cloud asks for. Other users see it here: use the variable, or a file.",
        callback=keys.checked,
    ),
]
CloudKeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="The same key, alone in a file.")
]
EdgesCloudKey = Annotated[
    str | None,
    typer.Option(
        "--cloud-key",
        envvar="PREREAD_API_KEY",
        metavar="KEY",
        help="Key that the cloud asks for. Other users see it here: use the variable, or a file.",
        callback=keys.checked,
    ),
]
EdgesCloudKeyFile = Annotated[
    Path | None, typer.Option("--cloud-key-file", metavar="FILE", help="The same key, alone in a file.")
]
Rung = Annotated[
    str | None,
    typer.Option(
        "--rung",
        metavar="RUNG",
        help=f"Quality of the streamed KV cache: {RUNGS}, or a fitted one such as b2; by default --max-dloss decides.",
    ),
]
MaxDloss = Annotated[
    float,
    typer.Option(
        "--max-dloss",
        min=0,
        metavar="NATS",
        help="Stream the fewest bytes that raise the loss by no more than this, in nats a token.",
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        min=0,
        metavar="S",
        help="Stream the best rung within --max-dloss whose first token is expected in so many seconds, not the "
        "smallest.",
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        "--refine",
        metavar="RUNG",
        help="After the first token, bring the context that is held to this better rung, for example lossless.",
    ),
]
Window = Annotated[
    int, typer.Option("--ctx-size", "-c", min=0, metavar="N", help="KV cache in tokens; 0: the model's, at most 8192.")
]
Threads = Annotated[
    int, typer.Option("--threads", "-t", min=0, metavar="N", help="CPU threads; 0: as many as this process may use.")
]
KvMemory = Annotated[
    int | None,
    typer.Option(
        "--kv-memory",
        min=0,
        metavar="MIB",
        help="Memory for the KV cache of all contexts and answers in use, at least one window's; by default 512, or "
        "an eighth of what this machine or container has.",
    ),
]
Profile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="A fitted profile; by default one is fitted first where needed."),
]
KeepConversations = Annotated[
    float,
    typer.Option(
        "--keep-conversations",
        min=0,
        metavar="S",
        help="Keep the KV cache of what was said and answered so long for the next turn, within --kv-memory; "
        "0: not at all. It never leaves the engine's memory.",
    ),
]
Gates = Annotated[
    list[Path] | None,
    typer.Option(
        "--family",
        metavar="FILE",
        help="Read other quantisations' KV by what `preread fit family` wrote here too; may be repeated.",
        dir_okay=False,
    ),
]
Decisions = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        help="How sure decisions are: what `preread fit decisions` wrote; by default where it does by itself.",
        dir_okay=False,
    ),
]
Drafts = Annotated[
    bool,
    typer.Option("--drafts/--no-drafts", help="Guess tokens of answers that quote what was read, where that pays."),
]
CacheRam = Annotated[
    int | None,
    typer.Option(
        "--cache-ram",
        min=0,
        metavar="MIB",
        help="Memory for the KV cache of contexts not in use at the moment; by default 1024, or a quarter of what "
        "this machine or container has.",
    ),
]
DiskCache = Annotated[
    int, typer.Option("--disk-cache", min=0, metavar="MIB", help="Disk for segments of published contexts; 0: none.")
]
Pin = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="NAME", help="Hold this context on disk whatever its use; may be given repeatedly."),
]
Prefetch = Annotated[
    str,
    typer.Option(
        "--prefetch",
        metavar="|".join(POLICIES),
        help="Fetch to the disk ahead of need: only pinned contexts, also those used lately, or all.",
    ),
]
Subscribe = Annotated[
    str | None,
    typer.Option(
        "--subscribe",
        metavar="NAME,…|all",
        help="Fetch these contexts to the disk ahead of need, so that prompts that begin with one are answered sooner; "
        "by default those that are pinned or were asked for by name.",
    ),
]
Messenger = Annotated[
    str | None,
    typer.Option(
        "--messenger",
        envvar="PREREAD_MESSENGER",
        metavar="URL",
        help="Redis or Valkey through which clouds on one store tell each other of changes at once: redis://HOST:PORT. "
        "Other users see a password here: use the variable.",
    ),
]
SyncS = Annotated[
    float,
    typer.Option(
        min=0.1,
        metavar="S",
        help="Ask for the cloud's catalogue so often where it does not tell of changes by itself; over 60: always.",
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="PREFIX,…",
        help="List only contexts whose names begin so, and others once asked for; by default all of the model.",
    ),
]
Neighbours = Annotated[
    str | None,
    typer.Option("--neighbours", metavar="URL,…", help="Other edges of this site, that share what they hold."),
]
Origins = Annotated[
    bool, typer.Option("--origins/--no-origins", help="Fetch segments from the bucket or cache that the cloud names.")
]
Mdns = Annotated[
    bool, typer.Option("--mdns", help="Find other edges on the local network; with --share, be found by them.")
]
Share = Annotated[
    str | None,
    typer.Option("--share", metavar="HOST:PORT", help="Serve segments that are held to other edges, at this address."),
]
ShareMbps = Annotated[
    float | None,
    typer.Option("--share-mbps", min=0.1, metavar="MBPS", help="Send neighbours no more than this; by default all."),
]
SiteKey = Annotated[
    str | None,
    typer.Option(
        "--site-key",
        envvar="PREREAD_SITE_KEY",
        metavar="KEY",
        help="Secret that all edges of a site share. Other users see it here: use the variable, or a file.",
        callback=keys.checked,
    ),
]
SiteKeyFile = Annotated[
    Path | None, typer.Option("--site-key-file", metavar="FILE", help="The same secret, alone in a file.")
]
MaxQueue = Annotated[
    int,
    typer.Option(
        "--max-queue",
        min=1,
        metavar="N",
        help="Requests that wait or are answered at a time; at most half of one key, or of one address without keys.",
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens",
        min=1,
        metavar="N",
        help="Tokens of a chat's answer where the request names no number; at most a quarter of --ctx-size.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say in detail what came from where.")]


def reach_others(proxy: str | None, certificate: Path | None, key: Path | None) -> None:
    """From now on reach others so, in this process and in those that it starts.

    Raises:
        UsageError: the proxy's address is none, or the certificate cannot be used.
    """
    if key is not None and certificate is None:
        raise UsageError("--client-key is the key of a certificate: give that with --client-cert")
    said = {PROXY: proxy, CLIENT_CERT: certificate, CLIENT_KEY: key}
    os.environ.update({name: str(value) for name, value in said.items() if value is not None})
    if certificate is not None:
        context(via().identity)
    else:
        via()


def via() -> Via:
    """How others are reached, as `reach_others` was told.

    Raises:
        UsageError: the proxy's address is none.
    """
    proxy, certificate, key = (os.environ.get(name) or None for name in (PROXY, CLIENT_CERT, CLIENT_KEY))
    return Via(
        None if proxy is None else Proxy.parse(proxy),
        None if certificate is None else Identity(Path(certificate), None if key is None else Path(key)),
    )


def pulled(model: str) -> Path:
    """The model's file, fetched with a progress bar if it is not here.

    Raises:
        PrereadError: as `preread.engine.download.pull` does.
    """
    with byte_progress() as report:
        return pull(model, report, proxy=via().proxy)


def shown_name(model: str, path: Path) -> str:
    """What a model is called where people read it."""
    return path.stem if model.endswith(".gguf") else model
