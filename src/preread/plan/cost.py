"""Seconds from tokens, bytes and rates: what computing costs, what loading costs, and the floor of both.

Pure arithmetic; rates are measured elsewhere.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """What is believed about a link. `bytes_s` is its rate in bytes a second, `rtt_s` one round trip."""

    bytes_s: float
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Need:
    """What an answer needs before its first token.

    Attributes:
        context_tokens: N, tokens of shared context.
        context_bytes: N·b, its size on the wire at the rung in question.
        prefill_tokens_s: S, how fast this machine prefills.
        prompt_s: P, time to first token of the prompt when the context is resident.
        group_bytes: of the context's bytes, those of each group of layers, in order; groups take the same time to
            compute. Empty: all have the same.
    """

    context_tokens: int
    context_bytes: int
    prefill_tokens_s: float
    prompt_s: float
    group_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefill:
    """How long this machine computes: attention makes later tokens dearer, and every batch has a price of its own.

    Attributes:
        token_s: seconds a token at the context's start.
        position_s: seconds a token more for every token before it.
        batch_s: seconds a batch.
    """

    token_s: float
    position_s: float = 0.0
    batch_s: float = 0.0

    def seconds(self, start: int, tokens: int) -> float:
        """One batch of so many tokens from position `start` on."""
        return self.batch_s + tokens * (self.token_s + self.position_s * (start + tokens / 2))


@dataclass(frozen=True, slots=True)
class Coming:
    """What the links of a load that is under way will bring.

    Attributes:
        bytes_s: rate of all of them together.
        first_s: seconds until the next byte comes.
        partly_bytes: of cells that are under way, what has come of them.
        decode_bytes_s: how fast cells are decoded and injected.
        cell_bytes: of a usual cell.
    """

    bytes_s: float
    first_s: float
    partly_bytes: int
    decode_bytes_s: float
    cell_bytes: float

    def seconds(self, left_bytes: int, away_bytes: int) -> float:
        """Seconds until cells of so many bytes are in place, of which so many have not arrived; infinite: never."""
        decode_s = left_bytes / self.decode_bytes_s
        if not away_bytes:
            return decode_s
        if not self.bytes_s:
            return float("inf")
        wire_s = self.first_s + max(0, away_bytes - self.partly_bytes) / self.bytes_s
        return max(wire_s + self.cell_bytes / self.decode_bytes_s, decode_s)


def local_s(need: Need) -> float:
    """Time to first token when everything is computed here: N/S + P."""
    return need.context_tokens / need.prefill_tokens_s + need.prompt_s


def load_s(need: Need, link: Link) -> float:
    """Time until the whole context has arrived: RTT + N·b/B; infinite on a link that carries nothing."""
    return link.rtt_s + need.context_bytes / link.bytes_s if link.bytes_s > 0 else float("inf")


def floor_s(need: Need, link: Link) -> float:
    """The least time to first token that is physically possible.

    With h tokens of the context computed here while the rest is on the wire,
    T = min over h in 0 … N of max(h/S + P, RTT + (N − h)·b/B). The first term rises with h and the second falls, so the
    minimum is where they cross, or at an end. Of a model with windows the tail has more than its share of the bytes, so
    no less than (N − h)·b is on the wire there: the floor stays one.

    Or the first k of L layers are computed of all tokens: T = min over k of max(k/L·N/S + P, RTT + others' bytes/B).
    Where all layers have the same bytes, that is the same again. Where the first ones have more (`group_bytes`), it is
    less, and least of all with h tokens computed through the others as well.
    """
    if need.context_tokens == 0:
        return need.prompt_s
    groups, floor, bytes_left = (
        len(need.group_bytes),
        _meeting_s(need, link, 0.0, need.context_bytes),
        need.context_bytes,
    )
    for count, group_bytes in enumerate(need.group_bytes[:-1], 1):
        bytes_left -= group_bytes
        floor = min(floor, _meeting_s(need, link, count / groups, bytes_left))
    return floor


def _meeting_s(need: Need, link: Link, share: float, bytes_left: int) -> float:
    """The least time where a share of the layers is computed, and of the others, which have so many bytes, a head."""
    compute_s = need.context_tokens / need.prefill_tokens_s
    wire_s = bytes_left / link.bytes_s if link.bytes_s > 0 else float("inf")
    if wire_s == float("inf"):
        return local_s(need)
    own_s, left_s = share * compute_s, (1 - share) * compute_s
    # All computed means that nothing is loaded, so no round trip is paid either
    crossing = (link.rtt_s + wire_s - own_s - need.prompt_s) / (left_s + wire_s)
    head = min(max(crossing, 0.0), 1.0)
    both = max(own_s + head * left_s + need.prompt_s, link.rtt_s + (1 - head) * wire_s)
    return min(both, local_s(need))


def floor_in_order_s(need: Need, link: Link) -> float:
    """The least time to first token where the prompt is computed after what it attends to has come.

    `floor_s` lets the prompt's computation run beside the whole load. But its layers read the context's, the first of
    them not before one round trip has passed: with a share x of the layers loaded before it begins and the others
    behind, T is at least RTT + x·(N − h)·b/B + (1 − x)·P for every x, which is largest at x = 0 or 1.
    """
    return min(max(floor_s(need, link), link.rtt_s + need.prompt_s), local_s(need))


def break_even_bytes_s(prefill_tokens_s: float, bytes_per_token: float) -> float:
    """S·b: the link rate (bytes a second) above which loading a long context beats computing it."""
    return prefill_tokens_s * bytes_per_token
