"""What was learnt is as strong as documents that nothing was learnt from like best."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="learning needs PyTorch: pip install 'preread[cloud]'")
pytest.importorskip("transformers", reason="learning needs transformers: pip install 'preread[cloud]'")

import torch

from preread.fit.school import best, nats


class Liking:
    """Loses nothing at one strength, and sees which document's reading it is given."""

    def __init__(self, liked: float) -> None:
        self.liked = liked

    def losses(self, reading: Any, read: Any, strength: float) -> list[np.ndarray]:
        assert len(read) == len(reading.read)
        return [
            np.full(count, (strength - self.liked) ** 2 + float(its[0]))
            for count, its in zip((9, 1), read, strict=False)
        ]


def readings() -> Any:
    numbers = iter(range(3))
    return [SimpleNamespace(read=tuple(torch.full((4,), float(next(numbers))) for _ in range(n))) for n in (2, 1)]


@pytest.mark.parametrize(
    ("liked", "found"), [(-1, 0.0), (0.1, 0.0), (0.3, 0.25), (0.8, 0.75), (1, 1.0), (1.2, 1.25), (9, 1.6)]
)
@pytest.mark.parametrize("control", [False, True])
def test_the_strength_that_is_liked_best_is_found(liked: float, found: float, control: bool) -> None:
    assert best(Liking(liked), readings(), control) == found


def test_documents_count_alike_and_a_control_reads_the_one_before() -> None:
    some = readings()
    assert nats(Liking(1), some, control=False) == pytest.approx(np.mean([0, 1, 2]))
    assert nats(Liking(1), some[:1], control=False) == pytest.approx(0.5)
    assert nats(Liking(1), [some[1], some[0]], control=True) == pytest.approx(np.mean([1, 2, 0]))
    assert nats(Liking(0), some, control=False, strength=2) == pytest.approx(4 + 1)
