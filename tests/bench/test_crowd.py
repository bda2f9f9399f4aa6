from hypothesis import given
from hypothesis import strategies as st

from preread.bench import crowd
from preread.bench.crowd import queries
from preread.bench.faults import QUESTIONS, Document, Turn, schedule, standing

SEEDS, CLIENTS = st.integers(0, 10_000), st.integers(1, 20)


def there(seed: int, index: int) -> tuple[Turn, tuple[Document, ...]]:
    """A turn, and all that is published in it."""
    turn = standing(schedule(seed, index + 1, 20, 90), index)
    return turn, turn.publish


@given(SEEDS, st.integers(0, 99), CLIENTS)
def test_each_client_asks_about_what_is_published_in_the_turn(seed: int, index: int, clients: int) -> None:
    turn, published = there(seed, index)
    asked = queries(seed, turn, published, clients)
    assert [query.client for query in asked] == list(range(clients))
    assert (asked[0].document, asked[0].question, asked[0].after_s) == (turn.document, turn.question, 0.0)
    for query in asked[1:]:
        assert query.document in published and 0 <= query.question < QUESTIONS and 0 <= query.after_s <= 0.25


@given(SEEDS, st.integers(0, 99), CLIENTS, CLIENTS)
def test_more_clients_change_nothing_of_what_the_first_ones_ask(seed: int, index: int, some: int, more: int) -> None:
    turn, published = there(seed, index)
    assert queries(seed, turn, reversed(published), some + more)[:some] == queries(seed, turn, published, some)


@given(SEEDS)
def test_clients_turns_and_seeds_ask_differently(seed: int) -> None:
    turns = [there(seed, index) for index in range(2)]
    moments = {query.after_s for turn, published in turns for query in queries(seed, turn, published, 9)[1:]}
    assert len(moments) == 16
    turn, published = turns[0]
    assert moments.isdisjoint(query.after_s for query in queries(seed + 1, turn, published, 9)[1:])


def test_all_documents_and_questions_are_asked_about() -> None:
    turn, published = there(1, 0)
    asked = queries(1, turn, published, 400)
    assert {(query.document, query.question) for query in asked} == {(one, n) for one in published for n in range(4)}


@given(st.integers(1, 20_000), CLIENTS)
def test_turns_have_as_many_requests_as_are_wanted(requests: int, clients: int) -> None:
    turns = crowd.turns(requests, clients)
    sizes = [crowd.size(index, requests, clients) for index in range(turns)]
    assert sum(sizes) == requests and set(sizes[:-1]) <= {clients} and 1 <= sizes[-1] <= clients
