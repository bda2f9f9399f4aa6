"""In which order cells should come, where it is known what is computed here. Pure.

Links bring cells from the end of a context backwards, as the machine computes from its start, and wherever they meet is
right. Only the last wave, nearest to the meeting point, comes layer by layer: what will arrive while the prompt is
computed, since that can go through the layers that are there.
"""

from collections.abc import Sequence
from typing import Final

from preread.plan.events import Cell
from preread.plan.outlook import Outlook

_WAVE: Final = 1.5
"""The last wave is larger than what should arrive during the prompt: a link may be faster than it seems."""


def order(outlook: Outlook, todo: Sequence[int], count: int, groups: int) -> list[Cell]:
    """All cells of some chunks, those first that should come first.

    Args:
        outlook: what may be expected now.
        todo: chunks of which something has to come.
        count: so many of them are to be computed, from the first on; what is computed is fetched last.
        groups: or, of all that is left, so many groups of layers.
    """
    grid, computed, wave, tail = outlook.grid, todo[:count], list[int](), [*todo[count:]]
    wave_bytes = _WAVE * outlook.prompt_s * outlook.coming.bytes_s
    while tail and wave_bytes > 0:
        wave_bytes -= grid.away_bytes[tail[0]]
        wave.append(tail.pop(0))
    upwards = -1 if count or groups else 1  # first layers may come to be computed, or are what the answer begins with
    cells = [cell for chunk in reversed(tail) for cell in [*grid.cells(chunk)][::upwards]]
    cells += [(chunk, group) for group in range(grid.groups) for chunk in reversed(wave)]
    cells += [cell for chunk in reversed(computed) for cell in grid.cells(chunk)]
    return sorted(cells, key=lambda cell: cell[1] < groups)  # stable
