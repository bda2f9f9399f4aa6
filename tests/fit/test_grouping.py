"""Which layers are coded together, and what their errors count: arithmetic on windows."""

import numpy as np

from preread.codec.groups import layer_groups
from preread.fit.codec import USUAL_TOKENS, groups_of, usual_costs
from preread.values import Span

GEMMA3 = ((512,) * 5 + (None,)) * 3


def test_layers_with_a_short_window_are_apart_from_those_that_see_everything() -> None:
    groups = groups_of(GEMMA3)
    assert groups == (Span(0, 5), Span(5, 6), Span(6, 11), Span(11, 12), Span(12, 17), Span(17, 18))
    assert all(len({GEMMA3[layer] for layer in range(group.start, group.stop)}) == 1 for group in groups)


def test_layers_without_a_window_or_with_a_long_one_are_coded_with_their_neighbours() -> None:
    for windows in ((None,) * 24, (4096, None) * 12):
        assert groups_of(windows) == layer_groups(24, 4)


def test_an_error_counts_by_how_few_rows_its_layer_has() -> None:
    assert usual_costs((None,) * 4).tolist() == [1.0] * 4
    costs = usual_costs((512, None, 128, 8192, 1))
    np.testing.assert_allclose(costs, [USUAL_TOKENS / 511, 1, USUAL_TOKENS / 127, 1, USUAL_TOKENS])
