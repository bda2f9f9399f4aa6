"""What a fit found, as a file: numpy's own archive of arrays, with a head in JSON.

Such files may come from others. So an archive is read as `numpy.savez` writes it and in no other way: nothing in it is
compressed, its table is short, and every array is plain numbers whose header says how many bytes follow. Nothing in it
is ever executed, and nothing is allocated by what it says before that fits its bytes.
"""

import io
import re
import zipfile
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from preread.errors import CorruptData

Arrays = dict[str, npt.NDArray[Any]]
H = TypeVar("H", bound=msgspec.Struct)

_END: Final = b"PK\x05\x06"
_LOCATOR: Final = b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES = 22, 20
_MOST_TABLE_BYTES: Final = 1 << 18
"""Of a few thousand arrays."""
_MAGIC: Final = b"\x93NUMPY\x01\x00"
_DESCRIBED: Final = re.compile(
    rb"\{'descr': '([<|][biuf][1248])', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,12}, )*(?:[0-9]{1,12},?)?)\), \} *\n"
)
"""An array's header in version 1.0 of numpy's format, as numpy writes it."""


class _Stamp(msgspec.Struct):
    format: str


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
        with _opened(data) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
        return msgspec.json.decode(arrays.pop("head").tobytes(), type=head), arrays
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData("schema", f"{what}'s head: {error}") from error
    except (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CorruptData("format", f"this is no {what}: {error}") from error


def format_of(data: bytes) -> str:
    """What an archive's head says that it is; its arrays are not read.

    Raises:
        CorruptData: "format", it is no archive, or says nothing.
    """
    try:
        with _opened(data) as archive:
            return msgspec.json.decode(_array(archive.read("head.npy")).tobytes(), type=_Stamp).format
    except (msgspec.DecodeError, ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CorruptData("format", f"this is no file of a fit: {error}") from error


def _opened(data: bytes) -> zipfile.ZipFile:
    """The archive, whose members together have no more bytes than there are.

    A ZIP file ends with the size of its table of members, unless it is so large that a locator of another end stands
    before that (APPNOTE.TXT 6.3.10, 4.3.15 and 4.3.16).
    """
    end = data[-_END_BYTES:]
    table_bytes = int.from_bytes(end[12:16], "little")
    large = data[-_END_BYTES - _LOCATOR_BYTES :].startswith(_LOCATOR)
    if end[:4] != _END or large or table_bytes > _MOST_TABLE_BYTES:
        raise ValueError("it does not end as an archive of a few arrays does")
    archive = zipfile.ZipFile(io.BytesIO(data))
    members = archive.infolist()
    if any(one.compress_type != zipfile.ZIP_STORED for one in members):
        raise ValueError("something in it is compressed")
    if sum(one.file_size for one in members) > len(data) or len(archive.NameToInfo) != len(members):
        raise ValueError("its members have more bytes than it has, or one name")
    return archive


def _array(data: bytes) -> npt.NDArray[Any]:
    start = len(_MAGIC) + 2
    stop = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    described = _DESCRIBED.fullmatch(data[start:stop])
    if not data.startswith(_MAGIC) or described is None:
        raise ValueError("something in it is no array of numbers")
    kind: np.dtype[Any] = np.dtype(described[1].decode())
    shape = tuple(int(length) for length in described[3].replace(b",", b" ").split())
    flat = np.frombuffer(data, kind, offset=stop)  # by the bytes that there are: another shape is refused below
    return np.array(flat.reshape(shape) if described[2] == b"False" else flat.reshape(shape[::-1]).T)
