"""An engine in this process, as the commands open it that publish, fit and measure."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from preread.cli import options
from preread.errors import UsageError

if TYPE_CHECKING:
    from preread.engine.llamacpp import LlamaCpp

_log = logging.getLogger(__name__)


@contextmanager
def engine_for(model: str, ctx_size: int, threads: int, *, streamed: bool = True) -> "Iterator[LlamaCpp]":
    """A tested engine whose KV can be published, and that a profile can be fitted with; or, unless `streamed`, any.

    Raises:
        UsageError: it cannot, by the model's nature.
        PrereadError: as loading does.
    """
    from preread.engine.llamacpp import LlamaCpp
    from preread.engine.selftest import self_test
    from preread.fit.sample import TAIL_TOKENS

    path = options.pulled(model)
    name = options.shown_name(model, path)
    _log.info("loading %s", name)
    engine = LlamaCpp.open(path, name=name, window_tokens=ctx_size, threads=threads, scored_tokens=TAIL_TOKENS)
    try:
        self_test(engine)
        if streamed and engine.no_injection:
            raise UsageError(f"{name} cannot be streamed: {engine.no_injection}; choose another --model")
        yield engine
    finally:
        engine.close()
