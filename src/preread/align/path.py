"""Which layer of a large model each layer of a small one is matched with: none earlier than for the layer before."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from preread.values import Span


def monotone(similarity: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """The non-decreasing map from small layers to large ones with the greatest sum of similarities.

    Dynamic programming over (small layer, large layer), as in dynamic time warping (Sakoe and Chiba, 1978), but every
    small layer has exactly one partner. Of equally good maps the one with earlier partners is taken, so that the same
    matrix gives the same map.

    Args:
        similarity: (small layers, large layers), at least one of each.

    Returns:
        For each small layer the index of a large one.
    """
    rows, columns = similarity.shape
    best = np.empty((rows, columns))
    best[0] = similarity[0]
    for row in range(1, rows):
        best[row] = similarity[row] + np.maximum.accumulate(best[row - 1])
    found, limit = [], columns
    for row in reversed(range(rows)):
        at = int(np.argmax(best[row, :limit]))
        found.append(at)
        limit = at + 1
    return tuple(reversed(found))


def window(path: Sequence[int], layer: int, width: int, layers: int) -> Span:
    """Large layers around the partner of a small layer: `width` of them, or all where there are fewer.

    At either end of the model the window is moved inwards rather than cut, so that every layer is told as much.
    """
    width = min(width, layers)
    start = min(max(path[layer] - width // 2, 0), layers - width)
    return Span(start, start + width)
