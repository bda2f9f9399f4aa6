"""What the pages show, as values without behaviour: made by an edge or a cloud, turned into HTML by `render.py`.

Nothing of what was asked or answered is in them: names of contexts, sizes, counts and times.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from preread.page.kvmap import KvMap

Counts = tuple[tuple[str, int], ...]
"""Names, and how many of each. Values can be hashed, so that what is made of them can be kept."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the time until the first token; `key` is its name for style sheets."""

    key: str
    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """How one answer's context came, and what its first token waited for.

    Attributes:
        number: counts an edge's answers.
        at: when it was asked, as a clock shows it.
        context: name of the context; None: there was none.
        kv: where that came from; None: there is no context.
        before: of a context that was resident: what was said of it when it came.
        reason: why nothing was streamed, where nothing was.
        question_tokens: of the prompt behind the context; `kept_tokens` of them were known from the turns before.
        answer_tokens: so far.
        received_bytes: of segments, for this answer.
        ttft_ms: to the first token; None: it has not come yet.
        parts: of that time.
        tokens_s: of the answer, after the first token; 0: not known.
        live: it is not over.
    """

    number: int
    at: str
    context: str | None
    kv: KvMap | None
    before: str | None = None
    reason: str | None = None
    question_tokens: int = 0
    kept_tokens: int = 0
    answer_tokens: int = 0
    received_bytes: int = 0
    ttft_ms: float | None = None
    parts: tuple[Part, ...] = ()
    tokens_s: float = 0.0
    live: bool = False


@dataclass(frozen=True, slots=True)
class Rung:
    """One quality of a context: its bytes, its stated loss in nats a token (None: not stated).

    `held`: which share of the bytes is on this edge's disk; None: that is no question here.
    """

    name: str
    size_bytes: int
    dloss: float | None = None
    held: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """A published context.

    Attributes:
        tier: where an edge has it: "resident", "loading", "memory", "disk", "cloud", or "computed": only by computing.
        note: what else there is to say, for example why it cannot be streamed.
        used, hits: answers that began with it, and those of them for which nothing had to come.
        mode, at: how its KV was made, and when it was published, in a cloud.
    """

    name: str
    model: str
    tokens: int
    rungs: tuple[Rung, ...] = ()
    tier: str = "cloud"
    note: str | None = None
    pinned: bool = False
    used: int = 0
    hits: int = 0
    mode: str | None = None
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts to show, and how many more there are."""

    shown: tuple[Context, ...]
    more: int = 0


@dataclass(frozen=True, slots=True)
class Choices:
    """Names that a chat can be about, and how many more there are."""

    names: tuple[str, ...]
    more: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another edge of the site, and how it is."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class Machine:
    """An edge's links, its queue and its batches.

    Attributes:
        model: its name; `window_tokens`: the longest prompt.
        cloud: None: it can be reached; else why not.
        mbps: what its link is believed to carry, Mbit/s; `rtt_ms`: its round trip. None: not seen yet.
        neighbours: other edges.
        received_bytes: by source.
        running, waiting, loading: requests, requests, and contexts on their way.
        steps: that were computed; `step_tokens`: tokens in one, in the mean.
        cells: of the cache, by what has them.
        kv_bytes: of KV in the engine's cache, in memory and on the disk.
    """

    model: str
    window_tokens: int
    cloud: str | None
    mbps: float | None
    rtt_ms: float | None
    neighbours: tuple[Neighbour, ...]
    received_bytes: Counts
    running: int
    waiting: int
    loading: int
    steps: int
    step_tokens: float
    cells: Counts
    kv_bytes: Counts


@dataclass(frozen=True, slots=True)
class Publication:
    """A document on its way into a cloud's store: `done` of `total` of a stage."""

    name: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Published:
    """What a cloud has: contexts, what is being published, and bytes of objects."""

    contexts: Contexts
    publications: tuple[Publication, ...]
    store_bytes: int


Section = tuple[Answer, ...] | Contexts | Choices | Machine | Published


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows at a moment: a value for each section, and after how many seconds to look again."""

    sections: Mapping[str, Section]
    pace_s: float
