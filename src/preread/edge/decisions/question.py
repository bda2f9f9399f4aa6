"""What decisions are asked for, as values, and the texts that models read for them.

A question is a choice between options that each have a label: a predicate between Yes and No, a choice and a score
between lettered lines. A model prefers some labels and some places whatever stands there, so a question may be asked in
several orders, in which the options take each other's places. Pure.
"""

from dataclasses import dataclass
from typing import Final, Literal

from preread.errors import UsageError

Kind = Literal["predicate", "choice", "score"]

LETTERS: Final = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
YES, NO = "Yes", "No"
MOST_OPTIONS: Final = len(LETTERS)
MOST_QUESTIONS: Final = 400
"""Of one request."""
MOST_PROMPTS: Final = 1024
"""Questions times orders of one request."""

INSTRUCTION: Final = (
    "Answer by what is said above: with Yes or No, or with the letter of the right option. No other word."
)
"""What stands between the state and each question; computed once for all of a request."""


@dataclass(frozen=True, slots=True)
class Option:
    """What may be answered: the `value` that is told when it is, its text, and what it means if that is said."""

    value: str | bool | int
    text: str
    description: str | None = None

    @property
    def line(self) -> str:
        """As the model reads it."""
        return self.text if self.description is None else f"{self.text}: {self.description}"


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        kind: a predicate's two options are true and false, a score's are its levels from the lowest on.
        name: that the client knows it by.
        text: what is asked.
    """

    kind: Kind
    name: str | None
    text: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What one request asks.

    Attributes:
        state: what the questions are about, beside the context; empty: that alone.
        system: the system prompt before it, where there is one.
        context: name of the shared context; None: what is asked may begin with one.
        orders: in how many orders each question is asked at most; None: as many as `orders_of` has it.
        template: further variables for the model's chat template.
    """

    state: str
    system: str | None
    questions: tuple[Question, ...]
    context: str | None = None
    orders: int | None = None
    template: tuple[tuple[str, object], ...] = ()


def predicate(name: str | None, text: str, true: str | None = None, false: str | None = None) -> Question:
    """Is it true? `true` and `false`: what these would mean."""
    return Question("predicate", name, text, (Option(True, YES, true), Option(False, NO, false)))


def labels_of(question: Question) -> tuple[str, ...]:
    """What the model answers with: for a predicate one for each option, else one for each place."""
    return (YES, NO) if question.kind == "predicate" else LETTERS[: len(question.options)]


def orders_of(question: Question, most: int | None = None) -> tuple[tuple[int, ...], ...]:
    """The orders in which a question is asked: of each, which option stands at which place.

    A choice has as many as it has options, each of which stands at each place once (a cyclic Latin square); of these
    `most` that are as far apart as can be. A predicate and a score have two, one the other's reverse, so that each
    option stands in the middle on average.
    """
    count = len(question.options)
    listed = tuple(range(count))
    if question.kind != "choice":
        return (listed, listed[::-1])[: most or 2]
    wanted = min(count, most or count)
    return tuple(listed[shift:] + listed[:shift] for shift in (count * nth // wanted for nth in range(wanted)))


def text_of(question: Question, order: tuple[int, ...]) -> str:
    """A question as the model reads it, its options in this order."""
    options = [question.options[index] for index in order]
    if question.kind == "predicate":
        meanings = [f"{option.line}\n" for option in options if option.description is not None]
        return f"{question.text}\n{''.join(meanings)}{' or '.join(option.text for option in options)}?"
    return "\n".join(
        [question.text, *(f"{label}. {option.line}" for label, option in zip(LETTERS, options, strict=False))]
    )


def labelled(question: Question, order: tuple[int, ...]) -> tuple[str, ...]:
    """The label of each option, in the order of the options, where they stand in this order."""
    if question.kind == "predicate":
        return (YES, NO)
    places = {index: place for place, index in enumerate(order)}
    return tuple(LETTERS[places[index]] for index in range(len(order)))


def prompts_of(inquiry: Inquiry) -> int:
    """How many short sequences an inquiry comes to.

    Raises:
        UsageError: too many for one request.
    """
    count = sum(len(orders_of(question, inquiry.orders)) for question in inquiry.questions)
    if count > MOST_PROMPTS:
        raise UsageError(
            f"{len(inquiry.questions)} questions in all orders of their options are {count} prompts, and one request "
            f"has at most {MOST_PROMPTS}: ask fewer, or say permutations: 1"
        )
    return count
