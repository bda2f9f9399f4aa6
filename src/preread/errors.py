"""The one tree of errors; each says whose fault it is and what to do next.

    PrereadError
    ├── UsageError        the caller asked for something that cannot be: fix the request or the flags
    │   ├── UnknownContext    a context was asked for by a name that nobody published
    │   ├── TooLong           the prompt does not fit the model's window
    │   └── Full              a cloud has as many contexts as it may have: remove one first
    ├── RemoteError       the other side answered, and its answer is an error: look at its log
    ├── TransportError    the other side did not answer (in time): look at the link
    ├── Unavailable       what was asked for cannot be told now, and why: try again when that is mended
    ├── Overloaded        there is too much to do at the moment: try again later
    ├── CorruptData       foreign bytes are not what they claim to be: they were not used
    ├── EngineError       this machine's inference engine failed or refused
    └── Cancelled         the caller went away; nothing is wrong

Modules that call foreign libraries translate their exceptions into these, once, at the rim.
"""

from typing import Final

_MOST_LISTED: Final = 20
"""Names of which an error tells; there may be tens of thousands."""


class PrereadError(Exception):
    """Anything that preread raises on purpose. `str(error)` is one line that a person can act on."""


class UsageError(PrereadError):
    """The caller's fault. Retrying the same call cannot help.

    Attributes:
        param: the field of a request that is at fault, where one is.
    """

    param: str | None = None


class UnknownContext(UsageError):
    """No published context has this name.

    Attributes:
        name: the name that was asked for.
        known: the names that are known, sorted.
    """

    param = "context"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name, self.known = name, tuple(sorted(known))
        listing = ", ".join(self.known[:_MOST_LISTED]) if self.known else "none is published yet"
        if len(self.known) > _MOST_LISTED:
            listing += f" and {len(self.known) - _MOST_LISTED} more"
        super().__init__(f"unknown context {name!r}; known contexts: {listing}")


class TooLong(UsageError):
    """The prompt does not fit the model's window."""


class Full(UsageError):
    """A cloud has as many contexts as it may have: one has to be removed before another can be published."""


class RemoteError(PrereadError):
    """The other side's fault: it answered with an error or with nonsense."""


class Absent(RemoteError):
    """The other side does not have what was asked for; it may have everything else."""


class TransportError(PrereadError):
    """The link's fault: no answer, or not in time. Retrying later may help."""


class Unavailable(PrereadError):
    """What was asked for may exist, but cannot be had now; the message names the cause."""


class Overloaded(PrereadError):
    """There is too much to do at the moment.

    Attributes:
        retry_after_s: when trying again makes sense.
        by_caller: whether it is this caller who has too much waiting (HTTP 429), or all together (503).
    """

    def __init__(self, message: str, *, retry_after_s: float, by_caller: bool = False) -> None:
        self.retry_after_s, self.by_caller = retry_after_s, by_caller
        super().__init__(message)


class CorruptData(PrereadError):
    """Foreign bytes failed a check and were thrown away before anything was allocated or injected.

    Attributes:
        reason: stable code for logs and tests, for example "digest", "length", "shape", "version".
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{message} [{reason}]")


class EngineError(PrereadError):
    """The local inference engine failed or refused."""


class Cancelled(PrereadError):
    """The work was given up because nobody waits for it any more."""
