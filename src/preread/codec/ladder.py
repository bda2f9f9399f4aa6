"""The quality ladder: which rungs there are, best first, and which codec writes and reads each."""

from preread.codec.base import Codec
from preread.codec.chain import Chain
from preread.codec.quantise import Quantiser
from preread.codec.shuffle import Shuffle
from preread.codec.zstd import Zstd
from preread.errors import CorruptData, UsageError

# Levels by measurement on KV of Qwen2.5-0.5B and SmolLM2-135M: higher ones gain less than 0.5 % and cost most of the
# speed. Nothing but entropy coding helps quantised values.
_CODECS: tuple[Codec, ...] = (
    Chain("lossless", "lossless/1", Shuffle(), Zstd(level=3)),
    Chain("q8", "q8/1", Quantiser(bits=8), Zstd(level=1)),
    Chain("q4", "q4/1", Quantiser(bits=4), Zstd(level=1)),
)


def ladder() -> tuple[str, ...]:
    """Names of all rungs, best quality first."""
    return tuple(codec.rung for codec in _CODECS)


def codec(rung: str) -> Codec:
    """The codec that writes a rung.

    Raises:
        UsageError: there is no such rung.
    """
    for candidate in _CODECS:
        if candidate.rung == rung:
            return candidate
    raise UsageError(f"unknown rung {rung!r}; known rungs: {', '.join(ladder())}")


def by_version(version: str) -> Codec:
    """The codec that reads what a manifest calls `version`.

    Raises:
        CorruptData: "codec": this release cannot read it.
    """
    for candidate in _CODECS:
        if candidate.version == version:
            return candidate
    known = ", ".join(candidate.version for candidate in _CODECS)
    raise CorruptData("codec", f"unknown codec {version!r}, this preread reads {known}: upgrade it")
