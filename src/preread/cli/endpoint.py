"""Options of every command that runs a server: where it listens and to whom, and how it stops."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from preread.cli import keys

DEFAULT_HOSTS: Final = ("localhost",)
"""Both loopbacks, where there are both: what runs on this machine may try either first."""

_SOCKET: Final = re.compile(r"unix:(?://)?(?P<path>.+)|(?P<plain>.*/.*|.+\.sock)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, what it speaks there, and to whom.

    Attributes:
        hosts: addresses, and paths of unix sockets as llama-server writes them; None: localhost, unless there is `uds`.
        cert, key, client_ca: of TLS, which is spoken at addresses alone: a unix socket does not leave the machine.
    """

    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on; by default localhost; 0.0.0.0: all of IPv4; may be given repeatedly.",
        ),
    ] = None
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="PREREAD_API_KEYS",
            metavar="KEY,…",
            help="Keys of which clients must send one as bearer token. Other users see them here: use the variable, or "
            "a file.",
            callback=keys.checked,
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="Clients' keys, one on a line: KEY, or SCOPE:KEY. A cloud's may read, or publish where SCOPE says so.",
        ),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without keys, let in everybody who reaches this server from elsewhere.")
    ] = False
    uds: Annotated[
        Path | None,
        typer.Option(
            "--uds",
            metavar="PATH",
            help="Listen on this unix socket, and on no address unless --host names one; as --host PATH.sock.",
        ),
    ] = None
    uds_mode: Annotated[
        str,
        typer.Option(
            "--uds-mode", metavar="OCTAL", help="Who may use the socket, as chmod has it; by default its owner."
        ),
    ] = "600"
    cert: Annotated[
        Path | None,
        typer.Option(
            "--cert",
            "--ssl-cert-file",
            metavar="FILE",
            help="Speak TLS with this certificate in PEM, followed by those that vouch for it; a renewed one is taken.",
        ),
    ] = None
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", "--ssl-key-file", metavar="FILE", help="The key of --cert, unless that file holds it too."
        ),
    ] = None
    client_ca: Annotated[
        Path | None,
        typer.Option(
            "--client-ca",
            metavar="FILE",
            help="Listen only to clients with a certificate of these authorities; needs --cert.",
        ),
    ] = None
    allow_host: Annotated[
        str | None,
        typer.Option(
            "--allow-host",
            metavar="NAME,…|*",
            help="Names besides localhost that clients may call this server by where there are no keys.",
        ),
    ] = None
    allow_origin: Annotated[
        str | None,
        typer.Option(
            "--allow-origin", metavar="ORIGIN,…|*", help="Web pages from here may ask, as https://app.example."
        ),
    ] = None

    @property
    def paths(self) -> list[Path]:
        """Of unix sockets."""
        found = [_SOCKET.fullmatch(host) for host in self.hosts or ()]
        named = [Path(one["path"] or one["plain"]) for one in found if one]
        return named if self.uds is None else [self.uds, *named]

    @property
    def addresses(self) -> list[str]:
        """Of the network."""
        if self.hosts is None:
            return [] if self.uds else list(DEFAULT_HOSTS)
        return [host for host in self.hosts if not _SOCKET.fullmatch(host)]


@dataclass(frozen=True, slots=True)
class Stop:
    """How a server that is asked to stop by SIGTERM does so.

    Attributes:
        drain_s: it says that it is not ready, and listens on so long: what sends it requests needs time to notice.
        finish_s: then it listens no more, and what is under way may take so long to end.
    """

    drain_s: Annotated[
        float,
        typer.Option(
            "--drain-s",
            min=0,
            metavar="S",
            help="On SIGTERM, say at /readyz that it is not ready, and listen on so long, for load balancers to "
            "notice.",
        ),
    ] = 0.0
    finish_s: Annotated[
        float,
        typer.Option(
            "--finish-s",
            min=0,
            metavar="S",
            help="Then listen no more: what is under way may take so long to end, before it is cut short.",
        ),
    ] = 5.0


AT_ONCE: Final = Stop()
