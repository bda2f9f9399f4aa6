"""Which layers are coded together, and what their errors count: arithmetic on windows."""

import numpy as np
import pytest

from preread.codec.groups import layer_groups
from preread.errors import EngineError
from preread.fit.codec import USUAL_TOKENS, profile_groups, usual_costs
from preread.values import Geometry, Span

GEMMA3 = ((512,) * 5 + (None,)) * 3


def test_layers_with_a_short_window_are_apart_from_those_that_see_everything() -> None:
    groups = profile_groups(GEMMA3, Geometry(18, 1, 256))
    assert [len(group) for group in groups] == [3, 2, 1] * 3 and groups[-1] == Span(17, 18)
    assert all(len({GEMMA3[layer] for layer in range(group.start, group.stop)}) == 1 for group in groups)


def test_layers_without_a_window_or_with_a_long_one_are_coded_with_their_neighbours() -> None:
    for windows in ((None,) * 24, (4096, None) * 12):
        assert profile_groups(windows, Geometry(24, 2, 64)) == layer_groups(24, 4)


def test_an_error_counts_by_how_few_rows_its_layer_has() -> None:
    assert usual_costs((None,) * 4).tolist() == [1.0] * 4
    costs = usual_costs((512, None, 128, 8192, 1))
    np.testing.assert_allclose(costs, [USUAL_TOKENS / 511, 1, USUAL_TOKENS / 127, 1, USUAL_TOKENS])


@pytest.mark.parametrize(("shape", "count"), [((24, 2, 64), 4), ((30, 3, 64), 4), ((16, 8, 64), 3), ((28, 4, 128), 2)])
def test_groups_are_as_large_as_what_can_be_published(shape: tuple[int, int, int], count: int) -> None:
    """Qwen2.5-0.5B and SmolLM2 as ever; Llama-3.2-1B in groups of four took more than an edge takes, after minutes."""
    assert profile_groups((None,) * shape[0], Geometry(*shape)) == layer_groups(shape[0], count)


def test_a_model_whose_rows_are_too_wide_is_refused_before_anything_is_read() -> None:
    with pytest.raises(EngineError, match="larger than an edge takes"):
        profile_groups((None,) * 32, Geometry(32, 32, 128))
