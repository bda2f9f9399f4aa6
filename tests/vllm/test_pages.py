"""The layout of pages is learnt from whoever writes them, whatever it is, and refused where values do not come back."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pages are PyTorch's: pip install 'preread[cloud]'")

from preread.errors import EngineError  # noqa: E402
from preread.vllm import pages  # noqa: E402

PAGES, TOKENS, HEADS, DIM = 5, 8, 2, 4


class Backend:
    """An attention backend that keeps each page's values in an order of its own."""

    def __init__(self, seed: int, dtype: "torch.dtype") -> None:
        self.order = torch.from_numpy(np.random.default_rng(seed).permutation(TOKENS * HEADS * 2 * DIM))
        self.pages = torch.zeros(PAGES, HEADS, TOKENS, 2 * DIM, dtype=dtype)

    def write(self, k: "torch.Tensor", v: "torch.Tensor", into: "torch.Tensor", slots: "torch.Tensor") -> None:
        flat = into.view(len(into), -1)
        rows = torch.stack([k, v], dim=2).reshape(len(k), -1)
        places = self.order.reshape(TOKENS, -1)
        for row, slot in zip(rows, slots.tolist(), strict=True):
            flat[slot // TOKENS, places[slot % TOKENS]] = row


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_come_back_from_pages_of_any_order(seed: int, dtype: str) -> None:
    backend = Backend(seed, getattr(torch, dtype))
    layout = pages.learnt(backend.write, backend.pages, TOKENS, HEADS, DIM)
    assert not backend.pages.any(), "the layer's own pages stay as they are"
    random = np.random.default_rng(seed)
    k, v = (random.integers(-100, 100, (11, HEADS, DIM)).astype(np.float16) for _ in range(2))
    slots = torch.from_numpy(random.permutation(PAGES * TOKENS)[:11])
    pages.write_rows(backend.write, backend.pages, slots, k, v)
    read_k, read_v = layout.read(backend.pages, slots)
    assert np.array_equal(read_k, k) and np.array_equal(read_v, v)


@pytest.mark.parametrize("what", ["compressed", "lost", "elsewhere"])
def test_pages_in_which_values_are_not_found_are_refused(what: str) -> None:
    backend = Backend(0, torch.float32)

    def write(k: "torch.Tensor", v: "torch.Tensor", into: "torch.Tensor", slots: "torch.Tensor") -> None:
        if what == "compressed":
            backend.write(k / 3, v / 3, into, slots)
        elif what == "lost":
            backend.write(k, torch.ones_like(v), into, slots)
        else:
            backend.write(k, v, into, slots - TOKENS)

    with pytest.raises(EngineError, match="choose another"):
        pages.learnt(write, backend.pages, TOKENS, HEADS, DIM)
