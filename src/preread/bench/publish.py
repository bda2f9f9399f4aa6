"""What publishing costs, and whether what it states holds: documents of many kinds, published with defaults.

Each is published into memory and read bare, one after the other in turn, and the rung that an edge takes by default is
measured on other windows of the document than the publisher looked at, through the same stored bytes.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preread import limits
from preread.bench.documents import Document
from preread.bench.rates import with_interval
from preread.cloud.profiles import Stored, keep
from preread.cloud.publish import publish
from preread.cloud.quality import measure, windows
from preread.codec.ladder import codec, needs_profile
from preread.codec.profile import Profile, prepare
from preread.codec.profile_bytes import loads
from preread.edge.machine import machine
from preread.edge.profiles import Profiles
from preread.edge.published import OwnModel
from preread.edge.rungs import resolved
from preread.engine.context import WINDOWS
from preread.engine.llamacpp import LlamaCpp, Tokens
from preread.engine.worker import Worker
from preread.errors import UsageError
from preread.fit.codec import fit
from preread.fit.quality import interval, joined
from preread.fit.text import calibration
from preread.plan.choose import MAX_DLOSS, choose_rung
from preread.store.objects import Objects, open_store
from preread.values import Span
from preread.wire import catalogue
from preread.wire import manifest as manifests
from preread.wire.manifest import Manifest

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

_TAIL_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One document.

    Attributes:
        kind, name, tokens: what it is.
        publish_s, bare_s: seconds to publish it, and to compute its KV and nothing else.
        rung: that an edge takes by default; `bits` a value of it.
        stated: what it is stated to cost at most, nats a token, and `measured_on` what.
        kl, kl_ci, dloss, dloss_ci: what it costs on other windows, with 95 % intervals.
        kept: whether that is within the budget: the divergence, and the loss beyond doubt.
    """

    kind: str
    name: str
    tokens: int
    publish_s: float
    bare_s: float
    rung: str
    bits: float
    stated: float
    measured_on: str
    kl: float
    kl_ci: tuple[float, float]
    dloss: float
    dloss_ci: tuple[float, float]
    kept: bool

    @property
    def cost(self) -> float:
        """Publishing ÷ bare prefill."""
        return self.publish_s / self.bare_s


def bench(
    model: Path,
    name: str,
    documents: Sequence[Document],
    most_tokens: int,
    profile: Path | None,
    console: Console,
    report: Report,
) -> dict[str, object]:
    """Publish and measure each document, print a table and last one line of JSON, which is also returned.

    Args:
        model, name: GGUF file, and what to call it.
        documents: longer ones are cut after `most_tokens`.
        profile: file of a fitted profile; None: fit one first.

    Raises:
        UsageError: the profile is another model's.
    """
    scored = _TAIL_TOKENS * WINDOWS
    window_tokens = (most_tokens + scored + 255) // 256 * 256
    with closing(LlamaCpp.open(model, name=name, window_tokens=window_tokens, scored_tokens=scored)) as engine:
        known = _profile(engine, profile, report)
        worker = Worker()
        rows = []
        try:
            for number, document in enumerate(documents):
                report("publish", number, len(documents))
                tokens = _beginning(engine, document.text, most_tokens)
                rows.append(asyncio.run(_row(engine, worker, known, document, tokens, number % 2 == 0)))
        finally:
            worker.close()
    return _show(name, rows, console)


def _profile(engine: LlamaCpp, path: Path | None, report: Report) -> Profile:
    if path is None:
        return fit(engine, calibration(), report)
    try:
        profile = loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror or error}") from error
    if profile.fingerprint != engine.spec.fingerprint:
        raise UsageError(f"{path} is the profile of another model than {engine.spec.name}")
    return profile


def _beginning(engine: LlamaCpp, text: str, most_tokens: int) -> Tokens:
    """The first tokens of a document, as the model is given it: none is too long, since it is cut first."""
    cut = text[: most_tokens * engine.spec.token_characters]
    if engine.chat is None:
        return engine.tokenize(cut, special=False, start=True)[:most_tokens]
    return engine.tokenize_prompt(engine.chat.system_prefix(cut))[:most_tokens]


