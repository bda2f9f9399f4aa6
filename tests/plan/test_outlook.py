"""What may be expected: the cheap bounds hold of what is found by looking at every choice."""

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.cost import Coming
from preread.plan.grid import Grid
from preread.plan.outlook import Outlook, Spent

GROUPS = 3


@st.composite
def outlooks(draw: st.DrawFn) -> Outlook:
    """Of a machine that computes nothing, with some of a context's cells in place and others on their way."""
    chunks = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.tuples(*[st.integers(0, 9)] * GROUPS), min_size=chunks, max_size=chunks))
    in_order = draw(st.booleans())
    grid = Grid(sizes, in_order=in_order)
    for chunk in range(draw(st.integers(0, chunks))):
        grid.compute(chunk, draw(st.sampled_from([1, 2, GROUPS])))
    for cell in sorted(grid.away):
        what = draw(st.sampled_from(["away", "here", "placed", "spoilt"]))
        if what == "spoilt":
            grid.spoil(cell)
        elif what != "away":
            grid.arrived(cell)
            if what == "placed":
                grid.inject(cell)
                grid.placed(cell)
    seconds = st.floats(0.001, 10)
    shares = draw(st.sampled_from([(), (0.2, 0.5, 1.0), (float("inf"), 0.5, 1.0)]))
    return Outlook(
        left=grid.left(),
        grid=grid,
        spent=Spent(range(0), GROUPS),
        busy_s=0.0,
        prompt_s=draw(seconds),
        coming=Coming(draw(st.sampled_from([0.0, 1.0, 10.0])), draw(seconds), 0, draw(st.floats(1, 100)), 3.0),
        asked_bytes=[0] * GROUPS,
        chunk_s=draw(st.lists(seconds, min_size=chunks, max_size=chunks)),
        shares=shares,
        breaks=draw(st.lists(st.booleans(), min_size=chunks, max_size=chunks)),
        in_order=in_order,
    )


@given(outlooks())
def test_nothing_that_is_computed_is_sooner_than_the_least(of: Outlook) -> None:
    slack = 1 + 1e-9
    assert all(finish_s * slack >= of.least_s for finish_s in of.chunks[1:])
    computed = (finish_s for finish_s, whole_s in zip(of.layers, of._through_s, strict=False) if whole_s)
    assert all(finish_s * slack >= of.least_s for finish_s in computed)


@given(outlooks())
def test_waiting_and_computing_all_are_the_ends_of_what_can_be_chosen(of: Outlook) -> None:
    assert of.chunks[0] == of.wait_s and of.all_s <= of.chunks[-1] * (1 + 1e-9)
    assert of.of([*of.left]) is of and of.of(of.left[1:]).left == of.left[1:]
