"""How requests of a chaos run went: what came back for each, what is to be said about it, and what all add up to. Pure.

A request is late when it takes more than 1.5 × what computing all requests of its turn one after another takes here,
and 0.5 s: it may have to wait for all the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from preread.bench.crowd import Query
from preread.bench.faults import Turn
from preread.bench.reference import Right

Verdict = Literal["ok", "wrong", "error", "late"]


@dataclass(frozen=True, slots=True)
class Said:
    """What came back for a request.

    Attributes:
        version: of its document, that was published when it was asked.
        seconds: that it took, while the edge was not stopped.
        text: of the answer; None: there is none, and `failure` says why.
        tokens: texts of the answer's tokens.
        prompt_tokens, timings: as the edge says.
        tries: it was asked so often.
    """

    version: int
    seconds: float
    text: str | None = None
    tokens: tuple[str, ...] = ()
    prompt_tokens: int = 0
    timings: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went.

    Attributes:
        index: of its turn.
        client: who asked.
        local_s: what computing all answers of its turn one after another takes here.
        stale: it was answered about a text that was no longer published when it was asked.
        forked: it is right, but another answer than the reference's, from a token on that rounding decided.
    """

    index: int
    client: int
    fault: str
    verdict: Verdict
    seconds: float
    local_s: float
    way: str = ""
    reason: str = ""
    stale: bool = False
    tries: int = 1
    forked: bool = False


@dataclass(slots=True)
class Tally:
    """What a run has counted."""

    outcomes: Counter[Verdict] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    forked: int = 0
    retried: int = 0
    forgotten: int = 0

    def take(self, outcome: Outcome) -> None:
        """Count one."""
        self.outcomes[outcome.verdict] += 1
        self.ways[outcome.way or "none"] += 1
        self.stale += outcome.stale
        self.forked += outcome.forked
        self.retried += outcome.tries > 1

    def summary(self) -> dict[str, object]:
        """The bench's last line."""
        requests = self.outcomes.total()
        return {
            "bench": "chaos",
            "requests": requests,
            "wrong": self.outcomes["wrong"],
            "errors": self.outcomes["error"],
            "late": self.outcomes["late"],
            "ok_fraction": round(self.outcomes["ok"] / requests, 6) if requests else 0.0,
            "faults": dict(sorted(self.faults.items())),
            "ways": dict(sorted(self.ways.items())),
            "stale": self.stale,
            "forked": self.forked,
            "retried": self.retried,
            "forgotten": self.forgotten,
        }


def awake_s(began_s: float, ended_s: float, asleep: tuple[float, float]) -> float:
    """How long something took without the part in which the edge was stopped, from when to when `asleep` says."""
    fell_s, woke_s = asleep
    return ended_s - began_s - max(0.0, min(ended_s, woke_s) - max(began_s, fell_s))


def prompt_tokens(queries: Sequence[Query], said: Sequence[Said]) -> int:
    """Of all prompts of a turn together, as the edge counted them; where it did not answer, about so many."""
    return sum(one.prompt_tokens or query.document.tokens for query, one in zip(queries, said, strict=True))


def bound_s(local_s: float) -> float:
    """What a request may take at most, when computing all requests of its turn takes so long."""
    return 1.5 * local_s + 0.5


def judged(
    turn: Turn, query: Query, said: Said, right: Mapping[int, Right], local_s: float, rounding_nats: float
) -> Outcome:
    """How a request went.

    Args:
        turn: in which it was asked.
        query: what was asked.
        said: what came back.
        right: the right answer for each version of the document, newer ones too.
        local_s: what computing all answers of the turn takes here.
        rounding_nats: what rounding may decide with this model.
    """
    reason = said.failure or str(said.timings.get("reason") or "")
    versions: set[int] = set()
    verdict: Verdict = "error"
    if said.text is not None:
        versions = {version for version, one in right.items() if one.agrees(said.text, said.tokens, rounding_nats)}
        verdict = "wrong" if not versions else "late" if said.seconds > bound_s(local_s) else "ok"
    if verdict == "wrong":
        texts = {version: one.text for version, one in right.items()}
        reason = f"said {said.text!r}, right is {texts}; {reason}"
    stale = bool(versions) and max(versions) < said.version
    forked = bool(versions) and all(right[version].text != said.text for version in versions)
    kind, way = turn.episode.kind, str(said.timings.get("way", ""))
    return Outcome(
        turn.index, query.client, kind, verdict, said.seconds, local_s, way, reason, stale, said.tries, forked
    )
