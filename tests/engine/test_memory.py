"""What a model keeps, told from its header, against what llama.cpp allocates for it."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import pytest

from preread.engine import gguf, model
from preread.engine.ggml import Tensor
from preread.engine.gguf import Header
from preread.engine.memory import Memory, verdict
from preread.testing.families import FAMILIES, write_family

CACHE = re.compile(rb"cache_([kvrs])_l(\d+)$")
CELLS, BATCH_TOKENS = 512, 64
"""More cells than a window of 32 and a batch take, so that caches of windowed layers are seen to be smaller."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("families") / f"{request.param}.gguf"
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    yield write_family(path, request.param)
    path.unlink()


def header_of(path: Path) -> Header:
    with path.open("rb") as file:
        return gguf.parse(file.read(gguf.MAX_HEADER_BYTES))


@contextmanager
def allocated(path: Path) -> Iterator[dict[tuple[str, int], tuple[int, int]]]:
    """Width and rows of each cache tensor that a decode of one token looks at, by half and layer."""
    found: dict[tuple[str, int], tuple[int, int]] = {}

    def see(address: int, ask: bool, _: object) -> bool:
        node = Tensor.from_address(address)
        sources = [source for source in (*node.src, node.view_src) if source]
        for source in (*sources, *(Tensor.from_address(source).view_src for source in sources)):
            tensor = Tensor.from_address(source) if source else None
            if tensor is not None and (match := CACHE.match(tensor.name)):
                found[match[1].decode(), int(match[2])] = (tensor.ne[0], tensor.ne[1])
        return False

    loaded = model.load(path, trusted=True)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.swa_full = (
        CELLS,
        BATCH_TOKENS,
        BATCH_TOKENS,
        0,
    )
    parameters.flash_attn_type = 1
    parameters.cb_eval = llama_cpp.ggml_backend_sched_eval_callback(see)
    context = llama_cpp.llama_init_from_model(loaded.model, parameters)
    batch = llama_cpp.llama_batch_get_one((ctypes.c_int32 * 1)(1), 1)
    try:
        assert context is not None and llama_cpp.llama_decode(context, batch) == 0
        yield found
    finally:
        llama_cpp.llama_free(context)
        loaded.close()


def test_the_header_tells_what_llama_cpp_allocates(family: Path) -> None:
    found = verdict(header_of(family))
    assert found.memory is not None
    with allocated(family) as tensors:
        assert widths(found.memory) == {place: width for place, (width, _) in tensors.items()}
        cells = {layer: rows for (half, layer), (_, rows) in tensors.items() if half == "k"}
    full = {layer for layer, rows in cells.items() if rows == max(cells.values())}
    assert full >= {layer for layer, window in windows(found.memory).items() if window is None}
    if any(windows(found.memory).values()):
        assert full == {layer for layer, window in windows(found.memory).items() if window is None}


def test_the_header_says_what_the_loaded_model_says(family: Path) -> None:
    found = verdict(header_of(family))
    loaded = model.load(family, trusted=True)
    try:
        said = model.spec(loaded, family, "tiny", 0)
    finally:
        loaded.close()
    assert found.why == (said.no_injection or "")
    assert found.way == ("computed" if said.no_injection else "streams")
    if said.no_injection is None:
        assert said.layers == found.memory.layers
        assert said.state_bytes == found.memory.state_bytes


def widths(memory: Memory) -> dict[tuple[str, int], int]:
    """Values in a row of each tensor that has any."""
    told = {}
    for number, layer in enumerate(memory.layers):
        if rows := layer.rows:
            told |= {("k", number): rows.kv_heads * rows.k_dim, ("v", number): rows.kv_heads * rows.v_dim}
        if state := layer.state:
            told |= {("r", number): state.r_values, ("s", number): state.s_values}
    return {place: width for place, width in told.items() if width}


def windows(memory: Memory) -> dict[int, int | None]:
    return {number: layer.window_tokens for number, layer in enumerate(memory.layers) if layer.rows is not None}
