"""What the time until the first token was spent on, in words. Pure."""

from preread.page.values import Part


def first_token_parts(queue_ms: float, load_ms: float, context_ms: float, ttft_ms: float) -> tuple[Part, ...]:
    """What the time to the first token was spent on; the parts add up to `ttft_ms`.

    A context's beginning is computed while its end is on its way, and the question while the last layers are: the
    parts are what was waited for, not all that was done. The arguments are those of an answer's timings.
    """
    left_ms, parts = max(0.0, ttft_ms), list[Part]()
    computing, loading = "computing the context here", "loading the context"
    if load_ms > context_ms > 0:
        computing, loading = "computing the context's beginning while its end comes", "waiting for the rest of it"
    for key, name, ms in (
        ("queue", "waiting for its turn", queue_ms),
        ("here", computing, context_ms),
        ("load", loading, load_ms - context_ms),
    ):
        taken_ms = min(max(0.0, ms), left_ms)
        left_ms -= taken_ms
        parts.append(Part(key, name, taken_ms))
    parts.append(Part("question", "computing the question", left_ms))
    return tuple(part for part in parts if part.ms > 0)
