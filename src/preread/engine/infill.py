"""Filling in the middle: how a model is shown what stands before and behind what it is to write.

The order of the parts is the one that such models are trained on (Bavarian et al., 2022, "PSM"); other files stand
first, as Qwen2.5-Coder was trained (arXiv:2409.12186), or as plain text where a model has no tokens for them. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The control tokens of a model that stand between the parts; `repository`, `file`: where it has them."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """What stands around the text that is wanted, but for the text before it.

    Attributes:
        suffix: the text behind it.
        extra: other files: names and texts.
        begun: how the text itself begins.
    """

    suffix: str
    extra: tuple[tuple[str, str], ...] = ()
    begun: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return (self.suffix, self.begun, *(part for file in self.extra for part in file))


def fim_prompt(before: str, gap: Gap, fim: FimTokens, tokenize: Callable[[str], Tokens]) -> Tokens:
    """The tokens of a prompt that is answered with what is missing between `before` and the gap's suffix."""
    parts: list[int | str] = []
    if gap.extra and fim.repository is not None and fim.file is not None:
        parts += [fim.repository, "myproject\n"]
        for name, text in gap.extra:
            parts += [fim.file, f"{name}\n{text}\n"]
        parts += [fim.file, "filename\n"]
    else:
        parts += [f"{text}\n" for _, text in gap.extra]
    parts += [fim.prefix, before, fim.suffix, gap.suffix, fim.middle, gap.begun]
    return _joined(parts, tokenize)


def _joined(parts: Sequence[int | str], tokenize: Callable[[str], Tokens]) -> Tokens:
    ids = [np.array([part], np.int32) if isinstance(part, int) else tokenize(part) for part in parts if part != ""]
    return np.concatenate(ids)
