"""What `kv_connector_extra_config` says, read once: a field is honoured or refused by name."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from preread.errors import UsageError
from preread.plan.choose import MAX_DLOSS


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator chooses.

    Attributes:
        gguf: a GGUF file of the same model, any quantisation.
        store: where contexts are published to; None: none is.
        rungs: in which qualities; None: lossless, and all that the store's profile of this model knows.
        cloud: where published contexts come from; None: from nowhere.
        api_key_file: of the key for the cloud, if it asks for one.
        rung: which is fetched; None: the smallest that keeps `max_dloss`.
        max_dloss: by how much reading a context may raise the loss, nats a token.
        gates: what `preread fit family` wrote for this model, besides what lies where it writes by itself.
        folder: where what is published is kept; None: in the user's cache folder.
    """

    gguf: Path
    store: str | None = None
    rungs: tuple[str, ...] | None = None
    cloud: str | None = None
    api_key_file: Path | None = None
    rung: str | None = None
    max_dloss: float = MAX_DLOSS
    gates: tuple[Path, ...] = ()
    folder: Path | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request's `kv_transfer_params` say under "preread".

    Attributes:
        publish: the name under which what it reads is to be published; `form`: what follows it there.
        context: the name of a published context that its prompt begins with.
    """

    publish: str | None = None
    form: Literal["chat", "text"] = "text"
    context: str | None = None


def read(extra: dict[str, Any]) -> Config:
    """The configuration.

    Raises:
        UsageError: a field is not known, missing, or not of its type.
    """
    try:
        config = msgspec.convert(extra, Config, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise UsageError(f"kv_connector_extra_config: {error}") from error
    if config.store is None and config.cloud is None:
        raise UsageError("kv_connector_extra_config says neither where to publish (store) nor where from (cloud)")
    return config


def wish(params: dict[str, Any] | None) -> Wish:
    """What a request wants of preread.

    Raises:
        UsageError: it says something that is not known.
    """
    try:
        return msgspec.convert((params or {}).get("preread", {}), Wish)
    except msgspec.ValidationError as error:
        raise UsageError(f"kv_transfer_params.preread: {error}") from error


def _path(kind: type, value: object) -> object:
    """Reads paths. That a type is not known here msgspec wants to hear as NotImplementedError."""
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise NotImplementedError(f"{kind} is not read")
