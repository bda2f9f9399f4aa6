"""The model list of an edge: its model, and `MODEL@CONTEXT` for each context, for clients that can choose only models.

And what else clients of llama-server look for: its properties, and a plain word on what is not here. Pure.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from preread.engine.model import Spec
from preread.engine.sampling import Sampling
from preread.plan.schedule import MOST_ANSWERS
from preread.wire.catalogue import Entry

_OLLAMA: Final = "this is not Ollama: choose OpenAI's API in the client, with a base URL that ends in /v1"
ELSEWHERE: Final = {
    "/slots": "how many are waiting is in each answer's timings",
    "/v1": "a client's base URL ends here; what it asks is /v1/chat/completions, for example",
    **dict.fromkeys(("/api/chat", "/api/generate", "/api/show", "/api/tags", "/api/version"), _OLLAMA),
    "/v1/embeddings": "this model generates text",
    "/v1/rerank": "this model generates text",
}
"""Paths of other servers, and what to do instead."""


def models(spec: Spec, contexts: Iterable[Entry], started: int) -> list[dict[str, Any]]:
    """All that can be asked for as a model, with these contexts; `started`: since when, in seconds since 1970."""
    meta = {
        "architecture": spec.architecture,
        "fingerprint": spec.fingerprint,
        "n_ctx": spec.window_tokens,
        "n_ctx_train": spec.trained_tokens,
        "n_vocab": spec.vocab_size,
    }
    listed = [(spec.name, meta), *((f"{spec.name}@{entry.name}", meta | _context(entry)) for entry in contexts)]
    always = {"object": "model", "created": started, "owned_by": "preread", "max_model_len": spec.window_tokens}
    return [{"id": id, **always, "meta": described} for id, described in listed]


def properties(spec: Spec, usual: Sampling, kv_memory_bytes: int) -> dict[str, Any]:
    """The answer to GET /props, as far as it means anything here."""
    return {
        "default_generation_settings": {"n_ctx": spec.window_tokens, "params": asdict(usual)},
        "total_slots": MOST_ANSWERS,
        "kv_memory_bytes": kv_memory_bytes,
        "model_alias": spec.name,
        "modalities": {"vision": False, "audio": False},
    }


def _context(entry: Entry) -> dict[str, Any]:
    return {"context": entry.name, "context_id": entry.context, "context_tokens": entry.token_count}
