"""What was learnt of models, as a cloud lists it: fitted profiles, mappings, guides and calibrations of decisions.

Each is an immutable object, named by its digest; the list says of which model it is and what it was measured to be
worth. Canonical JSON. What is in the objects is known to those who use them: see `preread.fit.fits`.
"""

from typing import Annotated, Final, Literal

import msgspec

from preread.errors import CorruptData, UsageError
from preread.values import ObjectRef
from preread.wire import canonical
from preread.wire.fields import MAX_PROFILE_BYTES, FingerprintField, Line, ObjectIdField, Record

PATH: Final = "/v1/fits"
FORMAT: Final = "preread-fits"
VERSION: Final = 1
MAX_FITS: Final = 512
"""Of a cloud."""
MAX_FITS_BYTES: Final = 2**23
MAX_FIT_BYTES: Final = 2**28
MAX_MEASURED: Final = 64

FitKind = Literal["codec", "map", "guide", "decisions", "family"]
"""What `preread fit` calls what it was learnt by."""

ALSO: Final = "also"
"""Query: kinds to list besides those of the first release, whose readers refuse a list with any other."""
LATER_KINDS: Final[tuple[FitKind, ...]] = ("family",)

_Micronats = Annotated[int, msgspec.Meta(ge=-(10**12), le=10**12)]


class Measured(Record, frozen=True, omit_defaults=True):
    """By how much the loss rose, in millionths of a nat a token, where the fit measured it.

    `what`: of which rung, or of which of several measures. `interval_micronats` is of 95 %, both ends included.
    `tokens`: on so many positions.
    """

    what: Line
    dloss_micronats: _Micronats
    tokens: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    interval_micronats: tuple[_Micronats, _Micronats] | None = None


class Fit(Record, frozen=True, omit_defaults=True, rename={"size_bytes": "bytes"}):
    """One object, and what it says of itself.

    `fingerprint` is of the model whose KV it is about, `large`: of the one that it is read from, for a mapping and a
    guide, or whose KV is read, for a gate. `text` says what it was learnt from. What the cloud adds, if it knows:
    `model` and `large_model` are names, `created` is when it came, in UTC (RFC 3339).
    """

    kind: FitKind
    id: ObjectIdField
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_FIT_BYTES)]
    fingerprint: FingerprintField
    text: Line
    measured: Annotated[tuple[Measured, ...], msgspec.Meta(max_length=MAX_MEASURED)] = ()
    large: FingerprintField | None = None
    model: Line | None = None
    large_model: Line | None = None
    created: Annotated[str, msgspec.Meta(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")] | None = None


class Fits(Record, frozen=True):
    """All that a cloud has, the oldest first."""

    fits: Annotated[tuple[Fit, ...], msgspec.Meta(max_length=MAX_FITS)]
    format: Literal["preread-fits"] = msgspec.field(default_factory=lambda: FORMAT)
    version: Literal[1] = msgspec.field(default_factory=lambda: VERSION)


def dumps(fits: Fits) -> bytes:
    """Write a list that `loads` accepts.

    Raises:
        UsageError: it would not.
    """
    data = canonical.dumps(fits)
    try:
        loads(data)
    except CorruptData as error:
        raise UsageError(f"fits cannot be listed: {error}") from error
    return data


def loads(data: bytes) -> Fits:
    """Read a list.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length" (the list, or an object of it, has too many bytes),
            "name" (an object is there twice).
    """
    canonical.check_stamp(data, FORMAT, VERSION, MAX_FITS_BYTES)
    found = canonical.loads(data, Fits, MAX_FITS_BYTES)
    if len({fit.id for fit in found.fits}) != len(found.fits):
        raise CorruptData("name", "a fit is listed twice")
    if any(fit.kind == "codec" and fit.size_bytes > MAX_PROFILE_BYTES for fit in found.fits):
        raise CorruptData("length", "a profile that is listed is larger than one may be")
    return found


def ref(fit: Fit) -> ObjectRef:
    """The object to ask for."""
    return ObjectRef("fits", fit.id, fit.size_bytes)
