"""Spans of OpenTelemetry around what takes time: the one home of `opentelemetry`, which need not be installed.

Spans have numbers, and the ids of contexts that were asked for by name; no text, no token ids, and of errors no more
than that there was one. Where they go is decided by whoever sets a provider; without one nothing is recorded.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from preread.values import ContextId

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_tracer: "Tracer | None"
try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    _tracer = trace.get_tracer("preread")

_PREFIX: Final = "preread."


class Noted:
    """A span that is open; None: nothing is recorded."""

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span

    def note(self, **numbers: float) -> None:
        """Set attributes."""
        if self._span is not None:
            self._span.set_attributes({_PREFIX + name: number for name, number in numbers.items()})


@contextmanager
def span(name: str, **numbers: float) -> Generator[Noted, None, None]:
    """A span while the context is open, within whatever is current. It may be left in another context."""
    if _tracer is None:
        yield Noted()
        return
    opened = _tracer.start_span(_PREFIX + name)
    recorded = opened.is_recording()
    noted = Noted(opened if recorded else None)
    noted.note(**numbers)
    try:
        yield noted
    except Exception:
        if recorded:
            opened.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        opened.end()


@contextmanager
def story(name: str, context: ContextId | None = None, **numbers: float) -> Generator[Noted, None, None]:
    """As `span`, but spans that begin meanwhile are within it, in this task and in those that it starts.

    context: that it is about; only one that was asked for by name.
    """
    with span(name, **numbers) as noted:
        opened = noted._span
        if opened is None:
            yield noted
            return
        if context is not None:
            opened.set_attribute(_PREFIX + "context", context)
        with trace.use_span(opened, record_exception=False, set_status_on_exception=False):
            yield noted


def past(name: str, began_s: float, **numbers: float) -> None:
    """A span that began then, of `time.monotonic`, and ends now."""
    if _tracer is None:
        return
    began_ns = time.time_ns() - int((time.monotonic() - began_s) * 1e9)
    opened = _tracer.start_span(_PREFIX + name, start_time=began_ns)
    if opened.is_recording():
        Noted(opened).note(**numbers)
    opened.end()
