"""What a cloud tells its publisher while it works: one JSON object a line, as both sides of the connection read it."""

from typing import Annotated, Literal

import msgspec

from preread.values import Form
from preread.wire.catalogue import Entry
from preread.wire.fields import ContextIdField

Mode = Literal["exact", "mapped", "guided", "taught", "auto"]
"""How a document is to be read; see `preread.cloud.reading`."""

Priority = Literal["interactive", "background"]
"""Whether a person waits for it; what is in the background is published when nobody waits."""

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of POST /v1/contexts: a document as text or as token ids, how it continues, and how it is to be read.

    `model` is the name of the one that reads it; the cloud's first, if none is named.
    """

    name: str
    text: str | None = None
    tokens: list[TokenId] | None = None
    form: Form | Literal["auto"] = "auto"
    mode: Mode = "exact"
    priority: Priority = "interactive"
    model: str | None = None


class Progress(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """`done` of `total` steps of a stage: "fit" (once for a model), then "prefill" and "encode" by turns, in tokens.

    Before these "queue", in documents that were there sooner, where there are any. Where a large model helps, between
    these "read", in tokens, and "measure", in modes. The last line is said again where nothing happens for a while.
    """

    stage: str
    done: int
    total: int


class Published(
    msgspec.Struct,
    frozen=True,
    tag_field="event",
    tag="published",
    rename={"rung_bytes": "bytes"},
    omit_defaults=True,
):
    """The last line of a publication: its catalogue entry, bytes for each rung, and how long it took.

    `mode` is how it was read in the end, and `notes` say why, where another mode was asked for. A rung of `bases` is no
    use without the one that it refines: its bytes come on top of that one's.
    """

    entry: Entry
    rung_bytes: dict[str, int]
    seconds: float
    mode: Literal["exact", "mapped", "guided", "taught"] = "exact"
    notes: tuple[str, ...] = ()
    bases: dict[str, str] = {}


class Counted(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of POST /v1/count: what a document would be, if it were published now.

    Attributes:
        model: that would read it.
        token_count: how many tokens it has; where `context` is missing, how many it has at least.
        most_tokens: how many a context may have.
        context: its id; missing where the document is so much too long that not all of it was read.
        current: whether just this is published under its name already, in the rungs and with the profile of today.
    """

    model: str
    token_count: int
    most_tokens: int
    context: ContextIdField | None = None
    current: bool = False


class Problem(msgspec.Struct, frozen=True):
    """An error as the clients of OpenAI's API expect it; `param` is the field of the request that is at fault."""

    message: str
    type: str
    code: str
    param: str | None = None


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """The last line of a publication that came to nothing; what was published before is unchanged."""

    error: Problem


Event = Progress | Published | Failed
