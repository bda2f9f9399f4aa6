"""A server that speaks as much of llama-server's API as `preread attach` needs, and computes with a real engine.

Its slot files are written down here apart from the code that is tested. A real llama-server is in
test_llama_server.py.
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preread.engine.llamacpp import LlamaCpp
from preread.plan.match import shared_tokens
from preread.testing.cloud import serving
from preread.values import Geometry, KVBlock, Span

Tokens = npt.NDArray[np.int32]
WINDOW = 1024


@dataclass(slots=True)
class Slot:
    """What a slot holds."""

    tokens: Tokens
    block: KVBlock
    task: int = -1


@dataclass(slots=True)
class SmallServer:
    """The server.

    Attributes:
        wrong: added to every V that is restored, how many of which there were is in `restored`.
        begins_otherwise: its template is another than the cloud's.
        version: of its slot files.
    """

    engine: LlamaCpp
    folder: Path
    slots: list[Slot]
    url: str = ""
    wrong: float = 0.0
    begins_otherwise: bool = False
    version: int = 4
    restored: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def restart(self, version: int) -> None:
        """It comes back with nothing in its slots, and files of another version."""
        self.version = version
        for slot in self.slots:
            slot.tokens, slot.task = slot.tokens[:0], -1

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/props", self.props),
                Route("/lora-adapters", self.nothing),
                Route("/slots", self.told),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/completion", self.completion, methods=["POST"]),
                Route("/v1/chat/completions", self.completion, methods=["POST"]),
                Route("/slots/{id:int}", self.act, methods=["POST"]),
            ]
        )

    async def props(self, request: Request) -> Response:
        told = {"n_ctx": WINDOW}, len(self.slots)
        return JSONResponse(
            {"default_generation_settings": told[0], "total_slots": told[1], "model_alias": "m", "endpoint_slots": True}
        )

    async def nothing(self, request: Request) -> Response:
        return JSONResponse([])

    async def told(self, request: Request) -> Response:
        slots = [
            {"id": id, "is_processing": False, "n_prompt_tokens": len(slot.tokens), "id_task": slot.task}
            for id, slot in enumerate(self.slots)
        ]
        return JSONResponse(slots)

    async def tokenize(self, request: Request) -> Response:
        text = (await request.json())["content"]
        return JSONResponse({"tokens": self.engine.tokenize(text, start=True).tolist()})

    async def completion(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._completed, await request.json()))

    async def act(self, request: Request) -> Response:
        slot, name = self.slots[request.path_params["id"]], (await request.json()).get("filename")
        match request.query_params["action"]:
            case "save":
                (self.folder / name).write_bytes(written(slot, self.engine.spec.geometry, self.version))
            case "restore" if (self.folder / name).read_bytes()[4] != self.version:
                return JSONResponse({"error": {"message": "Unable to restore slot"}}, 400)
            case "restore":
                slot.tokens, slot.block = restored((self.folder / name).read_bytes(), self.engine.spec.geometry)
                slot.block.v[:] += np.float16(self.wrong)
                self.restored += 1
            case "erase":
                slot.tokens = slot.tokens[:0]
        return JSONResponse({})

    def _completed(self, body: dict[str, Any]) -> dict[str, Any]:
        """One greedy token, computed behind what the slot holds."""
        with self.lock:
            self.bodies.append(body)
            tokens = self._prompt(body)
            slot = self.slots[body.get("id_slot", 0)]
            shared = min(shared_tokens(slot.tokens, tokens), len(tokens) - 1) if body.get("cache_prompt", True) else 0
            session, held, layers = self.engine.session, slot.block, Span(0, self.engine.spec.geometry.layers)
            session.prefill(tokens)
            own = session.export(Span(0, len(tokens)), layers)
            k, v = own.k.copy(), own.v.copy()
            k[:, :, :shared], v[:, :, :shared] = held.k[:, :, :shared], held.v[:, :, :shared]
            slot.tokens, slot.block = tokens, KVBlock(own.tokens, layers, k, v)
            slot.task = len(self.bodies)
            session.reserve(max(shared, len(tokens) - 1))
            begun = Span(0, session.context_tokens)
            session.inject(KVBlock(begun, layers, k[:, :, : begun.stop], v[:, :, : begun.stop]))
            session.open_layers(layers.stop)
            logits = session.score(tokens[begun.stop :])[-1].astype(np.float64)
        odds = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        best = np.argsort(-odds)[:10]
        return {
            "content": int(best[0]),
            "completion_probabilities": [
                {"top_logprobs": [{"id": int(id), "logprob": float(odds[id])} for id in best]}
            ],
            "timings": {"cache_n": shared, "prompt_n": len(tokens) - shared, "prompt_per_second": 200.0},
        }

    def _prompt(self, body: dict[str, Any]) -> Tokens:
        if "messages" in body:
            assert self.engine.chat is not None
            tokens = self.engine.tokenize_prompt(self.engine.chat.render(body["messages"]))
            return tokens[::-1].copy() if self.begins_otherwise else tokens
        parts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        ids = [[part] if isinstance(part, int) else self.engine.tokenize(part).tolist() for part in parts]
        return np.concatenate(ids).astype(np.int32)


def written(slot: Slot, geometry: Geometry, version: int) -> bytes:
    """A slot file as llama-server writes it, of a cache that is not unified and has no flash attention."""
    count, rows = len(slot.tokens), geometry.kv_heads * geometry.head_dim
    packed = [-1, 1, count, *slot.tokens.tolist(), 0]
    out = b"qsgg" + struct.pack(f"<II{len(packed)}i", version, len(packed), *packed) + struct.pack("<II", 2, count)
    out += b"".join(struct.pack("<iIi", position, 1, 0) for position in range(count))
    out += struct.pack("<IIII", 1, geometry.layers, 0, 0)
    for k in slot.block.k:
        out += struct.pack("<iQ", 1, 2 * rows) + k[:, :count].transpose(1, 0, 2).tobytes()
    for v in slot.block.v:
        out += struct.pack("<iII", 1, 2, rows) + v[:, :count].transpose(0, 2, 1).tobytes()
    return out + bytes(4)


def restored(data: bytes, geometry: Geometry) -> tuple[Tokens, KVBlock]:
    """What is in such a file."""
    (packed,) = struct.unpack_from("<I", data, 8)
    tokens = np.frombuffer(data, "<i4", packed - 4, 24).copy()
    count, shape = len(tokens), (geometry.layers, geometry.kv_heads, len(tokens), geometry.head_dim)
    k, v = np.empty(shape, np.float16), np.empty(shape, np.float16)
    at, size = 12 + 4 * packed + 8 + 12 * count + 16, 2 * geometry.kv_heads * geometry.head_dim * count
    for layer in range(geometry.layers):
        rows = np.frombuffer(data, np.float16, size // 2, at + 12)
        k[layer] = rows.reshape(count, geometry.kv_heads, -1).transpose(1, 0, 2)
        at += 12 + size
    for layer in range(geometry.layers):
        rows = np.frombuffer(data, np.float16, size // 2, at + 12)
        v[layer] = rows.reshape(geometry.kv_heads, -1, count).transpose(0, 2, 1)
        at += 12 + size
    assert at + 4 == len(data)
    return tokens, KVBlock(Span(0, count), Span(0, geometry.layers), k, v)


@pytest.fixture
def small_server(tiny_model: Path, tmp_path: Path) -> Iterator[SmallServer]:
    """Runs the model of random weights, in three slots."""
    (tmp_path / "slots").mkdir()
    with closing(LlamaCpp.open(tiny_model, window_tokens=WINDOW, scored_tokens=8)) as engine:
        geometry = engine.spec.geometry
        nothing = np.empty((geometry.layers, geometry.kv_heads, 0, geometry.head_dim), np.float16)
        block = KVBlock(Span(0, 0), Span(0, geometry.layers), nothing, nothing)
        slots = [Slot(np.empty(0, np.int32), block) for _ in range(3)]
        server = SmallServer(engine, tmp_path / "slots", slots)
        with serving(server.app) as url:
            server.url = url
            yield server
