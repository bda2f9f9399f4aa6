"""A model's file in llama.cpp's memory: its vocabulary, its templates, and what its header says."""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from preread.engine import trial
from preread.engine.chat import ChatTemplate
from preread.engine.grammar import Words
from preread.engine.infill import FimTokens
from preread.engine.marks import Controls
from preread.errors import EngineError, UsageError

_UNKNOWN, _CONTROL = 1 << 0, 1 << 3  # LLAMA_TOKEN_ATTR_…
_log = logging.getLogger("preread.llama.cpp")


class Loaded:
    """The model and its vocabulary; owns the native memory."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        # A token's bytes never change, and the same few thousand tokens make up most answers.
        self.piece = lru_cache(maxsize=16_384)(self._piece)

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 128
        while True:
            buffer = ctypes.create_string_buffer(size)
            written = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if written >= 0:
                return buffer.raw[:written]
            size = -written

    def tokenize(self, text: str, *, special: bool = True, start: bool = False) -> npt.NDArray[np.int32]:
        """Token ids of a text. `special`: read control tokens in it as such; `start`: add BOS if the model wants it."""
        data = text.encode()
        size = len(data) + 8
        out = np.empty(size, np.int32)
        ids = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, size, start, special)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenise a text of {len(data)} bytes")
        return out[:count].copy()

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's metadata as text."""
        buffer = ctypes.create_string_buffer(1024)
        length = llama_cpp.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else None

    def chat_template(self, tokenize: Callable[[str], npt.NDArray[np.int32]]) -> ChatTemplate | None:
        """The chat template with what it needs, or None.

        Raises:
            UsageError: it is no text, or too long to be a template.
        """
        source = llama_cpp.llama_model_chat_template(self.model, None)
        if not source:
            return None

        def special_text(token: int) -> str:
            return self.piece(token, special=True).decode(errors="replace") if token >= 0 else ""

        def boundary(text: str) -> int:
            tail: list[bytes] = []
            for token in reversed(tokenize(text)):
                if llama_cpp.llama_vocab_get_attr(self.vocab, int(token)) & _CONTROL:
                    return len(text) - len(b"".join(reversed(tail)).decode(errors="replace"))
                tail.append(self.piece(int(token), special=True))
            return 0

        bos, eos = llama_cpp.llama_vocab_bos(self.vocab), llama_cpp.llama_vocab_eos(self.vocab)
        try:
            text = source.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"the model's chat template cannot be read: it is not UTF-8 ({error})") from error
        return ChatTemplate(text, special_text(bos), special_text(eos), self._controls(), boundary)

    def fim(self) -> FimTokens | None:
        """The tokens for filling in the middle; None: the model lacks one."""
        prefix, suffix, middle, repository, file = (
            int(find(self.vocab))
            for find in (
                llama_cpp.llama_vocab_fim_pre,
                llama_cpp.llama_vocab_fim_suf,
                llama_cpp.llama_vocab_fim_mid,
                llama_cpp.llama_vocab_fim_rep,
                llama_cpp.llama_vocab_fim_sep,
            )
        )
        if min(prefix, suffix, middle) < 0:
            return None
        return FimTokens(prefix, suffix, middle, None if repository < 0 else repository, None if file < 0 else file)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Ids of the tokens that end an answer."""
        count = llama_cpp.llama_vocab_n_tokens(self.vocab)
        return np.array([id for id in range(count) if llama_cpp.llama_vocab_is_eog(self.vocab, id)], np.int64)

    def control(self, text: str) -> int | None:
        """The id of the control token that a text is, if it is one."""
        ids = self.tokenize(text)
        alone = len(ids) == 1 and llama_cpp.llama_vocab_get_attr(self.vocab, int(ids[0])) & _CONTROL
        return int(ids[0]) if alone else None

    def texts(self) -> list[str]:
        """What the vocabulary calls each token."""
        count = llama_cpp.llama_vocab_n_tokens(self.vocab)
        return [llama_cpp.llama_vocab_get_text(self.vocab, id).decode(errors="replace") for id in range(count)]

    def words(self) -> Words:
        """What all tokens stand for; takes a second where there are many."""
        vocab, count = self.vocab, llama_cpp.llama_vocab_n_tokens(self.vocab)
        attributes = [llama_cpp.llama_vocab_get_attr(vocab, id) for id in range(count)]
        return Words(
            pieces=[self._piece(id, special=True) for id in range(count)],
            special=[id for id in range(count) if attributes[id] & (_CONTROL | _UNKNOWN)],
            ends=self.ends.tolist() or [max(0, llama_cpp.llama_vocab_eos(vocab))],
            tokenize=lambda text: self.tokenize(text, special=False).tolist(),
        )

    def _controls(self) -> Controls:
        """Tokens that llama.cpp reads in a text only where it is told to."""
        vocab, count = self.vocab, llama_cpp.llama_vocab_n_tokens(self.vocab)
        ids = [id for id in range(count) if llama_cpp.llama_vocab_get_attr(vocab, id) & (_CONTROL | _UNKNOWN)]
        return Controls(llama_cpp.llama_vocab_get_text(vocab, id).decode(errors="replace") for id in ids)

    def close(self) -> None:
        """Free the model."""
        llama_cpp.llama_model_free(self.model)


def load(path: Path, *, trusted: bool = False, mapped: bool = False) -> Loaded:
    """Load a GGUF file into memory; unless `trusted`, in another process first, see `trial.py`.

    `mapped`: only its pages are mapped, which all processes share that read the same file; weights are not copied into
    the form that is computed with fastest.

    Raises:
        UsageError: there is no such file, llama.cpp cannot load it, or it ends its process.
    """
    if not path.is_file():
        raise UsageError(f"there is no model file {path}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is not a GGUF file")
    if not trusted:
        trial.check(path)
    _quiet()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # or whatever is called gdb in PATH is run when llama.cpp aborts
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = not mapped
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise UsageError(
            f"llama.cpp cannot load {path}: the file is damaged, or of an architecture that it does not know"
        )
    return Loaded(model)


def _to_log(level: int, text: bytes, _: object) -> None:
    if level >= 3:  # GGML_LOG_LEVEL_WARN; below it llama.cpp tells its whole life
        _log.debug("%s", text.decode(errors="replace").rstrip())


# llama.cpp keeps the pointer for as long as the process lives.
_CALLBACK = llama_cpp.llama_log_callback(_to_log)


def _quiet() -> None:
    llama_cpp.llama_log_set(_CALLBACK, None)
