"""Zstandard with the content size in the frame, read back only if it states and holds exactly what is expected."""

from dataclasses import dataclass

import zstandard

from preread.codec.base import Payload
from preread.errors import CorruptData


@dataclass(frozen=True, slots=True)
class Zstd:
    """One frame at `level`. Contexts are made for each call, since they must not be shared between threads."""

    level: int

    def compress(self, data: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=self.level, write_content_size=True).compress(data)

    def decompress(self, payload: Payload, size_bytes: int) -> bytes:
        # zstandard allocates what the frame states, so what it states is checked first; then it holds it to that.
        try:
            stated_bytes = zstandard.get_frame_parameters(payload).content_size
            if stated_bytes != size_bytes:
                raise CorruptData("length", f"payload states {stated_bytes} bytes, its block has {size_bytes}")
            return zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptData("zstd", f"payload is not a whole zstd frame: {error}") from error
