"""Which model a replica loads, and how: what the cloud's own process does where there is no Ray."""

from dataclasses import dataclass

from preread.cloud.counting import EngineCounter
from preread.cloud.ray.replica import Opened
from preread.cloud.serve import EnginePublisher
from preread.engine.download import pull
from preread.engine.llamacpp import LlamaCpp
from preread.engine.selftest import self_test
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.sample import TAIL_TOKENS
from preread.store.objects import Objects


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model of llama.cpp.

    Attributes:
        reference, name: where it comes from, as `preread.engine.download.pull` reads it there, and what it is called.
        window_tokens, threads: as `LlamaCpp.open` takes them.
        rungs: to publish in; None: lossless, and all that are fitted.
    """

    reference: str
    name: str
    window_tokens: int
    threads: int
    rungs: tuple[str, ...] | None

    def open(self, store: Objects) -> Opened:
        """Fetch it if it is not there, load it and test it.

        Raises:
            PrereadError: it cannot be fetched or loaded, or its KV cannot be published.
        """
        path = pull(self.reference, lambda *_: None)
        engine = LlamaCpp.open(
            path, name=self.name, window_tokens=self.window_tokens, threads=self.threads, scored_tokens=TAIL_TOKENS
        )
        self_test(engine)
        if engine.no_injection:
            raise UsageError(f"{self.name} cannot be streamed: {engine.no_injection}; choose another --model")
        worker, reader = Worker(), Worker("reader")

        def close() -> None:
            reader.close()
            worker.close()
            engine.close()

        publisher = EnginePublisher(engine, worker, store, self.rungs)
        return Opened(publisher.make, EngineCounter(engine, reader, store, self.rungs), engine.spec.fingerprint, close)
