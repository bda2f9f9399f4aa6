"""The quality ladder: which rungs there are, best first, and which codec writes and reads each."""

from preread.codec.base import Codec
from preread.codec.chain import Chain
from preread.codec.fitted import VERSION, Fitted
from preread.codec.profile import Prepared, Profile
from preread.codec.quantise import Quantiser
from preread.codec.shuffle import Shuffle
from preread.codec.zstd import Zstd
from preread.errors import CorruptData, UsageError

# Levels by measurement on KV of Qwen2.5-0.5B and SmolLM2-135M: higher ones gain less than 0.5 % and cost most of the
# speed. Nothing but entropy coding helps quantised values.
_PLAIN: tuple[Codec, ...] = (
    Chain("lossless", "lossless/1", Shuffle(), Zstd(level=3)),
    Chain("q8", "q8/1", Quantiser(bits=8), Zstd(level=1)),
    Chain("q4", "q4/1", Quantiser(bits=4), Zstd(level=1)),
)


def ladder(profile: Profile | None = None) -> tuple[str, ...]:
    """Names of all rungs that can be written, best quality first; those of the profile come after q8 and q4."""
    return tuple(codec.rung for codec in _PLAIN) + (fitted_rungs(profile) if profile else ())


def fitted_rungs(profile: Profile) -> tuple[str, ...]:
    """Names of a profile's rungs, best quality first."""
    return tuple(rung.name for rung in profile.rungs)


def codec(rung: str, prepared: Prepared | None = None) -> Codec:
    """The codec that writes a rung.

    Raises:
        UsageError: there is no such rung, or it needs a profile.
    """
    for candidate in _PLAIN:
        if candidate.rung == rung:
            return candidate
    if prepared and rung in (known := fitted_rungs(prepared.profile)):
        return Fitted(prepared, known.index(rung))
    known = ladder(prepared.profile if prepared else None)
    without = "" if prepared else ", and those of a profile that `preread fit codec` makes"
    raise UsageError(f"unknown rung {rung!r}; known rungs: {', '.join(known)}{without}")


def by_version(version: str, rung: str, prepared: Prepared | None = None) -> Codec:
    """The codec that reads what a manifest calls `rung`, written by codec `version`.

    Raises:
        CorruptData: "codec": this release cannot read it, or as `check_name`; "profile": its profile is missing or
            lacks the rung.
    """
    check_name(version, rung)
    for candidate in _PLAIN:
        if candidate.version == version:
            return candidate
    if not needs_profile(version):
        known = ", ".join([*(candidate.version for candidate in _PLAIN), VERSION])
        raise CorruptData("codec", f"unknown codec {version!r}, this preread reads {known}: upgrade it")
    if prepared is None or rung not in fitted_rungs(prepared.profile):
        raise CorruptData("profile", f"rung {rung!r} needs a profile that is not there, or that lacks the rung")
    return Fitted(prepared, fitted_rungs(prepared.profile).index(rung))


def check_name(version: str, rung: str) -> None:
    """Refuse a codec under the name of another: 4 bits a value that are called lossless would pass for exact.

    Raises:
        CorruptData: "codec": this release reads the version, and writes it under another name only.
    """
    named = {candidate.version: candidate.rung for candidate in _PLAIN}
    misnamed = named[version] != rung if version in named else version == VERSION and rung in named.values()
    if misnamed:
        raise CorruptData("codec", f"rung {rung!r} is said to be of codec {version!r}, which is never called so")


def needs_profile(version: str) -> bool:
    """Whether a codec of this version needs a profile to be read."""
    return version == VERSION
