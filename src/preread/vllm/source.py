"""A checkpoint as that whose KV is measured: read by PyTorch, which computes what vLLM does but for rounding."""

from pathlib import Path

from preread.engine import hf
from preread.engine.llamacpp import Tokens
from preread.errors import UsageError
from preread.values import Family, Fingerprint, KVBlock
from preread.vllm.checkpoint import Checkpoint, identified

_DTYPES = ("bfloat16", "float16", "float32")


class Checkpointed:
    """A `preread.fit.family.Source`.

    Args:
        folder: of the checkpoint.
        gguf: a quantisation of it, against which it is held.
        dtype: in which it computes; None: as it says itself.

    Raises:
        UsageError: it cannot be read, or is another model.
    """

    def __init__(self, folder: Path, gguf: Path, dtype: str | None) -> None:
        checkpoint = Checkpoint(folder)
        kind = dtype or checkpoint.dtype
        if kind not in _DTYPES:
            raise UsageError(f"a checkpoint computes in {', '.join(_DTYPES)}, not in {kind[:32]!r}")
        self._identity = identified(folder, gguf, kind)
        self.embeddings = checkpoint.embeddings
        self._model = hf.load_checkpoint(folder, checkpoint.near, kind)

    @property
    def name(self) -> str:
        return self._identity.name

    @property
    def model(self) -> tuple[Fingerprint, Family | None]:
        return self._identity.fingerprint, self._identity.family

    def read(self, tokens: Tokens, tail: Tokens) -> tuple[KVBlock, float]:
        return self._model.block(tokens), self._model.loss(tokens, tail)
