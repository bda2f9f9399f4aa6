"""What a llama-server's answer says of how many tokens it did not have to compute. The answer itself is left alone.

Only its last bytes are looked at: there OpenAI's usage, Anthropic's and llama-server's own timings stand, in a stream
as well. Pure.
"""

import re
from typing import Final

_TAIL_BYTES: Final = 64 * 1024
_FEWEST_TOKENS: Final = 32
"""Of shorter prompts the time says little: weights are read for all tokens of a batch together."""
_FIELDS: Final = re.compile(
    rb'(?<!\\)"(cache_n|cached_tokens|cache_read_input_tokens|prompt_n|prompt_per_second)"\s*:\s*(\d{1,12}(?:\.\d+)?)'
)
"""A quote in a text is written `\\"` in JSON, so what an answer says cannot look like one of these."""


class Reused:
    """Looks at an answer as it passes."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """The next bytes of the answer."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def _told(self, *names: bytes) -> float | None:
        found = {name: float(value) for name, value in _FIELDS.findall(self._tail)}
        return next((found[name] for name in names if name in found), None)

    @property
    def tokens(self) -> int | None:
        """How many were reused; None: the answer does not say."""
        told = self._told(b"cache_n", b"cached_tokens", b"cache_read_input_tokens")
        return None if told is None else int(told)

    @property
    def computed(self) -> int | None:
        """How many tokens of the prompt were computed; None: the answer does not say."""
        told = self._told(b"prompt_n")
        return None if told is None else int(told)

    @property
    def tokens_s(self) -> float | None:
        """How fast the server computed its prompt; None: it does not say, or the prompt was too short to tell."""
        computed, told = self.computed, self._told(b"prompt_per_second")
        return told if told and computed is not None and computed >= _FEWEST_TOKENS else None
