"""Which contexts of a cloud somebody wants to know of, as a query says it. Pure.

An edge wants those of its own model, perhaps only those whose names begin in some way, and those that it was asked
for. Names that it was asked for are not told: a selection has the first digits of their digests, which many names
share, so that a cloud learns nothing of a name that it does not publish itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from preread.errors import UsageError
from preread.values import Fingerprint
from preread.wire.digest import is_id, object_id

MOST: Final = 1024
"""Fingerprints, prefixes and digests in one selection."""

DIGITS: Final = 3
"""So many hexadecimal digits of a name's digest tell of it: one in 4,096 names has the same."""

MOST_PREFIX: Final = 128
"""Characters."""
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Selection:
    """Contexts of these models whose names begin so; and others by digest. What is empty restricts nothing.

    Attributes:
        fingerprints: of models.
        prefixes: of names.
        digests: what the digests of further names begin with, whatever their models. Where there are only digests,
            nothing else is selected.
    """

    fingerprints: tuple[Fingerprint, ...] = ()
    prefixes: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether it leaves nothing out."""
        return not (self.fingerprints or self.prefixes or self.digests)

    def names(self, name: str) -> bool:
        """Whether a context of this name can be selected: of some model, at least."""
        only_digests = self.digests and not (self.fingerprints or self.prefixes)
        if not only_digests and (not self.prefixes or name.startswith(self.prefixes)):
            return True
        return bool(self.digests) and name_digest(name).startswith(self.digests)

    def takes(self, name: str, fingerprint: Fingerprint) -> bool:
        """Whether a context is selected."""
        if not self.names(name):
            return False
        if not self.fingerprints or fingerprint in self.fingerprints:
            return True
        return bool(self.digests) and name_digest(name).startswith(self.digests)

    def query(self) -> str:
        """As it stands in a URL's query, without "?"; empty where everything is selected."""
        parts = [f"fingerprint={one}" for one in self.fingerprints]
        parts += [f"prefix={quote(one, safe='')}" for one in self.prefixes]
        return "&".join(parts + [f"digest={one}" for one in self.digests])


EVERYTHING: Final = Selection()


def name_digest(name: str) -> str:
    """The digest that stands for a name: BLAKE3 of its UTF-8, in hexadecimal digits."""
    return object_id(name.encode())


def of_names(names: Iterable[str]) -> tuple[str, ...]:
    """What the digests of these names begin with, sorted, each once."""
    return tuple(sorted({name_digest(name)[:DIGITS] for name in names}))


def parse(fingerprints: list[str], prefixes: list[str], digests: list[str]) -> Selection:
    """A selection as a query has it.

    Raises:
        UsageError: something in it cannot be, or it has too much; `param` says what.
    """
    if len(fingerprints) + len(prefixes) + len(digests) > MOST:
        raise UsageError(f"at most {MOST} fingerprints, prefixes and digests can be asked for at once")
    for one in fingerprints:
        if not is_id(one):
            raise _refused("fingerprint", f"a fingerprint is 64 lower-case hex digits, not {one[:80]!r}")
    for one in prefixes:
        if not 1 <= len(one) <= MOST_PREFIX:
            raise _refused("prefix", f"a prefix has 1 to {MOST_PREFIX} characters, not {len(one)}")
    for one in digests:
        if not (1 <= len(one) <= 64 and _HEX.issuperset(one)):
            raise _refused("digest", f"a digest's beginning is 1 to 64 lower-case hex digits, not {one[:80]!r}")
    return Selection(tuple(map(Fingerprint, fingerprints)), tuple(prefixes), tuple(digests))


def _refused(param: str, message: str) -> UsageError:
    error = UsageError(message)
    error.param = param
    return error
