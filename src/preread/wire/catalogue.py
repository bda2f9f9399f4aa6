"""The published contexts of one cloud by name. Canonical JSON; the only mutable document there is.

It is sent whole, or in pages: see `pages.py`.
"""

import unicodedata
from typing import Annotated, Final, Literal

import msgspec

from preread.errors import CorruptData, UsageError
from preread.values import Form, ObjectRef
from preread.wire import canonical, tokens
from preread.wire.digest import is_id
from preread.wire.fields import (
    MAX_CATALOGUE_BYTES,
    MAX_MANIFEST_BYTES,
    ContextIdField,
    FingerprintField,
    Line,
    Record,
    SizedId,
    TokenCount,
)

FORMAT: Final = "preread-catalogue"
VERSION: Final = 1
MOST_REMOVED: Final = 4096
"""So many removals are told; whoever has not asked since longer ago keeps what he knew."""
MAX_ENTRIES: Final = 2**16

_UNNAMEABLE = {"Cc", "Cs", "Zl", "Zp"}


class Entry(Record, frozen=True):
    """One published context: the name people ask for, and what to fetch first.

    `vocabulary` is a digest of the tokenizer: where it is the same but `fingerprint` is not, the token ids still mean
    the same text, so the context can be computed though not streamed.
    """

    name: str
    context: ContextIdField
    form: Form
    fingerprint: FingerprintField
    vocabulary: FingerprintField
    model: Line
    token_count: TokenCount
    manifest: SizedId
    tokens: SizedId


class Catalogue(Record, frozen=True, omit_defaults=True):
    """All published contexts, or one page of them, or what of them has changed; names are unique.

    `next`, absent from the JSON where nothing follows, is the name after which the next page begins.
    `since`, absent where it is no change, is the version that everything that is not here is as it was in.
    `removed` are names that somebody took back, and none that is published; absent from the JSON where there are none.
    That a name is in neither list tells nothing: a store may have come back empty or damaged, or be another one.
    """

    # a factory's value is written even where defaults are omitted: only `removed`, `next`, `since` may be absent
    contexts: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = msgspec.field(
        default_factory=lambda: ()
    )
    removed: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_REMOVED)] = ()
    format: Literal["preread-catalogue"] = msgspec.field(default_factory=lambda: FORMAT)
    version: Literal[1] = msgspec.field(default_factory=lambda: VERSION)
    next: str = ""
    since: str = ""


def dumps(catalogue: Catalogue) -> bytes:
    """Write a catalogue that `loads` accepts.

    Raises:
        UsageError: it would not.
    """
    data = canonical.dumps(catalogue)
    try:
        loads(data)
    except CorruptData as error:
        raise UsageError(f"catalogue cannot be published: {error}") from error
    return data


def write(entry: Entry) -> bytes:
    """Write an entry so that `loads` accepts it.

    Raises:
        UsageError: it would not.
    """
    dumps(Catalogue((entry,)))
    return canonical.dumps(entry)


def loads(data: bytes) -> Catalogue:
    """Read a catalogue.

    Raises:
        CorruptData: "format", "version", "json", "schema", "length" (an object's size is out of bounds), "name" (not
            a name, or a name that is there twice, published or removed).
    """
    canonical.check_stamp(data, FORMAT, VERSION, MAX_CATALOGUE_BYTES)
    catalogue = canonical.loads(data, Catalogue, MAX_CATALOGUE_BYTES)
    names = [*(entry.name for entry in catalogue.contexts), *catalogue.removed]
    if catalogue.since and (catalogue.next or not is_id(catalogue.since)):
        raise CorruptData("schema", "catalogue tells changes since no version, or in several pages")
    if catalogue.next and not valid_name(catalogue.next):
        raise CorruptData("name", "catalogue goes on after a text that cannot be a name")
    if len(set(names)) != len(names) or not all(map(valid_name, names)):
        raise CorruptData("name", "catalogue holds a name twice, or a text that cannot be a name")
    for entry in catalogue.contexts:
        fits = entry.tokens.size_bytes <= tokens.bound_bytes(entry.token_count)
        if not fits or entry.manifest.size_bytes > MAX_MANIFEST_BYTES:
            raise CorruptData("length", f"catalogue states an impossible size for {entry.name!r}")
    return catalogue


def valid_name(name: str) -> bool:
    """Whether `name` can name a context: 1 to 128 characters, no control characters, no "/", not "." or ".."."""
    if not 1 <= len(name) <= 128 or "/" in name or name in {".", ".."}:
        return False
    return not any(unicodedata.category(letter) in _UNNAMEABLE for letter in name)


def manifest_ref(entry: Entry) -> ObjectRef:
    """The manifest to ask for."""
    return ObjectRef("manifests", entry.manifest.id, entry.manifest.size_bytes)


def tokens_ref(entry: Entry) -> ObjectRef:
    """The token object to ask for."""
    return ObjectRef("tokens", entry.tokens.id, entry.tokens.size_bytes)
