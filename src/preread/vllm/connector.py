"""preread's KV connector for vLLM: what it reads is published, and published contexts come into its cache.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "Preread", "kv_role": "kv_both",
      "kv_connector_module_path": "preread.vllm.connector",
      "kv_connector_extra_config": {"gguf": "model-q8.gguf", "store": "./store"}}'

vLLM makes two of it: the scheduler's half knows requests, and asks for contexts; the worker's has the pages. What the
one tells the other goes with each step. Nothing that a request says may end vLLM: what cannot be done is logged, and
the request is computed as if it had not been asked.
"""

import re
from pathlib import Path
from typing import Any, Final

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole
from vllm.version import __version__ as vllm_version

from preread.errors import UsageError
from preread.vllm import config, pages
from preread.vllm.pages import Layout
from preread.vllm.plan import Planner, Step
from preread.vllm.sides import Fetching, Storing, fetching, storing

_LAYER: Final = re.compile(r"layers\.(\d+)\.")


class _Metadata(KVConnectorMetadata):  # type: ignore[misc]
    """A step's work, as vLLM carries it from the scheduler to the worker."""

    def __init__(self, step: Step) -> None:
        self.step = step


class Preread(KVConnectorBase_V1):  # type: ignore[misc]
    """See the module.

    Raises:
        UsageError: the configuration cannot be honoured, or this vLLM is run in a way that is not known here.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _check(vllm_config, kv_cache_config)
        chosen = config.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        model, dtype = vllm_config.model_config, str(vllm_config.model_config.dtype).removeprefix("torch.")
        folder, most = Path(model.model), int(model.max_model_len)
        self._page_tokens = int(vllm_config.cache_config.block_size)
        self._layers: dict[str, tuple[int, Any]] = {}
        self._layout: Layout | None = None
        self._fetching: Fetching | None = None
        self._storing: Storing | None = None
        if role is KVConnectorRole.SCHEDULER:
            if chosen.cloud is not None:
                self._fetching = fetching(folder, dtype, chosen, most)
            incoming = None if self._fetching is None else self._fetching.incoming
            self._planner = Planner(incoming, self._page_tokens, publishes=chosen.store is not None)
        else:
            self._shape = kv_cache_config.kv_cache_groups[0].kv_cache_spec
            self._of_layer = vllm_config.compilation_config.static_forward_context
            self._storing = storing(folder, dtype, chosen, f"vLLM {vllm_version}")

    # The scheduler's half

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._planner.matched(
            request.request_id,
            request.kv_transfer_params,
            request.prompt_token_ids,
            num_computed_tokens,
            plain=request.lora_request is None and not request.mm_features,
        ), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            self._planner.allocated(request.request_id, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        counts, cached = scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_cached_reqs
        for new in scheduler_output.scheduled_new_reqs:
            self._planner.scheduled(
                new.req_id, new.block_ids[0], new.num_computed_tokens + counts[new.req_id], anew=True
            )
        for id, blocks, done in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
            added = [] if blocks is None else blocks[0]
            self._planner.scheduled(id, added, done + counts[id], anew=id in cached.resumed_req_ids)
        return _Metadata(self._planner.step())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        told = self._planner.finished(request.request_id)
        return False, None if told is None else {"preread": told}

    # The worker's half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        for name in kv_caches:
            if (match := _LAYER.search(name)) is None:
                raise UsageError(f"{name} has a KV cache, and is no layer that is known here")
            self._layers[name] = int(match[1]), self._of_layer[name]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._storing is None:
            return
        for load in self._step().loads:
            slots = torch.from_numpy(load.slots)
            for number, layer in self._layers.values():
                k, v = self._storing.rows(load, number)
                pages.write_rows(_writer(layer), layer.kv_cache, slots, k, v)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All layers are in place before the first is computed."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        if self._storing is None:
            return
        number, layer = self._layers[layer_name]
        for save in self._step().saves:
            if self._layout is None:
                shape = self._shape
                self._layout = pages.learnt(
                    _writer(layer), kv_layer, self._page_tokens, shape.num_kv_heads, shape.head_size
                )
            k, v = self._layout.read(kv_layer, torch.from_numpy(save.slots))
            self._storing.put(save, number, k, v)

    def wait_for_save(self) -> None:
        if self._storing is not None and self.has_connector_metadata():
            self._storing.read(self._step().saves, self._step().dropped)

    def shutdown(self) -> None:
        for half in (self._fetching, self._storing):
            if half is not None:
                half.close()

    def _step(self) -> Step:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, _Metadata)
        return metadata.step


def _writer(layer: Any) -> pages.Write:
    def write(k: torch.Tensor, v: torch.Tensor, into: torch.Tensor, slots: torch.Tensor) -> None:
        layer.impl.do_kv_cache_update(layer, k, v, into, slots)

    return write


def _check(vllm_config: Any, kv_cache_config: Any) -> None:
    """Refuse what is not known here.

    Raises:
        UsageError: it is asked for.
    """
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    groups = kv_cache_config.kv_cache_groups
    refused = {
        "more than one process a model": parallel.world_size != 1,
        f"a KV cache of type {cache.cache_dtype}": cache.cache_dtype not in ("auto", "bfloat16", "float16"),
        "layers of different memories": len(groups) != 1,
        "a sliding window": bool(getattr(groups[0].kv_cache_spec, "sliding_window", None)) if groups else False,
    }
    if found := [what for what, is_so in refused.items() if is_so]:
        raise UsageError(f"preread's connector does not know {found[0]}: run vLLM without")
