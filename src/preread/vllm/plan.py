"""What each step has to load and to save, by what requests wish and which pages they have. Decides, and does no I/O.

A context's rows are taken as far as the prompt begins with its tokens, in whole pages, and never to the prompt's end:
something has to be computed for its first word.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from preread.errors import UsageError
from preread.values import Form, Half
from preread.vllm.config import Wish, wish
from preread.wire.names import why_unfit

Slots = npt.NDArray[np.int64]
"""Page × tokens of a page + place in it, for each token."""

_MOST_REMEMBERED: Final = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A context in host memory: K and V are (layers, kv_heads, tokens, head_dim), as llama.cpp caches them."""

    tokens: npt.NDArray[np.int32]
    rung: str
    k: Half
    v: Half


class Asked(Protocol):
    """Where published contexts come from."""

    def ask(self, name: str) -> Arrived | str | None:
        """The context of this name; None: it is coming; a text: why it does not."""


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """Tokens [start, stop) of a request are in the cache after this step, at these slots, and are to be published."""

    request: str
    name: str
    form: Form
    tokens: npt.NDArray[np.int32]
    start: int
    stop: int
    slots: Slots


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """Tokens [start, stop) of a context are to be in the cache at these slots before this step."""

    arrived: Arrived
    start: int
    stop: int
    slots: Slots


@dataclass(frozen=True, slots=True)
class Step:
    """What a step has to do besides computing; `dropped` are requests that ended before all of them was saved."""

    saves: tuple[Save, ...] = ()
    loads: tuple[Load, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(slots=True)
class _Request:
    """What is known of a request that has a wish.

    Attributes:
        wish, tokens: what it wants, and its prompt.
        pages: its blocks, in order.
        saved: how many tokens are published, or being published.
        arrived, start: the context that is to be loaded, and from which token on.
        loaded: how many tokens were.
        reason: why nothing was loaded.
    """

    wish: Wish
    tokens: npt.NDArray[np.int32]
    pages: list[int] = field(default_factory=list)
    saved: int = 0
    arrived: Arrived | None = None
    start: int = 0
    loaded: int = 0
    reason: str | None = None


class Planner:
    """The requests that have a wish.

    Args:
        incoming: where contexts come from; None: from nowhere.
        page_tokens: tokens of a page.
        publishes: whether there is a store.
    """

    def __init__(self, incoming: Asked | None, page_tokens: int, *, publishes: bool) -> None:
        self._incoming, self._page_tokens, self._publishes = incoming, page_tokens, publishes
        self._requests: dict[str, _Request] = {}
        self._saves: list[Save] = []
        self._loads: list[Load] = []
        self._dropped: list[str] = []

    def matched(
        self, id: str, params: dict[str, Any] | None, prompt: Sequence[int] | None, computed: int, *, plain: bool
    ) -> int | None:
        """How many tokens behind the first `computed` ones can be loaded; None: ask again, they are coming.

        Args:
            id, params, prompt: the request, what it says of transfers, and its token ids.
            computed: tokens that are in the cache.
            plain: whether its KV depends on tokens and the model alone.
        """
        request = self._known(id, params, prompt, plain=plain)
        if request is None or request.wish.context is None:
            return 0
        if self._incoming is None:
            request.reason = "this vLLM has no cloud"
            return 0
        found = self._incoming.ask(request.wish.context)
        if found is None:
            return None
        if isinstance(found, str):
            request.reason = found
            _log.info("context %r is computed here: %s", request.wish.context, found)
            return 0
        common = _common(found.tokens, request.tokens)
        stop = min(common, len(request.tokens) - 1) // self._page_tokens * self._page_tokens
        if common < len(found.tokens):
            request.reason = f"the prompt begins with {common} of the context's {len(found.tokens)} tokens"
        request.arrived, request.start = found, computed
        return max(0, stop - computed)

    def allocated(self, id: str, blocks: Sequence[int], external: int) -> None:
        """A request has pages for so many tokens that are to be loaded."""
        request = self._requests.get(id)
        if request is None or request.arrived is None:
            return
        start, stop = request.start, request.start + external
        self._loads.append(Load(request.arrived, start, stop, self._slots(blocks, start, stop)))
        request.loaded, request.arrived = external, None

    def scheduled(self, id: str, blocks: Sequence[int], stop: int, *, anew: bool) -> None:
        """After this step a request has its first `stop` tokens in the cache; `blocks` are new, or all (`anew`)."""
        request = self._requests.get(id)
        if request is None or request.wish.publish is None:
            return
        request.pages = list(blocks) if anew else [*request.pages, *blocks]
        stop = min(stop, len(request.tokens))
        if stop <= request.saved:
            return
        start, request.saved = request.saved, stop
        slots = self._slots(request.pages, start, stop)
        what = request.wish
        self._saves.append(Save(id, what.publish or "", what.form, request.tokens, start, stop, slots))

    def step(self) -> Step:
        """All that was noted since the last step."""
        step = Step(tuple(self._saves), tuple(self._loads), tuple(self._dropped))
        self._saves, self._loads, self._dropped = [], [], []
        return step

    def finished(self, id: str) -> dict[str, Any] | None:
        """What to tell who asked; None: there was no wish."""
        request = self._requests.pop(id, None)
        if request is None:
            return None
        if 0 < request.saved < len(request.tokens):
            self._dropped.append(id)
        told: dict[str, Any] = {}
        if request.wish.publish is not None:
            told |= {"publishing": request.wish.publish, "tokens": request.saved}
        if request.wish.context is not None:
            told |= {"context": request.wish.context, "loaded_tokens": request.loaded}
        return told if request.reason is None else told | {"reason": request.reason}

    def _known(
        self, id: str, params: dict[str, Any] | None, prompt: Sequence[int] | None, *, plain: bool
    ) -> _Request | None:
        """The request, if it has a wish that can be heard."""
        if id not in self._requests and params is not None and "preread" in params:
            try:
                heard = self._heard(params, prompt, plain=plain)
            except UsageError as error:
                _log.warning("what a request wants of preread is passed over: %s", error)
                return None
            while len(self._requests) >= _MOST_REMEMBERED:
                del self._requests[next(iter(self._requests))]
            self._requests[id] = _Request(heard, np.array(prompt, np.int32))
        return self._requests.get(id)

    def _heard(self, params: dict[str, Any], prompt: Sequence[int] | None, *, plain: bool) -> Wish:
        heard = wish(params)
        if not prompt or not plain:
            raise UsageError("its KV does not follow from token ids alone")
        if heard.publish is not None and (unfit := why_unfit(heard.publish)):
            raise UsageError(f"{heard.publish[:128]!r} cannot name a context: {unfit}")
        if heard.publish is not None and not self._publishes:
            raise UsageError("this vLLM has no store to publish to")
        return heard

    def _slots(self, blocks: Sequence[int], start: int, stop: int) -> Slots:
        at = np.arange(start, stop)
        return np.array(blocks, np.int64)[at // self._page_tokens] * self._page_tokens + at % self._page_tokens


def _common(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """How many tokens two begin with alike."""
    count = min(len(one), len(other))
    differ = np.flatnonzero(one[:count] != other[:count])
    return int(differ[0]) if len(differ) else count
