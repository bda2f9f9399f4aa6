"""The `preread` command. It composes the package's parts and knows terminals; it must not know how they work inside.

A module here is a group of commands. Modules that load an inference engine or an HTTP client are imported by the
command that needs them, so that the others answer at once.
"""

import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from preread import tls
from preread.cli import (
    attach,
    bundle,
    chat,
    cloud,
    contexts,
    decisions,
    demo,
    doctor,
    edge,
    family,
    fits,
    fitting,
    measure,
    models,
    options,
    publishing,
    scale,
    store,
    teaching,
)
from preread.cli.terminal import JsonFormatter, LogFormatter, note, say
from preread.engine.barrier import wait_briefly
from preread.errors import PrereadError

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
_SERVERS = {"attach", "cloud", "edge"}
_log = logging.getLogger(__name__)

app = typer.Typer(
    name="preread",
    help="A cloud reads a long shared context once; small models at the edge answer private questions about it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(cloud.cloud)
app.command()(edge.edge)
app.command()(attach.attach)
app.command()(publishing.publish)
app.add_typer(contexts.app, name="contexts")
app.command()(chat.ask)
app.command()(chat.run)
app.add_typer(models.app, name="models")
fitting.app.command()(teaching.study)
fitting.app.command()(teaching.teach)
fitting.app.command()(teaching.guide)
fitting.app.command("decisions")(decisions.fit)
fitting.app.command("family")(family.fit)
app.add_typer(fitting.app, name="fit")
app.add_typer(fits.app, name="fits")
app.add_typer(store.app, name="store")
app.command()(doctor.doctor)
app.command()(bundle.bundle)
app.command()(demo.demo)
measure.bench.command("decisions")(decisions.bench)
measure.bench.command("ray")(scale.bench)
measure.bench.command("bucket")(store.bench)
app.add_typer(measure.bench, name="bench")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line (default: `sys.argv`) and leave the process with its exit code.

    0: done; 1: an error, told in one line on stderr; 2: the command line makes no sense; 130: Ctrl-C.
    """
    wait_briefly()
    try:
        app(arguments)
    except PrereadError as error:
        note(f"preread: {error}")
        sys.exit(1)


def _version(asked: bool) -> None:
    if asked:
        say(f"preread {version('preread')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="What to log on stderr; servers: info, other commands: warning.")
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(help="How: lines of text, or a JSON object a line, for machines.")
    ] = "text",
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="Trust the authorities of this file in TLS, as SSL_CERT_FILE does."),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy",
            envvar=options.PROXY,
            metavar="URL",
            help="Reach others through this HTTP proxy, http://[USER:PASSWORD@]HOST:PORT; HTTP_PROXY has no effect.",
        ),
    ] = None,
    client_cert: Annotated[
        Path | None,
        typer.Option(
            "--client-cert",
            envvar=options.CLIENT_CERT,
            metavar="FILE",
            help="Certificate in PEM to show to a cloud or an edge that asks for one; may hold its key too.",
        ),
    ] = None,
    client_key: Annotated[
        Path | None,
        typer.Option("--client-key", envvar=options.CLIENT_KEY, metavar="FILE", help="The key of --client-cert."),
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    if ca is not None:
        tls.trust(ca)
    options.reach_others(proxy, client_cert, client_key)
    level = log_level or ("info" if context.invoked_subcommand in _SERVERS else "warning")
    handler = logging.StreamHandler(sys.stderr)
    lines = LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(lines if log_format == "text" else JsonFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("preread").setLevel(level.upper())
    source = context.get_parameter_source("proxy")
    if "@" in (proxy or "") and source is not None and source.name == "COMMANDLINE":
        _log.warning("the proxy's password is seen by every user of this machine: use %s", options.PROXY)
