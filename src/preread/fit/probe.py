"""What a change of one layer's KV does to the predictions behind a context: measured, in the engine."""

from dataclasses import dataclass
from typing import Self

from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.fit.quality import Single, compare, reference
from preread.fit.sample import Window, hold
from preread.values import KVBlock, Span


@dataclass(frozen=True, slots=True)
class Probe:
    """A context that the engine holds, tokens behind it, and their log-probabilities after its exact KV."""

    engine: LlamaCpp
    tail: Tokens
    exact: Single

    @classmethod
    def behind(cls, engine: LlamaCpp, window: Window, scored_tokens: int) -> Self:
        """Have the engine hold a window's context; so many tokens of its tail are predicted."""
        hold(engine, window.block)
        tail = window.tail[:scored_tokens]
        return cls(engine, tail, reference(engine, tail))

    def divergence(self, changed: KVBlock, kept: KVBlock) -> float:
        """Mean KL divergence with some layers `changed`; afterwards the engine has them as `kept` again."""
        self.engine.session.inject(changed)
        try:
            return float(compare(self.engine.session.score(self.tail), self.tail, self.exact).kl.mean())
        finally:
            self.engine.session.inject(kept)


def layer_of(block: KVBlock, layer: int) -> KVBlock:
    """One layer of a block of all layers."""
    return KVBlock(block.tokens, Span(layer, layer + 1), block.k[layer : layer + 1], block.v[layer : layer + 1])
