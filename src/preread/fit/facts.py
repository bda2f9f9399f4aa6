"""Questions with known answers: registers of parts, drawn from seeds, and what is true of them.

A register says of each part what it is made of, where it is kept, who looks after it and how often it is checked. What
is false, and the options that are wrong, are said in the same register of other parts: who has not read it, or does not
know which part a sentence is about, guesses. Nothing is taken from anywhere.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["predicate", "choice", "score"]

_PARTS: Final = (
    *("filter", "pump", "fan", "valve", "sensor", "display", "battery", "hose", "lid", "motor", "gauge", "bearing"),
    *("clutch", "coil", "lamp", "nozzle", "piston", "relay", "rotor", "seal", "spring", "switch", "tank", "turbine"),
    *("belt", "drum", "fuse", "hinge", "lever", "mirror"),
)
_MATERIALS: Final = ("copper", "steel", "rubber", "glass", "brass", "plastic", "zinc", "titanium", "carbon", "bronze")
_TOWNS: Final = ("Leeds", "York", "Lyon", "Turin", "Ghent", "Porto", "Cork", "Graz", "Bergen", "Tartu")
_PEOPLE: Final = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas")
_OFTEN: Final = ("once a year", "once a month", "once a week", "every day")

OPTIONS: Final = 3
"""Of a choice."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with one right answer: option number `right`. A predicate's options are true and false."""

    kind: Kind
    text: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Register:
    """A document, and questions about it."""

    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    part: str
    material: str
    town: str
    person: str
    often: int

    @property
    def sentence(self) -> str:
        return (
            f"The {self.part} is made of {self.material} and is kept in {self.town}. {self.person} looks after it; "
            f"it is checked {_OFTEN[self.often]}."
        )


_SAID: Final = (
    ("material", "The {part} is made of {value}.", "What is the {part} made of?"),
    ("town", "The {part} is kept in {value}.", "Where is the {part} kept?"),
    ("person", "{value} looks after the {part}.", "Who looks after the {part}?"),
)


def registers(count: int, entries: int = 9, facts: int = 20, seed: int = 0) -> list[Register]:
    """So many registers of so many parts, and questions about each: two fifths predicates, of which half are true, two
    fifths choices, and one fifth scores."""
    source = random.Random(seed)
    return [_register(source, entries, facts) for _ in range(count)]


def _register(source: random.Random, entries: int, facts: int) -> Register:
    drawn = [
        _Entry(part, source.choice(_MATERIALS), source.choice(_TOWNS), source.choice(_PEOPLE), source.randrange(4))
        for part in source.sample(_PARTS, entries)
    ]
    text = "Register of parts.\n" + "\n".join(f"{n}. {entry.sentence}" for n, entry in enumerate(drawn, 1))
    predicates = facts * 2 // 5
    asked = [
        *(_predicate(source, drawn, true=number % 2 == 0) for number in range(predicates)),
        *(_choice(source, drawn) for _ in range(predicates)),
        *(_score(source, drawn) for _ in range(facts - 2 * predicates)),
    ]
    return Register(text, tuple(asked))


def _others(drawn: Sequence[_Entry], field: str, right: str) -> list[str]:
    """What the register says of other parts, in the order of the alphabet."""
    return sorted({getattr(entry, field) for entry in drawn} - {right})


def _predicate(source: random.Random, drawn: Sequence[_Entry], *, true: bool) -> Fact:
    entry, (field, statement, _) = source.choice(drawn), source.choice(_SAID)
    said = getattr(entry, field)
    value = said if true else source.choice(_others(drawn, field, said))
    return Fact("predicate", statement.format(part=entry.part, value=value), ("true", "false"), 0 if true else 1)


def _choice(source: random.Random, drawn: Sequence[_Entry]) -> Fact:
    entry, (field, _, question) = source.choice(drawn), source.choice(_SAID)
    right = getattr(entry, field)
    wrong = _others(drawn, field, right)
    options = [right, *source.sample(wrong, min(OPTIONS - 1, len(wrong)))]
    source.shuffle(options)
    return Fact("choice", question.format(part=entry.part), tuple(options), options.index(right))


def _score(source: random.Random, drawn: Sequence[_Entry]) -> Fact:
    entry = source.choice(drawn)
    return Fact("score", f"How often is the {entry.part} checked?", _OFTEN, entry.often)
