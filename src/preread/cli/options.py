"""Options that several commands share, so that they are named, explained and read from the environment alike."""

import os
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from preread.cli import keys
from preread.cli.terminal import byte_progress
from preread.codec.ladder import ladder
from preread.engine.download import pull
from preread.errors import UsageError
from preread.plan.place import POLICIES, Policy
from preread.store.origin import parse_origin
from preread.tls import Identity, context
from preread.via import Proxy, Via

PROXY: Final = "PREREAD_PROXY"
CLIENT_CERT: Final = "PREREAD_CLIENT_CERT"
CLIENT_KEY: Final = "PREREAD_CLIENT_KEY"

_RUNGS: Final = ", ".join(ladder())
_FITTED: Final = re.compile(r"b\d{1,2}(\.\d{1,2})?")
"""What rungs of a profile are called: about so many bits a value. Which there are, the profile says."""

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="PREREAD_MODEL",
        metavar="NAME|PATH|hf:…",
        help="Model: a name from `preread models ls`, a GGUF file, or hf:user/repo/file.gguf; fetched if absent.",
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
ClientKeys = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="PREREAD_API_KEYS",
        metavar="KEY,…",
        help="Keys of which clients must send one as bearer token. Other users see them here: use the variable, or a "
        "file.",
        callback=keys.checked,
    ),
]
ClientKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="Clients' keys, one on a line: KEY, or SCOPE:KEY. A cloud's may read, or publish where SCOPE says so.",
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Address to listen on; by default localhost; 0.0.0.0: all of IPv4; may be given repeatedly.",
    ),
]
Uds = Annotated[
    Path | None,
    typer.Option(
        "--uds",
        metavar="PATH",
        help="Listen on this unix socket, and on no address unless --host names one; as --host PATH.sock.",
    ),
]
UdsMode = Annotated[
    str,
    typer.Option("--uds-mode", metavar="OCTAL", help="Who may use the socket, as chmod has it; by default its owner."),
]
Cert = Annotated[
    Path | None,
    typer.Option(
        "--cert",
        "--ssl-cert-file",
        metavar="FILE",
        help="Speak TLS with this certificate in PEM, followed by those that vouch for it; a renewed one is taken.",
    ),
]
CertKey = Annotated[
    Path | None,
    typer.Option("--key", "--ssl-key-file", metavar="FILE", help="The key of --cert, unless that file holds it too."),
]
ClientCa = Annotated[
    Path | None,
    typer.Option(
        "--client-ca",
        metavar="FILE",
        help="Listen only to clients with a certificate of these authorities; needs --cert.",
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without keys, let in everybody who reaches this server from elsewhere.")
]
AllowHost = Annotated[
    str | None,
    typer.Option(
        "--allow-host",
        metavar="NAME,…|*",
        help="Names besides localhost that clients may call this server by where there are no keys.",
    ),
]
AllowOrigin = Annotated[
    str | None,
    typer.Option("--allow-origin", metavar="ORIGIN,…|*", help="Web pages from here may ask, as https://app.example."),
]
Rung = Annotated[
    str | None,
    typer.Option(
        "--rung",
        metavar="RUNG",
        help=f"Quality of the streamed KV cache: {_RUNGS}, or a fitted one such as b2; by default --max-dloss decides.",
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
Neighbours = Annotated[
    str | None,
    typer.Option("--neighbours", metavar="URL,…", help="Other edges of this site, that share what they hold."),
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


def rung_names(given: str) -> tuple[str, ...]:
    """The rungs in `lossless,q8`, each once. Whether a model's profile has a fitted one is not known here.

    Raises:
        UsageError: one is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--rungs holds no rung; known rungs: {_RUNGS}, and fitted ones such as b2")
    for name in names:
        check_rung(name)
    return names


def subscriptions(subscribe: str | None, pins: list[str] | None, prefetch: str) -> tuple[tuple[str, ...], Policy]:
    """What an edge holds ahead of need: these names, and by which policy others.

    Raises:
        UsageError: `prefetch` is no policy, or `subscribe` names nothing.
    """
    names = [name.strip() for name in (subscribe or "").split(",") if name.strip()]
    if subscribe is not None and not names:
        raise UsageError("--subscribe names no context: write --subscribe NAME,NAME or --subscribe all")
    chosen = policy("all" if names == ["all"] else prefetch)
    return tuple(dict.fromkeys([*(pins or ()), *(name for name in names if names != ["all"])])), chosen


def policy(given: str) -> Policy:
    """What `--prefetch` says.

    Raises:
        UsageError: it says something else.
    """
    for known in POLICIES:
        if given == known:
            return known
    raise UsageError(f"--prefetch is one of {', '.join(POLICIES)}, not {given!r}")


def urls(given: str | None) -> tuple[str, ...]:
    """The addresses in `http://a:1,http://b:2`, each once.

    Raises:
        UsageError: one cannot be an address.
    """
    found = tuple(dict.fromkeys(url.strip() for url in (given or "").split(",") if url.strip()))
    for url in found:
        parse_origin(url)
    return found


def host_and_port(given: str) -> tuple[str, int]:
    """What is in `host:port` or `[ipv6]:port`.

    Raises:
        UsageError: it is no such text.
    """
    host, colon, port = given.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise UsageError(f"--share takes HOST:PORT, not {given!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_rung(name: str | None) -> None:
    """Refuse what cannot be the name of a rung, before a model is loaded for it.

    Raises:
        UsageError: it cannot.
    """
    if name is not None and name not in ladder() and not _FITTED.fullmatch(name):
        raise UsageError(f"unknown rung {name!r}; known rungs: {_RUNGS}, and fitted ones such as b2")


def check_folder(path: Path) -> None:
    """Refuse, before any work is done, a file that cannot be written in the end.

    Raises:
        UsageError: its folder does not exist.
    """
    if not path.expanduser().absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: its folder does not exist")


def counts(option: str, text: str) -> tuple[int, ...]:
    counts = numbers(option, text)
    if min(counts) < 1 or any(count % 1 for count in counts):
        raise UsageError(f"{option} is a list of whole numbers of at least 1")
    return tuple(map(int, counts))


def numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} is a list of numbers separated by commas, not {text!r}") from error
    if min(numbers) < 0:
        raise UsageError(f"{option} must not be negative")
    return numbers
