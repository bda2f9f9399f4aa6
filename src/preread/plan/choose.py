"""Which rung of a context to load: the fewest bytes that keep the quality budget, or the best that keep a deadline.

Pure.
"""

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
        first_s: seconds until the first token that are expected with it; infinite: nothing is known.
    """

    name: str
    size_bytes: int
    dloss: float | None
    first_s: float = float("inf")


def choose_rung(
    offers: Iterable[Offer], max_dloss: float, usable: Callable[[str], bool], deadline_s: float | None = None
) -> str | None:
    """A rung whose stated cost is within the budget; None: there is nothing to stream.

    Without a deadline it is the one of fewest bytes, since a link is others' too. With one it is the best that is
    expected in time, and if none is, the soonest. A rung of unstated quality is taken only where no other will do, and
    then the best one.

    Args:
        offers: in the manifest's order, best quality first.
        max_dloss: most that the loss may rise, in nats a token.
        usable: whether this edge can read a rung; asked no more often than needed.
        deadline_s: when the first token should be there; None: fewer bytes are better than better ones.
    """
    all_offers = list(offers)
    within = [offer for offer in all_offers if offer.dloss is not None and offer.dloss <= max_dloss]
    if deadline_s is None:
        in_time, others = [], sorted(within, key=lambda offer: offer.size_bytes)
    else:
        in_time = [offer for offer in within if offer.first_s <= deadline_s]
        others = sorted(within, key=lambda offer: (offer.first_s, offer.size_bytes))
    unstated = [offer for offer in all_offers if offer.dloss is None]
    return next((offer.name for offer in [*in_time, *others, *unstated] if usable(offer.name)), None)