async def _row(
    engine: LlamaCpp, worker: Worker, profile: Profile, document: Document, tokens: Tokens, bare_first: bool
) -> Row:
    store = open_store("memory:")
    stored = await keep(store, profile)
    bare_s = await _bare_s(engine, worker, tokens) if bare_first else 0.0
    started = time.perf_counter()
    manifest = await _published(store, engine, worker, stored, tokens)
    publish_s = time.perf_counter() - started
    later_s = await _bare_s(engine, worker, tokens)  # which the measuring below needs, whoever came first
    own = OwnModel(engine.spec.fingerprint, engine.spec.vocabulary, engine.spec.layers, engine.spec.window_tokens)
    rungs = {one.name: one for one in resolved(manifest, Profiles(own), own)}
    rung = choose_rung([one.offer() for one in rungs.values()], MAX_DLOSS, lambda _: True)
    assert rung is not None  # lossless keeps every budget
    chosen = manifests.rung_named(manifest, rung)
    kl, dloss, kl_ci, dloss_ci = 0.0, 0.0, (0.0, 0.0), (0.0, 0.0)
    if needs_profile(chosen.codec):
        step = codec(rung, prepare(profile, engine.embeddings(tokens)))
        looked_at = windows(len(tokens), engine.spec.window_tokens, engine.scored_tokens)
        with ThreadPoolExecutor(limits.cpus()) as pool:
            spans = others(looked_at, len(tokens))
            found = await measure(store, engine, worker, pool, manifest, step, tokens, spans, None)
        whole = joined(found.scores)
        kl, dloss = float(whole.kl.mean()), float(whole.dloss.mean())
        kl_ci = interval([score.kl for score in found.scores])
        dloss_ci = interval([score.dloss for score in found.scores])
    return Row(
        document.kind,
        document.name,
        len(tokens),
        publish_s,
        bare_s or later_s,
        rung,
        8 * rungs[rung].size_bytes / (len(tokens) * engine.spec.geometry.values_per_token),
        rungs[rung].stated_dloss or 0.0,
        chosen.quality.measured_on if chosen.quality else "",
        kl,
        kl_ci,
        dloss,
        dloss_ci,
        max(kl, dloss_ci[0]) <= MAX_DLOSS,
    )


async def _bare_s(engine: LlamaCpp, worker: Worker, tokens: Tokens) -> float:
    started = time.perf_counter()
    await worker.run(lambda: engine.session.prefill(tokens), engine.session.cancel)
    return time.perf_counter() - started


async def _published(store: Objects, engine: LlamaCpp, worker: Worker, profile: Stored, tokens: Tokens) -> Manifest:
    done = await publish(store, engine, worker, "document", tokens, "text", None, lambda *_: None, profile)
    data = await store.read("manifests", catalogue.manifest_ref(done.entry).id)
    assert data is not None
    return manifests.loads(data)


def others(looked_at: Iterable[Span], tokens: int) -> list[Span]:
    """Windows that share no token with those that were looked at: at most `WINDOWS`, evenly in the gaps.

    They have `_TAIL_TOKENS` tokens, or as many as there are in a gap.
    """
    gaps, start = [], tokens // 4
    for span in looked_at:
        gaps.append(Span(start, span.start))
        start = span.stop
    gaps = gaps or [Span(start, tokens)]
    found = []
    for gap in gaps:
        length = min(_TAIL_TOKENS, len(gap))
        count = min(WINDOWS // len(gaps), len(gap) // max(length, 2))
        starts = [gap.start + len(gap) * (2 * n + 1) // (2 * count) - length // 2 for n in range(count)]
        found += [Span(at, at + length) for at in starts]
    return found


def _show(name: str, rows: Sequence[Row], console: Console) -> dict[str, object]:
    table = Table(title=f"{name}, published with defaults; an edge's budget is {MAX_DLOSS:g} nats a token")
    for heading in ("kind", "document", "tokens", "÷ prefill", "rung", "bits", "stated ≤", "by", "KL", "Δloss", "kept"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("kind", "document") else "right")
    for row in rows:
        table.add_row(
            row.kind,
            row.name,
            f"{row.tokens:,}",
            f"{row.cost:.2f}",
            row.rung,
            f"{row.bits:.2f}",
            f"{row.stated:.4f}",
            row.measured_on,
            with_interval(row.kl, row.kl_ci),
            with_interval(row.dloss, row.dloss_ci),
            "yes" if row.kept else "no",
        )
    console.print(table)
    costs, kept = [row.cost for row in rows], sum(row.kept for row in rows)
    console.print(
        f"kept {kept} of {len(rows)}; publishing took {statistics.median(costs):.2f} × bare prefill in the median, "
        f"{max(costs):.2f} × at worst"
    )
    result: dict[str, object] = {
        "bench": "publish",
        "model": name,
        "rows": [asdict(row) for row in rows],
        "kept": kept,
        "cost_median": statistics.median(costs),
        "cost_worst": max(costs),
        "machine": asdict(machine()),
    }
    print(json.dumps(result))
    return result
