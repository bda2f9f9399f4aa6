"""The words between the schedule and whoever does what it says: requests, and steps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """What asks for tokens.

    Attributes:
        id: of the request.
        caller: whose it is.
        prompt_tokens: behind the context.
        most_tokens: of the answer.
        context: what it begins with; None: nothing.
        context_tokens: all of that context; `reuse_tokens`: of which it begins with so many.
        cost_s: what bringing the context takes, as far as is known.
        guest: it begins with the context without naming it.
        pinned: the context is to stay longer than others.
        echo: the logits of all its prompt are wanted.
        stem: it is what others of its `family` begin with, and is kept for them until it is dropped. Those of a family
            begin with nothing else that is kept, and leave nothing; None: it is of none, a caller's own.
        kept: a conversation whose first `kept_tokens` behind the same context are those of the prompt; None: there is
            none.
    """

    id: int
    caller: str
    prompt_tokens: int
    most_tokens: int
    context: str | None = None
    context_tokens: int = 0
    reuse_tokens: int = 0
    cost_s: float = 1.0
    guest: bool = False
    pinned: bool = False
    echo: bool = False
    family: str | None = None
    stem: bool = False
    kept: str | None = None
    kept_tokens: int = 0

    def alone(self) -> "Request":
        """The same without the context: what it begins with is part of the prompt."""
        prompt_tokens = self.prompt_tokens + self.reuse_tokens
        return Request(
            self.id, self.caller, prompt_tokens, self.most_tokens, echo=self.echo, family=self.family, stem=self.stem
        )


@dataclass(frozen=True, slots=True)
class Resumed:
    """A request that begins with so many tokens of a conversation that is kept."""

    id: int
    kept: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """So many tokens of a request, or of a context that is computed, in a step; `chooses`: a token comes after them."""

    id: int
    tokens: int
    chooses: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, in this order.

    Attributes:
        stop: requests that make way: their cells are given back, and they begin again later.
        evict: contexts and conversations that leave the cache.
        bring: contexts that get cells, and are to be loaded or computed.
        alone: requests that go on without their context: all of what they begin with is theirs now.
        refuse: requests that waited too long; they are gone.
        begin: requests that get a sequence.
        resume: those of them that begin with a conversation.
        parts: what is computed together.
        gated: the context whose layers are still coming, where the parts are of requests about it.
    """

    stop: tuple[int, ...] = ()
    evict: tuple[str, ...] = ()
    bring: tuple[str, ...] = ()
    alone: tuple[int, ...] = ()
    refuse: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()
    resume: tuple[Resumed, ...] = ()
    parts: tuple[Part, ...] = ()
    gated: str | None = None

    @property
    def tokens(self) -> int:
        """Of all parts."""
        return sum(part.tokens for part in self.parts)
