"""Who fetches a segment for all: everybody says the same, and it changes little when somebody comes or goes."""

from hypothesis import given
from hypothesis import strategies as st

from preread.plan.owner import ranked
from preread.wire.digest import object_id

EDGES = st.lists(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=1, max_size=8, unique=True)
IDS = [object_id(number.to_bytes(2, "big")) for number in range(400)]


@given(EDGES, st.randoms())
def test_order_in_which_they_are_known_does_not_matter(edges: list[str], random: object) -> None:
    shuffled = sorted(edges, key=lambda edge: random.random())  # type: ignore[attr-defined]
    for id in IDS[:20]:
        assert ranked(id, edges) == ranked(id, shuffled + shuffled)
        assert sorted(ranked(id, edges)) == sorted(edges)


@given(EDGES, st.data())
def test_who_leaves_is_followed_by_the_next_and_nothing_else_changes(edges: list[str], data: st.DataObject) -> None:
    leaving = data.draw(st.sampled_from(edges))
    for id in IDS[:20]:
        assert ranked(id, set(edges) - {leaving}) == [edge for edge in ranked(id, edges) if edge != leaving]


def test_shares_are_about_equal() -> None:
    owned = [ranked(id, "abcd")[0] for id in IDS]
    assert all(70 < owned.count(edge) < 130 for edge in "abcd")
