"""What a test has an edge believe, so that what it does follows from that and not from how fast the machine is."""

import time

from preread.plan.beliefs import Beliefs


def slow_machine(prefill_tokens_s: float = 1.0, link_bytes_s: float | None = 1e8) -> Beliefs:
    """Computing takes for ever, and the link was just seen to be fast: nothing is computed that can be streamed.

    Args:
        prefill_tokens_s: what computing is believed to do.
        link_bytes_s: what the link is believed to do; None: nothing is known of it.
    """
    beliefs = Beliefs.of_machine(prefill_tokens_s)
    return beliefs if link_bytes_s is None else beliefs.flowed(2**20, link_bytes_s, time.monotonic())
