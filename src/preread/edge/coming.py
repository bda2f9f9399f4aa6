"""How a context comes into the engine's cache, and who waits for it: kept up to date by `residents.py`."""

from contextvars import Context, copy_context
from dataclasses import dataclass, field

from preread.edge.load import Loaded, LoadSpec
from preread.edge.understand import Question


@dataclass(slots=True)
class Coming:
    """How a context came, or comes.

    Attributes:
        began_s: when it began to, of `time.monotonic`.
        spec, loaded: what is streamed, and how far that is; None: it comes from memory, or is computed.
        reason: why all of it is computed here, if it is.
        context_s: what that took.
    """

    began_s: float
    spec: LoadSpec | None = None
    loaded: Loaded | None = None
    reason: str | None = None
    context_s: float = 0.0


@dataclass(slots=True, eq=False)
class Asking:
    """A question under way, and how its context came; None: it was there. `within`: what its spans are part of."""

    question: Question
    coming: Coming | None = None
    within: Context = field(default_factory=copy_context)
