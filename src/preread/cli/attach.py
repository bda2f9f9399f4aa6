"""`preread attach`: contexts for a llama-server that somebody runs already."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preread import loop
from preread.cli import arguments, keys, options
from preread.cli.listener import Listener, Place, listening
from preread.cli.terminal import say
from preread.engine.registry import DEFAULT
from preread.plan.choose import MAX_DLOSS
from preread.plan.poll import SYNC_S

if TYPE_CHECKING:
    from preread.attach.options import Options
    from preread.cli.listen import Stop


def attach(
    server: Annotated[
        str,
        typer.Option("--server", envvar="PREREAD_SERVER", metavar="URL", help="The llama-server to attach to."),
    ],
    slots: Annotated[
        Path,
        typer.Option("--slots", metavar="FOLDER", help="Its --slot-save-path; it must be this machine's."),
    ],
    model: options.Model = DEFAULT,
    cloud: options.OptionalCloud = None,
    host: options.Hosts = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8081,
    api_key: options.ClientKeys = None,
    api_key_file: options.ClientKeyFile = None,
    insecure: options.Insecure = False,
    uds: options.Uds = None,
    uds_mode: options.UdsMode = "600",
    cert: options.Cert = None,
    key: options.CertKey = None,
    client_ca: options.ClientCa = None,
    allow_host: options.AllowHost = None,
    allow_origin: options.AllowOrigin = None,
    server_key: Annotated[
        str | None,
        typer.Option(
            "--server-key",
            envvar="PREREAD_SERVER_KEY",
            metavar="KEY",
            help="The llama-server's --api-key. Other users see it here: use the variable, or a file.",
            callback=keys.checked,
        ),
    ] = None,
    server_key_file: Annotated[
        Path | None, typer.Option("--server-key-file", metavar="FILE", help="The same key, alone in a file.")
    ] = None,
    cloud_key: options.EdgesCloudKey = None,
    cloud_key_file: options.EdgesCloudKeyFile = None,
    rung: options.Rung = None,
    max_dloss: options.MaxDloss = MAX_DLOSS,
    slots_room: Annotated[
        int, typer.Option("--slots-room", min=1, metavar="MIB", help="Room for slot files in --slots.")
    ] = 4096,
    sync_s: options.SyncS = SYNC_S,
    names: options.Names = None,
    disk_cache: options.DiskCache = 4096,
    neighbours: options.Neighbours = None,
    site_key: options.SiteKey = None,
    site_key_file: options.SiteKeyFile = None,
    drain_s: options.DrainS = 0.0,
    finish_s: options.FinishS = 5.0,
) -> None:
    """Put contexts into a llama-server that runs already: a proxy in front of it.

    It restores a context's KV into a slot of the server before a request about it is passed on. Everything else goes
    to the server and back as it is.
    """
    from preread.attach.options import Options
    from preread.cli.listen import Stop
    from preread.wire.neighbour import SiteKey

    clients, site_secret = keys.of_clients(api_key, api_key_file, "ask"), keys.own(site_key, site_key_file)
    arguments.check_rung(rung)
    wanted = Options(
        model=model,
        server=server,
        slots=slots.expanduser(),
        slots_bytes=slots_room << 20,
        server_key=keys.own(server_key, server_key_file, server),
        cloud=cloud,
        cloud_key=keys.own(cloud_key, cloud_key_file, cloud),
        rung=rung,
        max_dloss=max_dloss,
        sync_s=sync_s,
        names=arguments.prefixes(names),
        disk_bytes=disk_cache << 20,
        via=options.via(),
        neighbours=arguments.urls(neighbours),
        site_key=None if site_secret is None else SiteKey(site_secret),
    )
    place = Place(host, port, uds, uds_mode, cert, key, client_ca)
    with ExitStack() as stack:
        there = stack.enter_context(listening(place, clients, allow_host, allow_origin, insecure=insecure))
        interrupted = loop.run(_serve(there, wanted, Stop(drain_s, finish_s)))
    if interrupted:
        raise KeyboardInterrupt


async def _serve(there: Listener, wanted: "Options", stop: "Stop") -> bool:
    from preread.attach.app import create_app
    from preread.attach.opening import attached
    from preread.cli import listen

    def ready() -> None:
        link = f"cloud {wanted.cloud}" if wanted.cloud else "no cloud"
        say(f"preread attach: {wanted.server} on {there.urls}, slot files in {wanted.slots}, {link}")

    app = create_app(lambda: attached(wanted), there.access)
    return await listen.serve(nullcontext(app), there.sockets, ready, there.secured, stop)
