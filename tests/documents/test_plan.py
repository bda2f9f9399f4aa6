"""What happens to which context."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from preread.documents.plan import Document, plan

NAME = st.sampled_from(["d.a", "d.b", "d.c", "d.c.1", "d.c.2", "other"])
DOCUMENT = st.builds(
    Document,
    name=NAME,
    shown=st.sampled_from(["one.md", "two.md", "three.md", "four.md"]),
    tokens=st.none() | st.integers(1, 20),
    most_tokens=st.just(10),
    whole=st.booleans(),
    current=st.booleans(),
    failure=st.none() | st.just("it is damaged"),
)
GOOD = Document("d.a", "a.md", 5, 10)


def actions(*documents: Document, published: tuple[str, ...] = (), again: bool = False) -> list[str]:
    return [step.action for step in plan(documents, published, again=again)]


def test_what_is_new_is_published_what_changed_is_replaced_what_is_there_is_left() -> None:
    assert actions(GOOD) == ["publish"]
    assert actions(GOOD, published=("d.a",)) == ["replace"]
    current = replace(GOOD, current=True)
    assert actions(current, published=("d.a",)) == ["leave"]
    assert actions(current, published=("d.a",), again=True) == ["replace"]
    assert actions(replace(GOOD, tokens=None), published=("d.a",)) == ["replace"]  # nobody could tell


def test_what_does_not_fit_is_refused_and_by_how_much_is_said() -> None:
    (step,) = plan([replace(GOOD, tokens=1234, most_tokens=1000)], ())
    assert step.action == "refuse" and step.why == "does not fit: 1,234 tokens, 234 more than 1,000"
    (step,) = plan([replace(GOOD, tokens=1234, most_tokens=1000, whole=False)], ())
    assert "at least 1,234" in step.why
    assert actions(replace(GOOD, tokens=10)) == ["publish"]


def test_two_documents_of_one_name_are_both_refused_and_each_names_the_other() -> None:
    one, two = plan([GOOD, replace(GOOD, shown="a.pdf")], ("d.a",))
    assert (one.action, two.action) == ("refuse", "refuse")
    assert one.why.startswith("a.pdf too would be called 'd.a'") and two.why.startswith("a.md too")
    (step,) = plan([GOOD], (), held=["d.a"])
    assert step.action == "refuse"


def test_names_that_look_alike_are_refused_with_what_is_wrong() -> None:
    (step,) = plan([replace(GOOD, name="m\u0430nual")], ())
    assert step.action == "refuse" and "look alike" in step.why


def test_only_contexts_below_the_prefix_that_nobody_has_are_removed() -> None:
    published = ("d.a", "d.gone", "d.c", "d.c.1", "d.c.2", "d.c.x", "other")
    steps = plan([GOOD, Document("d.c", "c.pdf", failure="it is damaged")], published, removed_below="d.")
    assert [step.name for step in steps if step.action == "remove"] == ["d.c.x", "d.gone"]
    assert not [step for step in plan([GOOD], published) if step.action == "remove"]
    kept = plan([GOOD], published, removed_below="d.", held=["d.gone"])
    assert "d.gone" not in [step.name for step in kept if step.action == "remove"]


@given(st.lists(DOCUMENT, max_size=6), st.sets(NAME), st.booleans(), st.sampled_from(["", "d."]), st.sets(NAME))
def test_every_document_has_one_step_and_no_name_is_changed_twice(
    documents: list[Document], published: set[str], again: bool, below: str, held: set[str]
) -> None:
    steps = plan(documents, published, again=again, removed_below=below, held=held)
    assert [step.document for step in steps[: len(documents)]] == documents
    changed = [step.name for step in steps if step.action in ("publish", "replace", "remove", "leave")]
    assert len(set(changed)) == len(changed)
    for step in steps:
        if step.action == "remove":
            assert below and step.name.startswith(below) and step.name in published - held
            assert step.name not in {document.name for document in documents}
        elif step.action != "refuse":
            assert step.document is not None and step.document.failure is None and not step.why
            assert step.document.tokens is None or step.document.tokens <= step.document.most_tokens
            assert (step.action == "publish") == (step.name not in published) or step.action == "leave"
        else:
            assert step.why
