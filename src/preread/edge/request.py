"""What is asked of an edge, and what comes back: values without behaviour.

`Ask` is made by `openai.py` from a request's body, or by the library; `Piece`s of text come back, then one `Done`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from preread.engine.calls import Tools
from preread.engine.infill import Gap
from preread.engine.sampling import Sampling

Way = Literal["streamed", "mixed", "resident", "computed", "none"]
"""Where the context's KV came from: the cloud, memory, this machine's own prefill; or there was no context."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question.

    Attributes:
        messages: a chat; or else `prompt`: a text, or token ids, that is continued.
        context: name of the shared context that precedes it; None: the edge looks by itself whether the prompt begins
            with one.
        sampling: how tokens are chosen.
        stop: texts that end the answer; they are not part of it.
        template: further variables for the model's chat template.
        tools: what the model may call in a chat; None: nothing.
        echo: the answer begins with the prompt.
        local: the context is computed here unless the engine or memory has it: nothing is streamed.
        gap: `prompt` is a text, and stands before a gap: the answer is what is missing there.
    """

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    context: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    tools: Tools | None = None
    echo: bool = False
    local: bool = False
    gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class TokenOdds:
    """A token with its log-probability (nats; None: nothing stands before it), and the likeliest ones, alike."""

    id: int
    text: str
    data: bytes
    logprob: float | None
    top: tuple["TokenOdds", ...] = ()


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a tool call in an answer. The first one of a call has its id and name, further ones only arguments.

    Attributes:
        index: which call of the answer, from 0.
        arguments: how the JSON text of its arguments goes on.
        id: what the client names the call by when it brings the result.
        name: of the function.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the answer, or parts of the tool calls in it.

    `odds` are those of the tokens that were chosen since the last piece, when asked for.
    """

    text: str
    odds: tuple[TokenOdds, ...] = ()
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the prompt of an answer is, in tokens; fields are those of llama-server's `prompt_progress`.

    Attributes:
        total: of the prompt, a context's included.
        cache: that were in the engine's cache when it began.
        processed: that are there now.
        time_ms: since something was done for it.
    """

    total: int
    cache: int
    processed: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Timings:
    """What came from where, and how long it took; field names follow llama.cpp's `timings` where it has them.

    Attributes:
        context: name of the context, if any.
        way: where its KV came from; "mixed": its beginning was computed here, the rest streamed.
        reason: why it was not streamed, when it was not; where there is no context, which one the prompt nearly began
            with, if it did.
        rung: rung of the quality ladder that was streamed.
        refined_to: better rung that the context's segments were being replaced by when the answer ended, if any.
        refined_share: share of them that were in place by then; 1: all of the context was held at `refined_to`.
        cache_n: tokens of the prompt, the context's included, that did not have to be computed here.
        context_n: tokens of context.
        prompt_n: tokens computed here before the answer began, the context's included where they were.
        predicted_n: tokens of the answer.
        bytes_received: from the cloud, for this answer.
        queue_ms: waiting for earlier requests.
        load_ms: from the first request to the cloud until the last row was in place; 0 if nothing was loaded.
        context_ms: computing the context here, or the part of it that was.
        ttft_ms: from the request's arrival to the first token.
        predicted_ms: from the first token to the last.
    """

    context: str | None = None
    way: Way = "none"
    reason: str | None = None
    rung: str | None = None
    refined_to: str | None = None
    refined_share: float = 0.0
    cache_n: int = 0
    context_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0
    bytes_received: int = 0
    queue_ms: float = 0.0
    load_ms: float = 0.0
    context_ms: float = 0.0
    ttft_ms: float = 0.0
    predicted_ms: float = 0.0

    @property
    def predicted_per_second(self) -> float:
        """Decode rate after the first token; 0 when there was only one."""
        return (self.predicted_n - 1) / self.predicted_ms * 1e3 if self.predicted_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer.

    Attributes:
        finish: OpenAI's: "stop" (the model ended, or a stop text came), "length", or "tool_calls" (it calls tools).
        stop: the stop text that came, if one did.
    """

    finish: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    timings: Timings
    stop: str | None = None
