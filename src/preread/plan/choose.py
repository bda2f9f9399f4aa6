"""Which rung, and load or compute: the first decisions about a context, and when to take them back.

Pure: estimates and observations in, decision out. The rules are simple: the fewest bytes that keep the quality budget;
load when that is believed to be faster; give up when what is left to load would take longer than computing everything
here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from preread.plan.cost import Link, Need, load_s, local_s

MAX_DLOSS: Final = 0.01
"""By how much a streamed context may raise the loss, in nats a token, unless somebody says otherwise."""

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


@dataclass(frozen=True, slots=True)
class Offer:
    """A rung as a manifest offers it.

    Attributes:
        name: what it is called.
        size_bytes: of the whole context at this rung.
        dloss: mean change of the loss that it is stated to cost (nats a token), 0 for a lossless one; None: unstated.
    """

    name: str
    size_bytes: int
    dloss: float | None


def choose_rung(offers: Iterable[Offer], max_dloss: float, usable: Callable[[str], bool]) -> str | None:
    """The rung of fewest bytes whose stated cost is within the budget; None: there is nothing to stream.

    A rung of unstated quality is taken only where no other will do, and then the best one.

    Args:
        offers: in the manifest's order, best quality first.
        max_dloss: most that the loss may rise, in nats a token.
        usable: whether this edge can read a rung; asked no more often than needed.
    """
    all_offers = list(offers)
    within = [offer for offer in all_offers if offer.dloss is not None and offer.dloss <= max_dloss]
    by_size = sorted(within, key=lambda offer: offer.size_bytes)
    unstated = [offer for offer in all_offers if offer.dloss is None]
    return next((offer.name for offer in [*by_size, *unstated] if usable(offer.name)), None)


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
