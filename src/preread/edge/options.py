"""How an edge is run: what its operator chooses, as one value that is handed down whole."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict

from preread.errors import UsageError
from preread.plan.choose import MAX_DLOSS
from preread.plan.place import Policy
from preread.plan.poll import SYNC_S
from preread.via import DIRECT, Via
from preread.wire.neighbour import SiteKey

KEEP_CONVERSATIONS_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to hold: contexts by name, whatever their use, and which others."""

    pins: tuple[str, ...] = ()
    policy: Policy = "recent"


@dataclass(frozen=True, slots=True)
class Near:
    """How an edge uses its disk and its neighbours.

    Attributes:
        disk_bytes: room for segments on disk; 0: none are kept there.
        wishes: which contexts are fetched to the disk ahead of need.
        neighbours: URLs where other edges share.
        mdns: whether to look for other edges on the local network, and to announce this one if it shares.
        site_key: secret that the edges of the site share, if they do.
        share: host and port where somebody serves this edge's segments; None: nobody does.
    """

    disk_bytes: int = 0
    wishes: Wishes = field(default_factory=Wishes)
    neighbours: tuple[str, ...] = ()
    mdns: bool = False
    site_key: SiteKey | None = None
    share: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not self.disk_bytes:
            raise UsageError("an edge that shares needs --disk-cache: it shares what is on its disk")


@dataclass(frozen=True, slots=True)
class Options:
    """How an edge is run.

    Attributes:
        model: name in the registry, path of a GGUF file, `hf:user/repo:Q4_K_M` or `hf:user/repo/file.gguf`.
        cloud: URL of the cloud; None: everything is computed here.
        api_key: for the cloud, if it asks for one.
        via: how the cloud, and a model that is not here, are reached.
        rung: rung of the quality ladder that is streamed, for example "lossless"; None: the one of fewest bytes that
            keeps `max_dloss`.
        max_dloss: by how much a rung's stated loss may exceed the exact one, in nats a token.
        deadline_s: of the rungs that keep `max_dloss` the best is streamed whose first token is expected so soon; None:
            the one of fewest bytes.
        window_tokens: size of the KV cache in tokens; 0: the model's own window, at most 8,192.
        threads: 0: as many as this process may use.
        kv_memory_bytes: memory for the KV of contexts and requests in the engine's cache, at least one window's; None:
            512 MiB, or an eighth of what this process may use, or what 65,536 tokens take, where that is less.
        keep_conversations_s: for so long the KV of what was said and answered is kept, within that memory, for the next
            turn; 0: not at all.
        drafts: guess an answer's next tokens from what was read, where that makes it come faster.
        cache_ram_bytes: memory for the KV of contexts that are not in use at the moment; None: 1 GiB, or a quarter of
            what this process may use where that is less.
        folder: where the catalogue is kept; by default in the user's cache folder.
        sync_s: how often the catalogue is asked for where the cloud does not tell of changes; over 60, always.
        names: only contexts whose names begin with one of these are listed, and others when they are asked for; by
            default all of the model.
        refine: rung that a streamed context is brought to after the first token; None: it stays as it was streamed.
        decisions: what `preread fit decisions` wrote for the model; None: where it writes that by itself, if it has.
        gates: what `preread fit family` wrote for the model, besides what lies where it writes that by itself: which
            other quantisations' KV may be read.
        near: what is kept on disk, and which neighbours are asked; by default none of either.
        origins: fetch segments from the bucket or the cache that the cloud names, where it names one.
    """

    model: str
    cloud: str | None = None
    api_key: str | None = None
    rung: str | None = None
    max_dloss: float = MAX_DLOSS
    window_tokens: int = 0
    threads: int = 0
    kv_memory_bytes: int | None = None
    keep_conversations_s: float = KEEP_CONVERSATIONS_S
    drafts: bool = True
    cache_ram_bytes: int | None = None
    folder: Path | None = None
    sync_s: float = SYNC_S
    names: tuple[str, ...] = ()
    refine: str | None = None
    deadline_s: float | None = None
    decisions: Path | None = None
    gates: tuple[Path, ...] = ()
    near: Near = field(default_factory=Near)
    origins: bool = True
    via: Via = DIRECT


class OptionFields(TypedDict, total=False):
    """Fields of `Options` as keyword arguments, but for the model and the cloud."""

    api_key: str | None
    rung: str | None
    max_dloss: float
    window_tokens: int
    threads: int
    kv_memory_bytes: int | None
    keep_conversations_s: float
    drafts: bool
    cache_ram_bytes: int | None
    folder: Path | None
    sync_s: float
    names: tuple[str, ...]
    refine: str | None
    deadline_s: float | None
    decisions: Path | None
    gates: tuple[Path, ...]
    near: Near
    origins: bool
    via: Via
