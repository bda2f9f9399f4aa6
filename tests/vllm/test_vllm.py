"""vLLM itself, with the connector: what it reads is published, and what llama.cpp published is loaded. `make vllm`."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preread.cloud.app import create_app
from preread.cloud.publish import publish, refuse
from preread.codec.ladder import codec
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.store.objects import Objects, open_store
from preread.testing.checkpoint import write_checkpoint
from preread.testing.cloud import serving
from preread.testing.quantised import write_quantised
from preread.values import Half, Span
from preread.vllm.checkpoint import identified
from preread.wire import manifest as manifests
from preread.wire import segment
from preread.wire.manifest import LOSSLESS

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.filterwarnings("default")]
WINDOW_TOKENS = 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vllm", reason="vLLM is large: make vllm runs this in an environment of its own")
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def gguf(folder: Path, smollm: Path) -> Path:
    """The same weights as llama.cpp has them."""
    return write_quantised(folder / "same.gguf", smollm, "bf16")


@pytest.fixture(scope="module")
def checkpoint(folder: Path, gguf: Path) -> Path:
    """The model as transformers has it."""
    return write_checkpoint(folder / "checkpoint", gguf)


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(gguf, window_tokens=WINDOW_TOKENS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def store(folder: Path) -> Objects:
    return open_store(str(folder / "store"))


@pytest.fixture(scope="module")
def url(store: Objects, engine: LlamaCpp, manual: str) -> Iterator[str]:
    """A cloud of which llama.cpp has published "theirs"; it only serves."""
    worker = Worker()
    tokens = engine.tokenize(manual, special=False, start=True)
    asyncio.run(publish(store, engine, worker, "theirs", tokens, "text", (LOSSLESS,), lambda *_: None))
    worker.close()
    with serving(create_app(store, refuse)) as url:
        yield url


@pytest.fixture(scope="module")
def vllm(checkpoint: Path, gguf: Path, url: str, folder: Path) -> Iterator[Any]:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    from vllm import LLM

    extra = {"gguf": str(gguf), "store": str(folder / "store"), "cloud": url, "folder": str(folder / "edge")}
    llm = LLM(
        str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=WINDOW_TOKENS,
        max_num_batched_tokens=128,
        kv_transfer_config={
            "kv_connector": "Preread",
            "kv_connector_module_path": "preread.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        },
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def asked(llm: Any, tokens: list[int], **wish: str) -> tuple[list[int], dict[str, Any]]:
    """What it says next, and what the connector says."""
    from vllm import SamplingParams

    extra = {"kv_transfer_params": {"preread": wish}} if wish else None
    sampling = SamplingParams(max_tokens=8, temperature=0, detokenize=False, extra_args=extra)
    (out,) = llm.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
    return list(out.outputs[0].token_ids), (out.kv_transfer_params or {}).get("preread", {})


def test_a_checkpoint_is_of_the_family_of_its_gguf_files_and_has_the_same_weights(
    checkpoint: Path, gguf: Path, engine: LlamaCpp, smollm: Path
) -> None:
    one = identified(checkpoint, gguf, "float32")
    assert (one.family, one.vocabulary, one.geometry) == (
        engine.spec.family,
        engine.spec.vocabulary,
        engine.spec.geometry,
    )
    assert one.same == engine.spec.fingerprint != one.fingerprint
    quantised = identified(checkpoint, smollm, "float32")
    assert quantised.same is None and quantised.fingerprint == one.fingerprint


def test_what_vllm_reads_is_published_as_llama_cpp_would_have_read_it(
    vllm: Any, store: Objects, engine: LlamaCpp, manual: str
) -> None:
    tokens = engine.tokenize(manual, special=False, start=True)
    _, told = asked(vllm, tokens.tolist(), publish="ours")
    assert told == {"publishing": "ours", "tokens": len(tokens)}
    k, v = asyncio.run(_published(store, "ours"))
    engine.session.prefill(tokens)
    own = engine.session.export(Span(0, len(tokens)), Span(0, engine.spec.geometry.layers))
    assert _off(k, own.k) < 0.02 and _off(v, own.v) < 0.02
    assert _off(np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1), own.k) > 0.5, "the other order is another one"


def test_what_llama_cpp_published_is_loaded_and_answered_as_if_it_had_been_computed(
    vllm: Any, engine: LlamaCpp, manual: str
) -> None:
    tokens = engine.tokenize(manual, special=False, start=True)
    prompt = [*tokens.tolist(), *engine.tokenize("\nQuestion: Which code has the fan? Answer:", special=False).tolist()]
    computed, _ = asked(vllm, prompt)
    loaded, told = asked(vllm, prompt, context="theirs")
    assert told["loaded_tokens"] == len(tokens) // 128 * 128 > 0 and "reason" not in told
    assert loaded == computed
    _, told = asked(vllm, prompt, context="absent")
    assert told["loaded_tokens"] == 0 and "unknown context" in told["reason"]


async def _published(store: Objects, name: str) -> tuple[Half, Half]:
    """K and V of what is published under a name, which may still be on its way."""
    async with asyncio.timeout(60):
        while (entry := await store.entry(name)) is None:
            await asyncio.sleep(0.1)
    data = await store.read("manifests", entry.manifest.id)
    assert data is not None
    manifest = manifests.loads(data)
    shape = manifest.model.geometry
    assert shape is not None
    k = np.empty((shape.layers, shape.kv_heads, entry.token_count, shape.head_dim), np.float16)
    v = np.empty_like(k)
    for place in manifests.places(manifest, LOSSLESS):
        frame = await store.read("segments", place.ref.id)
        assert frame is not None
        payload = segment.unpack(frame, manifests.header(manifest, LOSSLESS, place))
        block = codec(LOSSLESS).decode(payload, place.tokens, place.layers, shape)
        layers, rows = (slice(span.start, span.stop) for span in (place.layers, place.tokens))
        k[layers, :, rows], v[layers, :, rows] = block.k, block.v
    return k, v


def _off(one: Half, other: Half) -> float:
    """Mean difference, as a share of the mean size."""
    rows, others = one.astype(np.float32), other.astype(np.float32)
    return float(np.abs(rows - others).mean() / np.abs(others).mean())


@pytest.mark.parametrize(
    ("isa", "dtype", "head_dim", "page_tokens"),
    [
        ("amx", "bfloat16", 64, 128),
        ("vec", "float32", 64, 128),
        ("vec", "float16", 128, 32),
        ("vec16", "bfloat16", 80, 32),
    ],
)
def test_every_order_in_which_a_processor_likes_its_pages_is_learnt(
    folder: Path, isa: str, dtype: str, head_dim: int, page_tokens: int
) -> None:
    import torch
    from vllm import _custom_ops as ops

    from preread.vllm import pages

    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")

    def write(k: Any, v: Any, into: Any, slots: Any) -> None:
        keys, values = into.view(len(into), 3, 2 * page_tokens, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(k.contiguous(), v.contiguous(), keys, values, slots, isa)

    cache = torch.zeros(5, 3, page_tokens, 2 * head_dim, dtype=getattr(torch, dtype))
    layout = pages.learnt(write, cache, page_tokens, 3, head_dim)
    random = np.random.default_rng(0)
    k, v = (random.integers(-100, 100, (60, 3, head_dim)).astype(np.float16) for _ in range(2))
    slots = torch.from_numpy(random.permutation(5 * page_tokens)[:60])
    pages.write_rows(write, cache, slots, k, v)
    read_k, read_v = layout.read(cache, slots)
    assert np.array_equal(read_k, k) and np.array_equal(read_v, v)
