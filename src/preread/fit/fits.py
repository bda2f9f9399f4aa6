"""What a file of a fit is, as it is told to others: read by the very parsers that those use who need it.

Whatever passes here can be used; whatever cannot is refused, and why. It knows the files' forms; it must not know how
they come or where they are kept.
"""

import math
from collections.abc import Callable
from typing import Final

from preread.align import archive, guide_bytes, mapping_bytes
from preread.codec import profile_bytes
from preread.errors import CorruptData
from preread.fit import decisions, family
from preread.values import Fingerprint
from preread.wire.digest import object_id
from preread.wire.fields import MAX_PROFILE_BYTES
from preread.wire.fits import MAX_FIT_BYTES, MAX_MEASURED, Fit, FitKind, Measured

_MOST_TEXT: Final = 256
_MOST_MICRONATS: Final = 10**12


def described(data: bytes) -> Fit:
    """What these bytes are, and what they say that they are worth.

    Raises:
        CorruptData: they are no file of a fit, or one that nobody could use; the reason is the parser's, or "kind"
            for a file that is of use only where it was made, "range" for a loss that cannot be.
    """
    if len(data) > MAX_FIT_BYTES:
        raise CorruptData("length", f"a fit has at most {MAX_FIT_BYTES} bytes, not {len(data)}")
    if data[:4] == profile_bytes.MAGIC:
        return _codec(data)
    if data.lstrip()[:1] == b"{":
        return _family(data) if family.is_gate(data) else _decisions(data)
    format = archive.format_of(data)
    if format not in _ARCHIVES:
        raise CorruptData(
            "kind", f"a {format[:64]!r} is not for others: profiles, mappings, guides and calibrations are"
        )
    return _ARCHIVES[format](data)


def _codec(data: bytes) -> Fit:
    if len(data) > MAX_PROFILE_BYTES:
        raise CorruptData("length", f"a profile has at most {MAX_PROFILE_BYTES} bytes, not {len(data)}")
    profile = profile_bytes.loads(data)
    rungs = [_measured(rung.name, rung.quality.dloss, rung.quality.tokens) for rung in profile.rungs]
    return _fit("codec", data, profile.fingerprint, profile.calibration, *rungs[:MAX_MEASURED])


def _map(data: bytes) -> Fit:
    kept = mapping_bytes.loads(data)
    measured = _measured(f"mapped from layer {kept.mapping.split} on", kept.dloss, kept.tokens)
    return _fit("map", data, kept.small, kept.text, measured, large=kept.large)


def _guide(data: bytes) -> Fit:
    kept = guide_bytes.loads(data)
    outcome = kept.outcome
    if kept.control:
        raise CorruptData("kind", "this is a guide's control, which only shows what the guide is worth: push the guide")
    guided = _measured("guided", outcome.dloss, outcome.tokens, outcome.dloss_ci)
    low, high = outcome.gain_ci
    beyond = _measured("beyond its control", -outcome.gain, outcome.tokens, (-high, -low))
    return _fit("guide", data, kept.small, kept.text, guided, beyond, large=kept.large)


def _decisions(data: bytes) -> Fit:
    if len(data) > decisions.MOST_BYTES:
        raise CorruptData("length", f"a calibration has at most {decisions.MOST_BYTES} bytes, not {len(data)}")
    of = decisions.model_of(data)
    questions = decisions.loads(data, of).fitted
    return _fit("decisions", data, of, f"{questions} questions with known answers")


def _family(data: bytes) -> Fit:
    gate = family.loads(data)
    measured = [_measured(one.what, one.dloss, one.tokens, (one.low, one.high)) for one in gate.measured]
    return _fit("family", data, Fingerprint(gate.model), gate.text, *measured, large=Fingerprint(gate.source))


_ARCHIVES: Final[dict[str, Callable[[bytes], Fit]]] = {mapping_bytes.FORMAT: _map, guide_bytes.FORMAT: _guide}


def _fit(
    kind: FitKind, data: bytes, of: Fingerprint, text: str, *measured: Measured, large: Fingerprint | None = None
) -> Fit:
    line = "".join(letter if letter.isprintable() else " " for letter in text)[:_MOST_TEXT].strip() or "unknown"
    return Fit(kind, object_id(data), len(data), of, line, measured, large)


def _measured(what: str, dloss: float, tokens: int, interval: tuple[float, float] | None = None) -> Measured:
    ends = None if interval is None else (_micronats(interval[0]), _micronats(interval[1]))
    if not 0 <= tokens < 2**53:
        raise CorruptData("range", f"a loss was measured on {tokens} tokens")
    return Measured(what, _micronats(dloss), tokens, ends)


def _micronats(nats: float) -> int:
    if not math.isfinite(nats) or abs(nats) * 1e6 > _MOST_MICRONATS:
        raise CorruptData("range", f"a loss changes by {nats} nats a token")
    return round(nats * 1e6)
