"""Answers that have to have a form: which tokens may come next, by llguidance.

llguidance (Earley's algorithm over a lexer of regular expressions' derivatives) finds the tokens that may follow in
some hundred microseconds, whatever the vocabulary's size. It bounds what a grammar may cost. llama.cpp's own sampler of
grammars does not, and takes milliseconds a token: there one request can keep the engine from everybody.

This module is llguidance's only home.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark, gbnf_to_lark

from preread.errors import UsageError

Kind = Literal["json", "regex", "gbnf", "lark", "any"]
Schema = dict[str, Any]
Ids = npt.NDArray[np.intp]

MOST_BYTES: Final = 256 * 1024
"""Of a grammar's text."""

MOST_NEEDED: Final = 96
"""Tokens: no end of JSON is looked for that is farther away."""

_MOST_GBNF_BYTES: Final = 32 * 1024  # translating it takes time in proportion to its square
_LETTERS: Final = (b"z", b"w", b"Q", b"Z")
_END: Final = 120
_KEPT: Final = 32
_MOST_SAID: Final = 300
_LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=20_000,  # 1.5 ms a token; usual schemas need less than a quarter
    step_max_items=10_000,  # 0.5 ms a token
    max_lexer_states=50_000,  # 1 or 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to look like.

    Attributes:
        kind, text: a JSON schema, see `of_schema`; a regular expression; a grammar in llama.cpp's GBNF or in
            llguidance's dialect of Lark; "any": one of these two.
        closes: it is JSON, which can be brought to its end when there is little room left.
    """

    kind: Kind
    text: str
    closes: bool = False


def of_schema(schema: Schema | bool, *, lenient: bool) -> Grammar:
    """JSON by a schema; see `spaced`."""
    return Grammar("json", json.dumps(spaced(schema if isinstance(schema, dict) else {}, lenient=lenient)), closes=True)


def spaced(schema: Schema, *, lenient: bool) -> Schema:
    """The schema with blanks as json.dumps writes them: models were taught that, and it leaves a small one no way to
    add blanks for ever. `lenient`: keywords that cannot be enforced are passed over, not refused."""
    blanks = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return schema | {"x-guidance": {**blanks, "lenient": lenient}}


def of_choice(choices: Sequence[str]) -> Grammar:
    """One of these texts."""
    return Grammar("lark", "start: " + " | ".join(json.dumps(choice) for choice in choices))


@dataclass(frozen=True, slots=True)
class Words:
    """What a vocabulary's tokens stand for.

    Attributes:
        pieces: the bytes of each token.
        special: ids of the control tokens.
        ends: ids of those that end an answer; never none.
        tokenize: ids of a text, in which no control token is read.
    """

    pieces: Sequence[bytes]
    special: Sequence[int]
    ends: Sequence[int]
    tokenize: Callable[[str], Sequence[int]]


class Grammars:
    """Makes constraints of grammars; what was made of the last few is kept. Any thread may use it.

    Args:
        words: of the vocabulary; asked for when the first grammar comes.
    """

    def __init__(self, words: Callable[[], Words]) -> None:
        self._words, self._lock = words, threading.Lock()
        self._made: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Whether the vocabulary was read. Until then what needs it first takes seconds."""
        return "_tokenizer" in self.__dict__

    def prepare(self) -> None:
        """Read the vocabulary, which takes seconds where it is large, and some 400 bytes a token for good."""
        self._tokenizer  # noqa: B018  # kept

    def check(self, grammar: Grammar) -> None:
        """Make what `constraint` needs; may take some 100 ms.

        Raises:
            UsageError: the grammar is none, or takes too much.
        """
        self._matcher(grammar)

    def constraint(self, grammar: Grammar) -> "Constraint":
        """For a new answer. Raises UsageError as `check` does."""
        closing = self._closing if grammar.closes else None
        return Constraint(self._matcher(grammar).deep_copy(), self._tokenizer.vocab_size, closing)

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        with self._lock:
            made = self._made.get(grammar)
            if made is not None:
                self._made.move_to_end(grammar)
                return made
        made = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=_LIMITS)
        if made.is_error():
            raise UsageError(f"the grammar of the answer cannot be used: {_line(made.get_error())}")
        with self._lock:
            self._made[grammar] = made
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return made

    @cached_property
    def _vocabulary(self) -> Words:
        return self._words()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        words = self._vocabulary
        return LLTokenizer(TokenizerWrapper(_Adapter(words)), eos_token=[*map(int, words.ends)])

    @cached_property
    def _closing(self) -> "Closing | None":
        return Closing.of(self._vocabulary)


class _Adapter:
    """A vocabulary under the names that llguidance's TokenizerWrapper expects."""

    bos_token_id = None

    def __init__(self, words: Words) -> None:
        self.eos_token_id = int(words.ends[0])
        self.tokens, self.special_token_ids = [*words.pieces], [*map(int, words.special)]
        self._tokenize = words.tokenize

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text, not bytes")  # TokenizerWrapper tries both
        return [*map(int, self._tokenize(text))]


