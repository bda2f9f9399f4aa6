"""What a fit found, as a file: numpy's own archive of arrays, with a head in JSON.

Nothing in it is ever executed: arrays of objects are refused (numpy's `allow_pickle`).
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from preread.errors import CorruptData

Arrays = dict[str, npt.NDArray[Any]]
H = TypeVar("H", bound=msgspec.Struct)


def dumps(head: msgspec.Struct, arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Write an archive that `loads` accepts; no array is called "head"."""
    out = io.BytesIO()
    np.savez(out, **{"head": np.frombuffer(msgspec.json.encode(head, order="sorted"), np.uint8), **arrays})  # type: ignore[arg-type]
    return out.getvalue()


def loads(data: bytes, head: type[H], what: str) -> tuple[H, Arrays]:
    """Its head and its arrays; what these are is the caller's to check.

    Raises:
        CorruptData: "format" (no such file), "schema" (its head).
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return msgspec.json.decode(arrays.pop("head").tobytes(), type=head), arrays
    except msgspec.DecodeError as error:
        raise CorruptData("schema", f"{what}'s head: {error}") from error
    except (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CorruptData("format", f"this is no {what}: {error}") from error
