"""Where a fitted calibration of decisions is kept: a small JSON file for each model, which an edge reads when it opens.

{"format": "preread decisions 1", "model": fingerprint, "questions": 120, "scales": {"choice": {"temperature": 1.9}, …}}
"""

import logging
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import platformdirs
from msgspec import Meta

from preread.errors import CorruptData, UsageError
from preread.fit.calibration import KINDS, UNFITTED, Calibration, Scale
from preread.values import Fingerprint

MOST_BYTES: Final = 65_536
MOST_BIAS: Final = 50.0
"""Nats."""

_log = logging.getLogger(__name__)
_FORMAT: Final = "preread decisions 1"


class _Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    temperature: Annotated[float, Meta(ge=0.01, le=100)]
    bias: Annotated[float, Meta(ge=-MOST_BIAS, le=MOST_BIAS)] = 0.0


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["preread decisions 1"]
    model: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    questions: Annotated[int, Meta(ge=1, le=10**9)]
    scales: dict[Literal["predicate", "choice", "score"], _Scale]


def usual_path(model: Fingerprint) -> Path:
    """Where `preread fit decisions` writes what an edge with this model finds by itself."""
    return platformdirs.user_cache_path("preread") / "decisions" / f"{model}.json"


def dumps(calibration: Calibration, model: Fingerprint) -> bytes:
    """The file's bytes."""
    scales = {kind: _Scale(each.temperature, each.bias) for kind, each in calibration.scales.items()}
    return msgspec.json.format(msgspec.json.encode(_File(_FORMAT, str(model), calibration.fitted, scales)), indent=2)


def loads(data: bytes, model: Fingerprint) -> Calibration:
    """What a file says for this model.

    Raises:
        CorruptData: it is no such file, or numbers in it make no sense.
        UsageError: it is another model's.
    """
    file = _file(data)
    if file.model != str(model):
        raise UsageError(
            f"it was fitted for model {file.model[:12]}…, and this is {str(model)[:12]}…: fit it for this one"
        )
    scales = {
        kind: Scale(file.scales[kind].temperature, file.scales[kind].bias) for kind in KINDS if kind in file.scales
    }
    return Calibration(scales, file.questions)


def model_of(data: bytes) -> Fingerprint:
    """For which model a file is.

    Raises:
        CorruptData: as for `loads`.
    """
    return Fingerprint(_file(data).model)


def _file(data: bytes) -> _File:
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptData("decisions", str(error)) from error


def load(path: Path, model: Fingerprint) -> Calibration:
    """Read a file.

    Raises:
        UsageError: it cannot be read, is none, or another model's; and what to do.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise CorruptData("decisions", f"more than {MOST_BYTES} bytes")
        return loads(data, model)
    except (OSError, CorruptData, UsageError) as error:
        raise UsageError(
            f"{path} cannot be used for decisions ({error}): make it with `preread fit decisions`"
        ) from error


def found(path: Path | None, model: Fingerprint) -> Calibration:
    """What an edge uses: of the file that it was told of, or of the usual one if there is one and it can be used.

    Raises:
        UsageError: the file that it was told of cannot be used.
    """
    if path is not None:
        return load(path, model)
    usual = usual_path(model)
    try:
        return load(usual, model) if usual.exists() else UNFITTED
    except UsageError as error:
        _log.warning("confidence of decisions is as the model has it: %s", error)
        return UNFITTED