@dataclass(frozen=True, slots=True)
class Closing:
    """How well each token closes JSON (tokens,), 0: not at all.

    Attributes:
        outside, inside: where no text has begun, and where one has.
        opens: whether it may begin something that has to be closed.
        letter: the token of a letter that none of JSON's words has.
    """

    outside: npt.NDArray[np.int8]
    inside: npt.NDArray[np.int8]
    opens: npt.NDArray[np.bool_]
    letter: int

    @classmethod
    def of(cls, words: Words) -> Self | None:
        """Of a vocabulary; None: it has no token of such a letter."""
        pieces = words.pieces
        letter = next((id for id, piece in enumerate(pieces) if piece in _LETTERS), None)
        if letter is None:
            return None
        closes = np.array([_closes(piece) for piece in pieces], np.int8)
        closes[[*words.ends]] = _END
        quoted = np.array([piece.startswith(b'"') for piece in pieces])
        opens = np.array([any(byte in piece for byte in b"{[,") for piece in pieces])
        return cls(closes, np.where(quoted, closes, 0).astype(np.int8), opens, letter)

    def ranks(self, *, within_text: bool) -> npt.NDArray[np.int8]:
        """Of all tokens, where a text has begun or not."""
        return self.inside if within_text else self.outside


def _closes(piece: bytes) -> int:
    """A bracket closes more than a quotation mark, which may as well open a text; a comma at least ends a number."""
    if not piece or piece.strip(b'"]}, ') or piece.count(b'"') > 1 or piece.count(b",") > piece.startswith(b","):
        return 0
    brackets = piece.count(b"]") + piece.count(b"}")
    return min(100, 4 * brackets + 2 * piece.count(b'"') + piece.startswith(b","))


class Constraint:
    """Follows one answer. Belongs to the engine's thread."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, closing: "Closing | None") -> None:
        self._matcher, self._closing = matcher, closing
        self._mask = np.zeros((vocab_size + 31) // 32, np.uint32)
        self._size = vocab_size

    def allowed(self) -> Ids:
        """Ids of the tokens that may come next, ascending; empty: none may, see `failure`."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            return np.empty(0, np.intp)
        return np.flatnonzero(np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._size])

    def closing(self, ids: Ids) -> Ids:
        """Of these tokens those that lead soonest to the end of what is JSON, where any do."""
        if self._closing is None:
            return ids
        # Brackets close nothing within a text, which is where any letter may come.
        ranks = self._closing.ranks(within_text=bool(np.isin(self._closing.letter, ids)))[ids]
        return np.asarray(ids[ranks == ranks.max()]) if ranks.any() else ids

    @property
    def closes(self) -> bool:
        """Whether `closing`, `opens` and `needed_tokens` mean anything."""
        return self._closing is not None

    def opens(self, token: int) -> bool:
        """Whether more may have to follow a token than without it."""
        return self._closing is not None and bool(self._closing.opens[token])

    def needed_tokens(self, after: int | None = None) -> int:
        """About how many tokens it takes to come to an end, by `closing`; at most `MOST_NEEDED`.

        after: a token that is allowed now, from behind which it is counted; None: from here.
        """
        ahead = Constraint(self._matcher.deep_copy(), self._size, self._closing)
        if after is not None:
            ahead.take(after)
        for count in range(MOST_NEEDED):
            ids = ahead.allowed()
            if ahead.complete or not len(ids):
                return count
            ahead.take(int(ahead.closing(ids)[0]))
        return MOST_NEEDED

    def take(self, token: int) -> None:
        """One of those was chosen."""
        self._matcher.consume_token(token)

    def forced(self) -> tuple[int, ...]:
        """What has to come next, as far as nothing else may."""
        return tuple(self._matcher.compute_ff_tokens())

    @property
    def complete(self) -> bool:
        """Whether the answer has the form, and nothing may be added to it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def failure(self) -> str | None:
        """Why no token may come next, although the answer is not complete."""
        return _line(self._matcher.get_error()) if self._matcher.is_error() else None


def _source(grammar: Grammar) -> str:
    """As llguidance takes it. Raises UsageError where the text is none of its kind."""
    kind, text = grammar.kind, grammar.text
    most = _MOST_GBNF_BYTES if kind in ("gbnf", "any") else MOST_BYTES
    if len(text) > most:
        raise UsageError(f"the grammar of the answer has {len(text)} characters: at most {most} can be used")
    try:
        if kind == "json":
            return LLMatcher.grammar_from_json_schema(text)
        if kind == "regex":
            return LLMatcher.grammar_from_regex(text)
        if kind == "gbnf":
            return LLMatcher.grammar_from_lark(gbnf_to_lark(text))
        return LLMatcher.grammar_from_lark(text if kind == "lark" else any_to_lark(text))
    except Exception as error:  # its converter raises plain ones, and runs out of stack where rules are nested deeply
        why = _line(str(error) or type(error).__name__)
        raise UsageError(f"the grammar of the answer cannot be read: {why}") from error


def _line(message: str) -> str:
    return " ".join(message.split())[:_MOST_SAID]
