"""Opening an edge: the model is loaded and tested, what is published is restored, and the engine's loop begins."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from preread import limits
from preread.edge import machine
from preread.edge.contexts import Contexts
from preread.edge.core import Core
from preread.edge.node import Node
from preread.edge.offload import Offload
from preread.edge.options import Options
from preread.edge.published import Interest, OwnModel
from preread.edge.readers import Readers
from preread.edge.residents import Residents
from preread.engine.llamacpp import LlamaCpp
from preread.engine.memory import memory_of
from preread.engine.peek import header_of
from preread.engine.selftest import self_test
from preread.engine.worker import Worker
from preread.errors import CorruptData, UsageError
from preread.fit import decisions, family
from preread.plan.beliefs import Beliefs
from preread.plan.residency import Residency
from preread.plan.schedule import LOADS, MOST_ANSWERS, Schedule
from preread.plan.step_cost import StepCost
from preread.store.egress import CloudLink

_SPARE: Final = 8
"""Sequences for stretches of contexts that are being computed."""

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_node(
    model: Path,
    name: str,
    link: CloudLink | None,
    folder: Path,
    options: Options,
) -> AsyncGenerator[Residents, None]:
    """Load the model, test that KV can be injected, restore the catalogue; close everything at the end.

    The catalogue is synced beside: a slow cloud keeps no edge from starting, see `Node.settled`. The link is closed
    too.

    Args:
        model: GGUF file; `name`: what to call it.
        link: to the cloud; None: everything is computed here.
        folder: where the catalogue is kept.
        options: the rest; which model, cloud and folder they name does not matter any more.

    Raises:
        UsageError, EngineError: as for `LlamaCpp.open`.
    """
    worker, readers = Worker(), Readers()
    try:
        engine = await worker.run(lambda: _engine(model, name, options))
        calibration = await asyncio.to_thread(decisions.found, options.decisions, engine.spec.fingerprint)
        gates = await asyncio.to_thread(family.found, options.gates, engine.spec.fingerprint)
        tested = await worker.run(lambda: self_test(engine))
        await asyncio.to_thread(_read_template, engine)
    except BaseException:
        readers.close()
        worker.close()
        raise
    if engine.no_injection:
        _log.warning("contexts are computed here, not streamed: %s", engine.no_injection)
    if link is not None and link.exposed:
        _log.warning("contexts come without TLS: whoever is on the way to the cloud can read them, and change them")
    spec = engine.spec
    size = spec.layers, spec.window_tokens
    own = OwnModel(spec.fingerprint, spec.vocabulary, *size, gates)
    wishes = options.near.wishes
    contexts = Contexts(folder, own, Interest(options.names, wishes.pins, wishes.policy == "all"))
    await asyncio.to_thread(contexts.restore)
    beliefs = Beliefs.of_machine(tested.prefill_tokens_s)
    offload = Offload(machine.offload_bytes(limits.memory_bytes(), options.cache_ram_bytes))
    core = Core(
        engine,
        worker,
        _schedule(engine, tested.prefill_tokens_s, options.keep_conversations_s),
        drafts=options.drafts and engine.in_part,  # a draft that is refused is taken back row by row
    )
    node = Node(engine, worker, core, readers, link, contexts, beliefs, offload, options, calibration)
    residents = Residents(node)
    syncing = None
    try:
        if link is not None:
            syncing = asyncio.create_task(node.keep_in_sync(options.sync_s))
        else:
            await node.sync()
        yield residents
    finally:
        if syncing is not None:
            syncing.cancel()
            await asyncio.wait([syncing])
        await node.close()
        if link is not None:
            await link.aclose()


def _engine(model: Path, name: str, options: Options) -> LlamaCpp:
    kv_memory_bytes = machine.kv_memory_bytes(limits.memory_bytes(), options.kv_memory_bytes, _token_bytes(model))
    return LlamaCpp.open(
        model,
        name=name,
        window_tokens=options.window_tokens,
        threads=options.threads,
        kv_memory_bytes=kv_memory_bytes,
    )


def _read_template(engine: LlamaCpp) -> None:
    """Now, as the first question would wait for it: a vocabulary may have thousands of control tokens."""
    with suppress(UsageError):  # who asks a chat is told
        _ = engine.chat


def _token_bytes(model: Path) -> int | None:
    """What a token's rows take; None: its header does not say; what is wrong with it, opening the model says."""
    try:
        kept = memory_of(header_of(model))
    except (CorruptData, OSError):
        return None
    return None if kept is None else kept.bytes_of(1) - kept.state_bytes


def _schedule(engine: LlamaCpp, prefill_tokens_s: float, keep_s: float) -> Schedule:
    """Of sequences, answers get what they may need, and contexts and conversations the rest."""
    in_part, every = engine.in_part, len(engine.sequences)
    # A load has one for a stretch, and one for what is before that; with few, two loads share what is left.
    sequences = every - (_SPARE if in_part else max(LOADS, min(2 * LOADS, every - 2 * LOADS)))
    answers = min(MOST_ANSWERS, max(1, sequences if in_part or engine.no_injection else sequences // 2))
    residency = Residency(engine.cells, max(0, sequences - answers))
    cost, kept_s = StepCost.guessed(prefill_tokens_s), keep_s if in_part else 0.0
    return Schedule(residency, cost, answers, kept_s, MOST_ANSWERS if in_part else 1)
