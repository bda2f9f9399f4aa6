"""Load or compute: the first decision about a context, and when to take it back.

Pure: estimates and observations in, decision out. The rule is simple: load when that is believed to be faster, give up
when what is left to load would take longer than computing everything here.
"""

from dataclasses import dataclass

from preread.plan.cost import Link, Need, load_s, local_s

_SILENCE_S = 0.3
"""No link is judged by less: handshakes and a busy cloud need that much."""


@dataclass(frozen=True, slots=True)
class Load:
    """Stream the context from the cloud; `expected_s` is when it should have arrived."""

    expected_s: float


@dataclass(frozen=True, slots=True)
class Compute:
    """Prefill the context here, because of `reason`."""

    reason: str


def choose(need: Need, link: Link | None) -> Load | Compute:
    """Decide before anything is known but estimates. An unknown link (None) gets the chance to show itself."""
    if link is None:
        return Load(local_s(need))
    expected, local = load_s(need, link), local_s(need)
    if expected < local:
        return Load(expected)
    return Compute(f"loading would take {expected:.1f} s on this link, computing {local:.1f} s")


def worth_waiting(need: Need, silent_s: float, flowing_s: float, received_bytes: int) -> bool:
    """Whether a load is still better than starting to compute now.

    Args:
        need: what is loaded, and what computing it would take.
        silent_s: how long nothing had come at the start.
        flowing_s: time since the first bytes came; 0 if none did.
        received_bytes: how much has come since.
    """
    if received_bytes == 0:
        return silent_s < max(_SILENCE_S, local_s(need) / 2)
    if flowing_s < _SILENCE_S:
        return True
    remaining_s = (need.context_bytes - received_bytes) * flowing_s / received_bytes
    return remaining_s < local_s(need)
