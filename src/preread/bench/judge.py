"""What a model's decisions are worth: questions with known answers, asked of an edge in this process.

The questions are those of `fit/facts.py`. Each register is the state of one inquiry. As a control the same ones are
asked about another register, which does not say what is right: who is as good there has not read, but guesses well.
Scales are judged on questions that they were not fitted on: on the registers of one half by what was fitted on the
other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from preread.edge.decisions.decide import decide
from preread.edge.decisions.odds import averaged
from preread.edge.decisions.question import Inquiry, Kind, Option, Question, predicate
from preread.edge.residents import Residents
from preread.fit.calibration import KINDS, UNFITTED, Calibration, Judged, Quality, Scale, fitted, quality, scaled
from preread.fit.facts import Fact, Register

Report = Callable[[str, int, int | None], None]

AS_IT_IS: Final = Scale()


@dataclass(frozen=True, slots=True)
class Asked:
    """One question that was asked.

    Attributes:
        register: number of the one that it is about.
        first: as it was decided in the first order alone; `every`: in all orders together.
    """

    kind: Kind
    register: int
    first: Judged
    every: Judged


async def ask(residents: Residents, registers: Sequence[Register], report: Report, *, shuffled: bool) -> list[Asked]:
    """Ask all questions about their registers; `shuffled`: with the next register as state."""
    found = list[Asked]()
    for number, register in enumerate(registers):
        report("ask", number, len(registers))
        state = registers[(number + shuffled) % len(registers)].text
        questions = tuple(question(fact) for fact in register.facts)
        decided = await decide(Inquiry(state, None, questions), residents, UNFITTED)
        for fact, rows in zip(register.facts, decided.rows, strict=True):
            first, every = Judged(averaged(rows[:1]), fact.right), Judged(averaged(rows), fact.right)
            found.append(Asked(fact.kind, number, first, every))
    report("ask", len(registers), len(registers))
    return found


def question(fact: Fact) -> Question:
    """A fact as it is asked; the value of an option is its number."""
    if fact.kind == "predicate":
        return predicate(None, fact.text)
    return Question(fact.kind, None, fact.text, tuple(Option(n, text) for n, text in enumerate(fact.options)))


def fit(asked: Iterable[Asked]) -> dict[Kind, Scale]:
    """The scale of each kind of question."""
    by_kind: dict[Kind, list[Judged]] = {kind: [] for kind in KINDS}
    for one in asked:
        by_kind[one.kind].append(one.every)
    return {kind: fitted(judged, biased=kind == "predicate") for kind, judged in by_kind.items() if judged}


def calibration(asked: Sequence[Asked]) -> Calibration:
    """What an edge is given, fitted on all questions."""
    return Calibration(fit(asked), len(asked))


def held_out(asked: Sequence[Asked], kind: Kind | None = None) -> Quality:
    """What scales make of questions that they were not fitted on; of one kind, or of all."""
    halves = [fit(one for one in asked if one.register % 2 != half) for half in (0, 1)]
    chosen = [one for one in asked if kind in (None, one.kind)]
    chances = [scaled(one.every.logs, halves[one.register % 2].get(one.kind, AS_IT_IS)) for one in chosen]
    return quality([one.every for one in chosen], chances)


def unscaled(asked: Sequence[Asked], kind: Kind | None = None, *, first: bool = False) -> Quality:
    """What the model's own probabilities are worth; `first`: with the options in one order alone."""
    judged = [one.first if first else one.every for one in asked if kind in (None, one.kind)]
    return quality(judged, [scaled(one.logs, AS_IT_IS) for one in judged])
