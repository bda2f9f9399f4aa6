"""A context is held once, in the engine's cache; what is on its way there takes little memory however long it is."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preread.cloud.app import create_app
from preread.cloud.publish import refuse
from preread.codec.ladder import codec
from preread.engine.model import engine_version
from preread.engine.model import load as load_model
from preread.engine.model import spec as read_spec
from preread.store.objects import Objects, open_store
from preread.testing.cloud import serving
from preread.values import KVBlock, Span, alike
from preread.wire import manifest as manifests
from preread.wire import segment, tokens
from preread.wire.catalogue import Entry
from preread.wire.digest import context_id
from preread.wire.fields import SizedId

TOKENS = 6144
MIB = 2**20

# In a process of its own: the peak of this one belongs to other tests.
EDGE = """
import asyncio, json, pathlib, sys
from preread.edge.edge import AsyncEdge
from preread.testing.beliefs import slow_machine

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

async def main(model, url, folder):
    async with AsyncEdge(model, url, rung="lossless", window_tokens=8192, folder=pathlib.Path(folder)) as edge:
        await edge.ask("warm up", max_tokens=2)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        edge.node.beliefs = slow_machine()
        before = status("VmRSS")
        answer = await edge.ask("?", context="long", max_tokens=1)
        print(json.dumps({"way": answer.timings.way, "reason": answer.timings.reason, "peak": status("VmHWM") - before,
                          "received": answer.timings.bytes_received}))

asyncio.run(main(*sys.argv[1:]))
"""


async def publish_noise(store: Objects, model: Path) -> int:
    """A long context of random KV, which no model had to read; its size in fp16 bytes."""
    loaded = load_model(model)
    spec = read_spec(loaded, model, "smollm2-135m-instruct", 0)
    loaded.close()
    ids, shape = (np.arange(TOKENS) % 1000 + 500).astype(np.int32), spec.geometry
    context, step = context_id(spec.fingerprint, ids), codec("lossless")
    chunks = [Span(start, start + 512) for start in range(0, TOKENS, 512)]
    groups = [Span(layer, layer + 5) for layer in range(0, shape.layers, 5)]
    rows = np.random.default_rng(0).normal(size=(5, shape.kv_heads, 512, shape.head_dim)).astype(np.float16)
    table = []
    for chunk in chunks:
        cells = []
        for group in groups:
            block = KVBlock(chunk, group, rows, rows)
            header = segment.SegmentHeader(context, "lossless", chunk, group, block.shape)
            ref = await store.put("segments", segment.pack(header, step.encode(block)))
            cells.append(SizedId(ref.id, ref.size_bytes))
        table.append(cells)
    packed = await store.put("tokens", tokens.pack(ids))
    covered, of = manifests.pairs(chunks), manifests.rows_of(groups)
    flat = tuple(row[group] for group in range(len(groups)) for row in table)
    manifest = manifests.Manifest(
        context=context,
        form="text",
        model=manifests.Model(spec.name, spec.fingerprint, alike(shape)),
        tokens=manifests.Tokens(TOKENS, packed.id, packed.size_bytes),
        chunks=covered,
        groups=of,
        parts=manifests.all_parts(of, covered),
        rungs=(manifests.Rung("lossless", step.version, flat),),
        origin=manifests.Origin(engine_version(), "preread test", 512),
    )
    stored = await store.put("manifests", manifests.dumps(manifest))
    sized = SizedId(stored.id, stored.size_bytes), SizedId(packed.id, packed.size_bytes)
    entry = Entry("long", context, "text", spec.fingerprint, spec.vocabulary, spec.name, TOKENS, *sized)
    await store.put_name(entry)
    return TOKENS * shape.values_per_token * 2


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to see peaks of memory")
def test_buffers_stay_small_however_long_the_context(smollm: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    raw_bytes = asyncio.run(publish_noise(store, smollm))
    assert raw_bytes > 128 * MIB
    with serving(create_app(store, refuse)) as url:
        arguments = [sys.executable, "-c", EDGE, str(smollm), url, str(tmp_path / "edge")]
        found = json.loads(
            subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        )
    assert found["way"] == "streamed", found
    assert found["received"] > raw_bytes / 2
    assert found["peak"] < 64 * MIB, found
    assert found["peak"] < raw_bytes / 2  # a second copy of the context would show
