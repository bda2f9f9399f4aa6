"""The two halves of the connector without vLLM: what fetches contexts, and what stores and hands out rows."""

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preread import loop
from preread.cloud.profiles import Stored, profile_of
from preread.codec import profile_bytes
from preread.edge import kept
from preread.edge.published import OwnModel
from preread.errors import PrereadError, UsageError
from preread.fit import family
from preread.store.egress import CloudLink
from preread.store.objects import Objects, open_store
from preread.values import Half, alike
from preread.vllm.checkpoint import Checkpoint, Identity, identified
from preread.vllm.config import Config
from preread.vllm.incoming import Incoming
from preread.vllm.plan import Load, Save
from preread.vllm.publishing import Context, Publisher
from preread.vllm.rows import from_cache, to_cache

Single = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


class Fetching:
    """What brings contexts, until it is closed."""

    def __init__(self, incoming: Incoming) -> None:
        self._stack = ExitStack()
        self.incoming = self._stack.enter_context(incoming)

    def close(self) -> None:
        """End what is under way."""
        self._stack.close()


def fetching(folder: Path, dtype: str, chosen: Config, window_tokens: int) -> Fetching:
    """What brings contexts for a checkpoint.

    Raises:
        UsageError: the checkpoint, its GGUF file, a gate, the key or the cloud's address cannot be used.
    """
    one = identified(folder, chosen.gguf, dtype)
    gates = family.found(chosen.gates, one.same or one.fingerprint)
    same = () if one.same is None else (one.same,)
    own = OwnModel(one.fingerprint, one.vocabulary, alike(one.geometry), window_tokens, gates, same)
    link = CloudLink(chosen.cloud or "", api_key=None if chosen.api_key_file is None else _key(chosen.api_key_file))
    where = chosen.folder or kept.usual_folder(chosen.cloud)
    embed = Checkpoint(folder).embeddings
    return Fetching(Incoming(link, where, own, embed, chosen.rung, chosen.max_dloss))


class Storing:
    """What stores what is read, and hands out what is loaded, until it is closed.

    Args:
        near: whether llama.cpp orders K otherwise.
        publisher: None: nothing is stored.
    """

    def __init__(self, publisher: Publisher | None, *, near: bool) -> None:
        self._stack = ExitStack()
        self._publisher = None if publisher is None else self._stack.enter_context(publisher)
        self._near = near
        self._contexts: dict[str, Context | None] = {}

    def rows(self, load: Load, layer: int) -> tuple[Half, Half]:
        """K and V (tokens, kv_heads, head_dim) of what is to be loaded of a layer, as vLLM has them."""
        rows = slice(load.start, load.stop)
        return from_cache(load.arrived.k[layer, :, rows], load.arrived.v[layer, :, rows], near=self._near)

    def put(self, save: Save, layer: int, k: Single, v: Single) -> None:
        """K and V (tokens, kv_heads, head_dim) of a layer, which a step has computed."""
        try:
            if save.request not in self._contexts:
                self._contexts[save.request] = self._begun(save)
            context = self._contexts[save.request]
            if context is not None:
                context.put(layer, save.start, *to_cache(k, v, near=self._near))
        except PrereadError as error:
            _log.error("%r is not published: %s", save.name, error)
            self._contexts[save.request] = None

    def read(self, saves: Iterable[Save], dropped: Iterable[str] = ()) -> None:
        """All layers of these have come, and of requests that were dropped no more will."""
        for request in dropped:
            self._contexts.pop(request, None)
        for save in saves:
            context = self._contexts.get(save.request)
            if context is not None and self._publisher is not None:
                self._publisher.read(context, save.stop)
            if save.stop == len(save.tokens):
                self._contexts.pop(save.request, None)

    def close(self) -> None:
        """Wait until what was read is published."""
        self._stack.close()

    def _begun(self, save: Save) -> Context | None:
        if save.start:
            raise UsageError("its beginning is not here any more")
        return None if self._publisher is None else self._publisher.begin(save.name, save.form, save.tokens)


def storing(folder: Path, dtype: str, chosen: Config, engine: str) -> Storing:
    """What stores contexts of a checkpoint; `engine`: name and version of what reads them.

    Raises:
        UsageError: the checkpoint, its GGUF file or the store cannot be used.
    """
    one = identified(folder, chosen.gguf, dtype)
    if chosen.store is None:
        return Storing(None, near=one.near)
    store = open_store(chosen.store)
    profile = loop.run(_profile(store, one))
    rungs = chosen.rungs if chosen.rungs is not None or profile is not None else ("lossless",)
    publisher = Publisher(store, one, Checkpoint(folder).embeddings, rungs, profile, engine)
    return Storing(publisher, near=one.near)


async def _profile(store: Objects, one: Identity) -> Stored | None:
    """The profile that the store has for this model, or that it has for the same weights in a GGUF file."""
    found = await profile_of(store, one.fingerprint, one.geometry)
    if found is not None or one.same is None:
        return found
    other = await profile_of(store, one.same, one.geometry)
    if other is None:
        return None
    profile = replace(other.profile, fingerprint=one.fingerprint)
    return Stored(await store.put("profiles", profile_bytes.dumps(profile)), profile)


def _key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
