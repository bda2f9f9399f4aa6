"""What a large model asked and answered about a document, as a file. It is checked: its ids index embeddings."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from preread.align import archive
from preread.align.exchanges import Exchange
from preread.errors import CorruptData, UsageError
from preread.values import ContextId, Fingerprint

FORMAT: Final = "preread-study"
_EACH: Final = ("prompt", "answer")
_ROWS: Final = {"candidates": np.int32, "logprobs": np.float32, "losses": np.float32}

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class Study:
    """Questions about a document, answered by a large model that had read it.

    Attributes:
        context: the document, as the small model's tokens.
        small, large: fingerprints of the models.
        exchanges: in the order in which they were asked.
    """

    context: ContextId
    small: Fingerprint
    large: Fingerprint
    exchanges: tuple[Exchange, ...]

    @property
    def taught(self) -> tuple[Exchange, ...]:
        """Those that are taught with."""
        return tuple(one for n, one in enumerate(self.exchanges) if n % HELD_OUT != HELD_OUT - 1)

    @property
    def held_out(self) -> tuple[Exchange, ...]:
        """Those that nothing learns from, to measure with."""
        return self.exchanges[HELD_OUT - 1 :: HELD_OUT]


HELD_OUT: Final = 4
"""One exchange in so many is held out."""


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread-study"]
    version: Literal[1]
    context: Digest
    small: Digest
    large: Digest


def dumps(study: Study) -> bytes:
    """Write a study, of at least one exchange, that `loads` accepts."""
    head = _Head(FORMAT, 1, study.context, study.small, study.large)
    arrays = {}
    for name in _EACH:
        its = [getattr(one, name) for one in study.exchanges]
        arrays[name] = np.concatenate(its).astype(np.int32)
        arrays[f"{name}_tokens"] = np.array([len(one) for one in its], np.int32)
    arrays |= {name: np.concatenate([getattr(one, name) for one in study.exchanges]) for name in _ROWS}
    return archive.dumps(head, arrays)


def loads(data: bytes) -> Study:
    """Read a study.

    Raises:
        CorruptData: "format" (no such file), "schema" (its head), "shape" (arrays that do not fit one another).
    """
    head, arrays = archive.loads(data, _Head, "study")
    try:
        parts = {name: _parts(arrays[name], arrays[f"{name}_tokens"]) for name in _EACH}
        rows = {name: _parts(arrays[name], arrays["answer_tokens"]) for name in _ROWS}
        known = all(arrays[name].dtype == kind for name, kind in (_ROWS | dict.fromkeys(_EACH, np.int32)).items())
        ids = [arrays[name] for name in (*_EACH, "candidates")]
        if not (known and all(len(some) and some.min() >= 0 for some in ids) and np.isfinite(arrays["losses"]).all()):
            raise CorruptData("shape", "study holds what are no tokens")
        exchanges = tuple(
            Exchange(*each) for each in zip(*parts.values(), *(rows[name] for name in _ROWS), strict=True)
        )
    except (KeyError, UsageError, ValueError, TypeError) as error:
        raise CorruptData("shape", f"study: {error}") from error
    return Study(ContextId(head.context), Fingerprint(head.small), Fingerprint(head.large), exchanges)


def _parts(rows: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    if counts.ndim != 1 or counts.dtype != np.int32 or counts.min(initial=1) < 1 or counts.sum() != len(rows):
        raise CorruptData("shape", "study's arrays do not fit one another")
    return np.split(rows, np.cumsum(counts)[:-1])
