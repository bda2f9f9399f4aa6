"""Rows of K and V in the pages of vLLM's cache, whatever order an attention backend keeps them in.

Where a value lies within a page is learnt once, from a scratch page that the backend's own code has written: some pack
keys for the processor's matrix units. Writing is left to that code.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from preread.errors import EngineError

Single = npt.NDArray[np.float32]

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Writes rows of K and V (tokens, kv_heads, head_dim) into pages, at slots: page × tokens of a page + place in it."""

_DIGIT: Final = 128
"""Numbers below it, and it, are exact in every 16-bit float, and nothing is 0."""


class Layout:
    """Where K and V of a page's tokens lie: `places` (tokens of a page, kv_heads, 2, head_dim) are indices into it."""

    def __init__(self, places: torch.Tensor) -> None:
        self._places, self.page_tokens = places, places.shape[0]

    def read(self, pages: torch.Tensor, slots: torch.Tensor) -> tuple[Single, Single]:
        """Rows of K and V (tokens, kv_heads, head_dim) at slots of a layer's pages."""
        numbers, at = torch.unique(slots // self.page_tokens, return_inverse=True)
        flat = pages[numbers.to(pages.device)].reshape(len(numbers), -1).cpu()
        where = self._places[slots % self.page_tokens]
        rows = flat[at.view(-1, 1, 1, 1), where].float().numpy()
        return rows[:, :, 0], rows[:, :, 1]


def learnt(write: Write, pages: torch.Tensor, page_tokens: int, kv_heads: int, head_dim: int) -> Layout:
    """The layout of a layer's pages.

    Args:
        write: the attention backend's own code.
        pages: the layer's, (pages, …), which stay as they are.
        page_tokens, kv_heads, head_dim: of a page.

    Raises:
        EngineError: not every value that is written is found in the page: it is compressed, or lies elsewhere.
    """
    count = page_tokens * kv_heads * 2 * head_dim
    codes = torch.arange(count).reshape(page_tokens, kv_heads, 2, head_dim)
    slots = torch.arange(page_tokens, 2 * page_tokens, device=pages.device)  # of the second of two pages
    found = torch.zeros(pages[0].numel(), dtype=torch.int64)
    unit = 1
    while unit < count:
        digits = (codes // unit % _DIGIT + 1).to(pages.dtype).to(pages.device)
        scratch = torch.zeros_like(pages[:2])
        write(digits[:, :, 0].contiguous(), digits[:, :, 1].contiguous(), scratch, slots)
        read = scratch[1].reshape(-1).float().cpu()
        if not bool(((read == read.round()) & (read >= 1) & (read <= _DIGIT)).all()):
            raise EngineError(
                "this attention backend does not keep KV value by value: choose another, or another dtype"
            )
        found += (read.to(torch.int64) - 1) * unit
        unit *= _DIGIT
    order = torch.argsort(found)
    if len(order) != count or not torch.equal(found[order], torch.arange(count)):
        raise EngineError(
            "this attention backend does not keep each value of KV once: choose another, or another dtype"
        )
    return Layout(order.reshape(page_tokens, kv_heads, 2, head_dim))


def write_rows(
    write: Write, pages: torch.Tensor, slots: torch.Tensor, k: npt.NDArray[np.float16], v: npt.NDArray[np.float16]
) -> None:
    """Write rows of K and V (tokens, kv_heads, head_dim) at slots of a layer's pages."""
    keys, values = (torch.from_numpy(rows).to(pages.device, pages.dtype) for rows in (k, v))
    write(keys, values, pages, slots.to(pages.device))
