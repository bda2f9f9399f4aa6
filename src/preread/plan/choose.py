"""Which rung of a context to load: the fewest bytes that keep the quality budget. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

MAX_DLOSS: Final = 0.01
"""By how much a streamed context may raise the loss, in nats a token, unless somebody says otherwise."""

MAX_MODE_DLOSS: Final = 0.02
"""By how much reading with a large model's help may, before a codec adds to it."""


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
