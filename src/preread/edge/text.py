"""From tokens to text: whole UTF-8 characters only, and nothing of a stop text."""

import codecs
from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from preread.edge.request import Ask, Piece, TokenOdds
from preread.engine.llamacpp import LlamaCpp
from preread.engine.sampling import Sampled


class Writer:
    """Turns the steps of one answer into pieces of text.

    Args:
        engine: the model's.
        stop: texts that end the answer.
        shown: control tokens whose text is part of the answer; of others it is not.

    Attributes:
        stop: the stop text that came, if one did.
        finish: how the answer ended, as far as is known: "length" until an end or a stop text comes.
    """

    def __init__(self, engine: LlamaCpp, stop: tuple[str, ...], shown: Collection[int] = ()) -> None:
        self._engine, self._stop, self._shown = engine, tuple(text for text in stop if text), shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._odds: list[TokenOdds] = []
        self.stop: str | None = None
        self.finish: Literal["stop", "length"] = "length"

    @property
    def finished(self) -> bool:
        """No further token is wanted."""
        return self.finish == "stop"

    def write(self, step: Sampled) -> Piece | None:
        """Take a token; the text that is certain now, if any."""
        if step.end:
            self.finish = "stop"
            return None
        if step.logprob is not None:
            self._odds.append(self.odds(step))
        shown = step.token in self._shown
        self._held += self._decoder.decode(self._engine.piece(step.token, special=True) if shown else step.piece)
        found = [(at, text) for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            at, self.stop = min(found)
            self._held, self.finish = self._held[:at], "stop"
            return self._release(len(self._held))
        if step.last:
            self.finish = "stop"
        return self._release(len(self._held) - self._may_begin_stop())

    def rest(self) -> Piece | None:
        """What was held back, once no further token comes."""
        if not self.finished:
            self._held += self._decoder.decode(b"", final=True)
        return self._release(len(self._held), final=True)

    def _may_begin_stop(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        longest = min(len(self._held), max((len(text) for text in self._stop), default=1) - 1)
        ends = range(longest, 0, -1)
        return next((n for n in ends if any(text.startswith(self._held[-n:]) for text in self._stop)), 0)

    def _release(self, length: int, *, final: bool = False) -> Piece | None:
        text, self._held = self._held[:length], self._held[length:]
        if not text and not (self._odds and final):
            return None
        odds, self._odds = tuple(self._odds), []
        return Piece(text, odds)

    def text(self, tokens: tuple[int, ...]) -> str:
        """The text of token ids, control tokens' included."""
        return b"".join(self._engine.piece(token, special=True) for token in tokens).decode(errors="replace")

    def odds(self, step: Sampled) -> TokenOdds:
        """How likely a token was."""

        def named(token: int, logprob: float | None) -> TokenOdds:
            data = self._engine.piece(token, special=True)
            return TokenOdds(token, data.decode(errors="replace"), data, logprob)

        return replace(named(step.token, step.logprob), top=tuple(named(*each) for each in step.top))


class Echo:
    """The prompt of a completion as the first piece of its answer, with how likely its tokens were, where wanted."""

    def __init__(self, ask: Ask, writer: Writer) -> None:
        self._text = ask.prompt if isinstance(ask.prompt, str) else writer.text(ask.prompt or ())
        self._writer, self._odds = writer, list[TokenOdds]()

    def take(self, step: Sampled) -> None:
        """Take a token of the prompt."""
        self._odds.append(self._writer.odds(step))

    def piece(self) -> Piece:
        """All of it."""
        return Piece(self._text, tuple(self._odds))
