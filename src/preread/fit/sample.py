"""Samples of a model's KV on a text: windows of tokens, and what the model's cache holds after reading each."""

from collections.abc import Callable
from dataclasses import dataclass

from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.errors import UsageError
from preread.fit.text import Text
from preread.values import KVBlock, Span

WINDOW_TOKENS = 512
TAIL_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Window:
    """A context, what follows it in the text, and the context's exact KV in all layers."""

    tokens: Tokens
    tail: Tokens
    block: KVBlock


def windows(engine: LlamaCpp, text: Text, count: int) -> list[tuple[Tokens, Tokens]]:
    """Contexts and tails, from the documents in turn, the start of each document first; without overlap.

    Raises:
        UsageError: the text is too short for even four of them.
    """
    size = WINDOW_TOKENS + TAIL_TOKENS
    # Four characters make a token at least, in text that one would fit on: more need not be tokenised.
    longest = 6 * size * (1 + count // len(text.parts))
    parts = [engine.tokenize(part[:longest], special=False, start=True) for part in text.parts]
    found: list[tuple[Tokens, Tokens]] = []
    for start in range(0, max(map(len, parts)), size):
        for ids in parts:
            if start + size <= len(ids) and len(found) < count:
                found.append((ids[start : start + WINDOW_TOKENS], ids[start + WINDOW_TOKENS : start + size]))
    if len(found) < 4:
        raise UsageError(f"the text is too short to fit on: {len(found)} windows of {size} tokens, 4 are needed")
    return found


def take(engine: LlamaCpp, chosen: list[tuple[Tokens, Tokens]], progress: Callable[[int], None]) -> list[Window]:
    """Read each window. `progress` is told how many tokens were read."""
    taken = []
    every = Span(0, engine.spec.geometry.layers)
    for tokens, tail in chosen:
        engine.session.prefill(tokens)
        taken.append(Window(tokens, tail, engine.session.export(Span(0, len(tokens)), every)))
        progress(len(taken) * WINDOW_TOKENS)
    return taken


def hold(engine: LlamaCpp, block: KVBlock) -> None:
    """Put a window's KV into the engine, as if it had just read it."""
    engine.session.reserve(len(block.tokens))
    engine.session.inject(block)
    engine.session.open_layers(len(block.layers))
