"""What happens to a load, and what its plan says to do: the words between `plan.py` and whoever drives it."""

from dataclasses import dataclass
from typing import Literal

Fault = Literal["link", "cell", "source"]

Cell = tuple[int, int]
"""One segment of a context: its chunk and its group of layers."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes came from a source in all, unfinished cells included. It is noted; the next event is acted upon."""

    source: int
    seen_bytes: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A cell that was asked for is here, and is what it should be."""

    cell: Cell
    source: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A cell that was asked for did not come.

    Attributes:
        fault: "link": nothing or not all of it arrived; "cell": this source has none, or a wrong one; "source": nothing
            is to be had there.
    """

    cell: Cell
    source: int
    fault: Fault = "link"


@dataclass(frozen=True, slots=True)
class Placed:
    """A cell was injected."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A cell could not be decoded: nobody has a better one."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Computed:
    """The chunks that were being computed are in place."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The computation, or the answer, ended early, as was asked for."""


@dataclass(frozen=True, slots=True)
class Unsplit:
    """Nothing was computed: the cache has no room for that beside the context, or some layers would have other bits."""


Event = Tick | Progress | Arrived | Failed | Placed | Spoilt | Computed | Interrupted | Unsplit


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask a source for a cell."""

    cell: Cell
    source: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up a request; what it may still bring is not wanted."""

    cell: Cell
    source: int


@dataclass(frozen=True, slots=True)
class Inject:
    """Decode a cell that arrived, and write it into the engine; answered by `Placed` or `Spoilt`."""

    cell: Cell


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute chunks `start` … `stop`−1, all in one batch; answered by `Computed`, `Interrupted` or `Unsplit`.

    groups: only the first so many groups of layers; None: all.
    """

    start: int
    stop: int
    groups: int | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """End what the engine is doing; answered by `Interrupted`, or `Computed` where it came too late."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Begin the prompt, behind the gate: what is missing is on its way."""


@dataclass(frozen=True, slots=True)
class Open:
    """The first `groups` groups of layers are in place."""

    groups: int


Instruction = Fetch | Abandon | Inject | Compute | Interrupt | Answer | Open
