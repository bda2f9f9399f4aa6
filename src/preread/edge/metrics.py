"""What an edge tells of itself at `/metrics`, in Prometheus' text form: numbers only, nothing of what was said.

What the engine's loop counts is read when somebody asks; what answers took is noted when they end.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from preread.edge.core import Stats
from preread.edge.request import Timings

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_LOGGED: Final = (
    "way", "prompt_n", "cache_n", "predicted_n", "bytes_received", "queue_ms", "load_ms", "context_ms", "ttft_ms",
    "predicted_ms",
)  # fmt: skip
_log = logging.getLogger(__name__)

_TTFT_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
_TPOT_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of KV outside the engine's cache: in memory, and on the disk; and bytes that ever came, by source."""

    ram_bytes: int
    disk_bytes: int
    received_bytes: dict[str, int]


class Metrics:
    """One edge's metrics.

    Args:
        stats: what the engine's loop counts now.
        memory: what is held besides.
    """

    def __init__(self, stats: Callable[[], Stats], memory: Callable[[], Memory]) -> None:
        self._stats, self._memory = stats, memory
        self._registry = CollectorRegistry()
        self._registry.register(_Now(self._now))
        self._ttft = Histogram(
            "preread_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ["way"],
            buckets=_TTFT_S,
            registry=self._registry,
        )
        self._tpot = Histogram(
            "preread_time_per_output_token_seconds",
            "Between the tokens of an answer, in the mean of each.",
            buckets=_TPOT_S,
            registry=self._registry,
        )
        self._answers = Counter("preread_answers", "Answers that came to their end.", ["way"], registry=self._registry)

    def answered(self, timings: Timings) -> None:
        """An answer has come to its end. The log tells of it what the metrics do."""
        fields = {name: getattr(timings, name) for name in _LOGGED}
        _log.info(
            "answered: %s, %d tokens computed before it and %d not, %d tokens, the first after %.2f s",
            timings.way, timings.prompt_n, timings.cache_n, timings.predicted_n, timings.ttft_ms / 1e3,
            extra={"fields": fields},
        )  # fmt: skip
        self._answers.labels(timings.way).inc()
        self._ttft.labels(timings.way).observe(timings.ttft_ms / 1e3)
        if timings.predicted_n > 1:
            self._tpot.observe(timings.predicted_ms / 1e3 / (timings.predicted_n - 1))

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _now(self) -> Iterator[Metric]:
        stats, memory = self._stats(), self._memory()
        yield _gauge("preread_requests_running", "Requests that are computed.", stats.running)
        yield _gauge("preread_requests_waiting", "Requests that nothing is computed for yet.", stats.waiting)
        yield _gauge("preread_contexts_loading", "Contexts on their way into the cache.", stats.loading)
        yield _gauge("preread_sequences_free", "Sequences that nothing has.", stats.free_sequences)
        cells = GaugeMetricFamily("preread_kv_cells", "Cells of the engine's cache, by what has them.", labels=["of"])
        for of, count in stats.cells.items():
            cells.add_metric([of], count)
        yield cells
        kept = GaugeMetricFamily("preread_kv_bytes", "Memory of KV, by tier.", labels=["tier"])
        for tier, size_bytes in (("engine", stats.kv_bytes), ("ram", memory.ram_bytes), ("disk", memory.disk_bytes)):
            kept.add_metric([tier], size_bytes)
        yield kept
        received = CounterMetricFamily("preread_received_bytes", "Bytes of segments that came.", labels=["source"])
        for source, size_bytes in memory.received_bytes.items():
            received.add_metric([source], size_bytes)
        yield received
        yield CounterMetricFamily("preread_steps", "Steps that were computed.", value=stats.steps)
        tokens = CounterMetricFamily("preread_tokens", "Tokens that were computed, by what they are.", labels=["of"])
        for of, count in stats.tokens.items():
            tokens.add_metric([of], count)
        yield tokens


class _Now:
    """A collector of prometheus-client."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)
