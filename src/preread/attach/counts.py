"""What is counted of the requests that pass, in Prometheus' text form: numbers only, nothing of what was said."""

from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Counts:
    """One process's counts.

    Attributes:
        requests: that passed, by `way`: restored, held or passed.
        reused, computed: tokens of prompts about contexts, as the server told.
        unfit: restores after which the server computed the context all the same.
        came_bytes: of contexts, from links and disks.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"preread_attach_{name}", what, labels, registry=self._registry)

        self.requests = counter("requests", "Requests that were passed on.", "way")
        self.reused = counter("reused_tokens", "Tokens that the server did not compute, of prompts about contexts.")
        self.computed = counter("computed_tokens", "Tokens that it computed of those.")
        self.unfit = counter("unfit", "Restores after which the server computed the context all the same.")
        self.came_bytes = counter("received_bytes", "Bytes of contexts that came over links and from the disk.")

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
