"""llama-cpp-python's own generation loop, as its users run it: what decoding is measured against."""

import time
from pathlib import Path

from llama_cpp import Llama


class PlainLoop:
    """A model opened by `llama_cpp.Llama`, with the settings that `LlamaCpp` uses."""

    def __init__(self, path: Path, window_tokens: int, threads: int) -> None:
        self._llama = Llama(
            str(path),
            n_ctx=window_tokens,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )

    def decode_tokens_s(self, prompt: list[int], count: int) -> float:
        """Rate of greedy decoding after the first token, over `count` further tokens."""
        steps = self._llama.generate(prompt, temp=0.0, reset=True)
        next(steps)
        started = time.perf_counter()
        for _ in range(count):
            next(steps)
        return count / (time.perf_counter() - started)

    def close(self) -> None:
        """Free the model."""
        self._llama.close()
