"""How many tokens each caller has had: who had least is served next, each token counting alike.

A Virtual Token Counter (Sheng et al., OSDI 2024). Who comes back after a pause has saved nothing up, and owes what it
owed, for as long as anybody is there.
"""

from collections.abc import Set


class Served:
    """Counters of callers. Those of callers who owe nothing are forgotten when they are gone."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}

    def of(self, caller: str) -> float:
        """What a caller has had, on the scale of all."""
        return self._tokens.get(caller, 0.0)

    def add(self, caller: str, tokens: int) -> None:
        """A caller has had so many more."""
        self._tokens[caller] = self.of(caller) + tokens

    def come(self, caller: str, active: Set[str]) -> None:
        """A caller asks, while these have requests: one that has none begins where the least served of them is."""
        if caller not in active:
            least = min(map(self.of, active), default=0.0)
            owing = {each: tokens for each, tokens in self._tokens.items() if active and tokens > least}
            self._tokens = {**dict.fromkeys({*active, caller}, least), **owing}
