"""How `preread attach` is run: what its operator chooses, as one value that is handed down whole."""

from dataclasses import dataclass
from pathlib import Path

from preread.plan.choose import MAX_DLOSS
from preread.plan.poll import SYNC_S
from preread.via import DIRECT, Via
from preread.wire.neighbour import SiteKey


@dataclass(frozen=True, slots=True)
class Options:
    """How to attach to a server.

    Attributes:
        model: name in the registry, path of a GGUF file, or `hf:user/repo:Q4_K_M`: what the server runs.
        server, server_key: URL of the llama-server, and the key that it asks for, if it does.
        slots: folder of its --slot-save-path.
        slots_bytes: room for slot files there.
        cloud, cloud_key: URL of the cloud, and the key that it asks for; None: only what is on the disk is restored.
        rung: that is streamed; None: the one of fewest bytes that keeps `max_dloss`, in nats a token.
        sync_s: how often the catalogue is asked for where the cloud does not tell of changes; over 60, always.
        names: only contexts whose names begin with one of these are listed, and others when they are asked for; by
            default all of the model.
        folder: where the catalogue and segments are kept; by default in the user's cache folder, where an edge of the
            same cloud finds them too.
        disk_bytes: room for segments there; 0: none are kept.
        via: how the cloud is reached.
        neighbours: URLs where edges of the site share what they hold, and the secret that the site has, if it has one.
    """

    model: str
    server: str
    slots: Path
    slots_bytes: int = 4 << 30
    server_key: str | None = None
    cloud: str | None = None
    cloud_key: str | None = None
    rung: str | None = None
    max_dloss: float = MAX_DLOSS
    sync_s: float = SYNC_S
    names: tuple[str, ...] = ()
    folder: Path | None = None
    disk_bytes: int = 4 << 30
    via: Via = DIRECT
    neighbours: tuple[str, ...] = ()
    site_key: SiteKey | None = None
