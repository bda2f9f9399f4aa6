"""Canonical JSON: sorted keys, no whitespace, UTF-8, no floats. Every value has exactly one way to be written.

It knows JSON and types; it must not know what the documents mean.
"""

from typing import TypeVar

import msgspec

from preread.errors import CorruptData, UsageError

T = TypeVar("T")


class _Stamp(msgspec.Struct, frozen=True):
    """What every document of ours starts with being asked; all other fields may be anything."""

    format: str
    version: int


def dumps(value: object) -> bytes:
    """Write msgspec structs, dataclasses or builtins.

    Raises:
        UsageError: `value` holds a float, or something that JSON cannot say.
    """
    try:
        plain = msgspec.to_builtins(value, order="sorted", str_keys=True)
        _refuse_floats(plain)
        return msgspec.json.encode(plain, order="sorted")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be written as canonical JSON: {error}") from error


def loads(data: bytes, type: type[T], max_bytes: int) -> T:
    """Read one value of `type`.

    Raises:
        CorruptData: "length" for more than `max_bytes`, "json" for anything that is not JSON or not canonical JSON,
            "schema" for JSON of another type.
    """
    value = decode(data, type, max_bytes)
    if dumps(value) != data:
        raise CorruptData("json", "JSON is not in canonical form (key order, whitespace, escapes or extra fields)")
    return value


def check_stamp(data: bytes, format: str, newest: int, max_bytes: int) -> int:
    """Refuse a document of another format or of a version that this release cannot read, before its schema is asked.

    Returns:
        Its version.

    Raises:
        CorruptData: "format" or "version"; "length", "json" or "schema" where it has no stamp at all.
    """
    stamp = decode(data, _Stamp, max_bytes)
    if stamp.format != format:
        raise CorruptData("format", f"expected a {format} and found {stamp.format[:64]!r}")
    what = format.removeprefix("preread-")
    if stamp.version > newest:
        message = f"{what} has version {stamp.version}, this preread reads up to {newest}: upgrade it"
        raise CorruptData("version", message)
    if stamp.version < 1:
        raise CorruptData("version", f"{what} has version {stamp.version}, which never existed")
    return stamp.version


def decode(data: bytes, type: type[T], max_bytes: int) -> T:
    """Read JSON of any spelling.

    Raises:
        CorruptData: "length", "json" or "schema", as for `loads`.
    """
    if len(data) > max_bytes:
        raise CorruptData("length", f"document has {len(data)} bytes, at most {max_bytes} are allowed")
    try:
        return msgspec.json.decode(data, type=type)
    except msgspec.ValidationError as error:
        raise CorruptData("schema", f"document is not of the expected shape: {error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptData("json", f"document is not JSON: {error}") from error


def _refuse_floats(plain: object) -> None:
    if isinstance(plain, float):
        raise ValueError(f"{plain} is a float, which has no one way to be written")
    if isinstance(plain, dict):
        for value in plain.values():
            _refuse_floats(value)
    elif isinstance(plain, list | tuple):
        for value in plain:
            _refuse_floats(value)
