"""`preread attach`: contexts for a llama-server that somebody runs already."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread import loop
from preread.cli import arguments, keys, options
from preread.cli.endpoint import AT_ONCE, Endpoint, Stop
from preread.cli.grouped import grouped
from preread.cli.terminal import say
from preread.engine.registry import DEFAULT
from preread.plan.choose import MAX_DLOSS
from preread.plan.poll import SYNC_S

if TYPE_CHECKING:
    from preread.attach.options import Options
    from preread.cli.listener import Listener

_ENDPOINT: Final = Endpoint(port=8081)


@grouped
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
    endpoint: Endpoint = _ENDPOINT,
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
    stop: Stop = AT_ONCE,
) -> None:
    """Put contexts into a llama-server that runs already: a proxy in front of it.

    It restores a context's KV into a slot of the server before a request about it is passed on. Everything else goes
    to the server and back as it is.
    """
    from preread.attach.options import Options
    from preread.cli.listener import listening
    from preread.wire.neighbour import SiteKey

    site_secret = keys.own(site_key, site_key_file)
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
    with ExitStack() as stack:
        there = stack.enter_context(listening(endpoint, "ask"))
        interrupted = loop.run(_serve(there, wanted, stop))
    if interrupted:
        raise KeyboardInterrupt


async def _serve(there: "Listener", wanted: "Options", stop: Stop) -> bool:
    from preread.attach.app import create_app
    from preread.attach.opening import attached
    from preread.cli import listen

    def ready() -> None:
        link = f"cloud {wanted.cloud}" if wanted.cloud else "no cloud"
        say(f"preread attach: {wanted.server} on {there.urls}, slot files in {wanted.slots}, {link}")

    app = create_app(lambda: attached(wanted), there.access)
    return await listen.serve(nullcontext(app), there.sockets, ready, there.secured, stop)
