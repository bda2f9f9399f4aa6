"""The models directory: which model files are here, and how a missing one is brought in.

A file under its final name has passed every check: it is made in a scratch folder inside the models directory and moved
into place last. It must not know how bytes arrive (`sources.py` does), nor what they mean to an engine.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from preread.engine.registry import (
    MODELS,
    USUAL_TAG,
    HubFile,
    HubTag,
    LocalFile,
    Model,
    Reference,
    chosen,
    hub_model,
    parse,
    part_paths,
    parts_of,
)
from preread.engine.sources import FULL_DISK, Progress, arrive, check_magic, hub_files
from preread.errors import CorruptData, PrereadError, RemoteError, TransportError, UsageError
from preread.via import Proxy

SCRATCH_PREFIX = ".pull-"
_MOST_OFFERED = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """One line of the list of models.

    Attributes:
        path: where the file is, or would be.
        size_bytes: its size, or the size that it would have; None when unknown.
    """

    name: str
    path: Path
    size_bytes: int | None
    licence: str
    present: bool


def default_models_dir() -> Path:
    """`PREREAD_MODELS`, or the user's cache folder: `~/.cache/preread/models` on Linux."""
    chosen = os.environ.get("PREREAD_MODELS")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("preread") / "models"


def installed(models_dir: Path | None = None) -> tuple[Installed, ...]:
    """Every registered model, present or not, then the files that were pulled from the hub by their address."""
    folder = models_dir or default_models_dir()
    known = [
        Installed(model.name, folder / model.file, model.size_bytes, model.licence, _present(model, folder))
        for model in MODELS.values()
    ]
    others = []
    for path in sorted((folder / "hf").glob("*/*/**/*.gguf")):
        user, repo, *rest = path.relative_to(folder / "hf").parts
        parts = part_paths(path)
        if path == parts[0]:
            model = hub_model(HubFile(f"{user}/{repo}", "/".join(rest)))
            size_bytes = sum(part.stat().st_size for part in parts if part.is_file())
            whole = all(part.is_file() for part in parts)
            others.append(Installed(model.name, path, size_bytes, model.licence, whole))
    return (*known, *others)


def locate(reference: str | Reference, models_dir: Path | None = None) -> Path | None:
    """The file that a reference means, if it is here; None if it has to be pulled. Nothing is fetched.

    Raises:
        UsageError: the reference means nothing, or is a path where no readable file is.
        CorruptData: the path is a file that is not GGUF.
    """
    target = parse(reference) if isinstance(reference, str) else reference
    if isinstance(target, LocalFile):
        return _local(target.path)
    folder = models_dir or default_models_dir()
    if isinstance(target, HubTag):
        known = _known_of(target, folder)
        if known is None:
            return None
        target = known
    models = _files(target)
    return folder / models[0].file if all(_present(model, folder) for model in models) else None


def pull(
    reference: str | Reference, progress: Progress, models_dir: Path | None = None, proxy: Proxy | None = None
) -> Path:
    """The file that a reference means, fetched first if it is not here.

    Sources are tried in order; one that does not answer, or whose bytes differ, is left with a warning. Whatever ends
    the call early (an error, Ctrl-C) leaves no part of a file; what a killed process left is removed by the next pull.

    Raises:
        UsageError: the reference means nothing, or the disk is full or refuses.
        TransportError: no source could be reached.
        RemoteError: the sources answered, with errors.
        CorruptData: the bytes that came are not the model's.
    """
    target = parse(reference) if isinstance(reference, str) else reference
    if isinstance(target, LocalFile):
        return _local(target.path)
    folder = models_dir or default_models_dir()
    if isinstance(target, HubTag):
        target = on_hub(target, folder, proxy)
    models = _files(target)
    if not all(_present(model, folder) for model in models):
        try:
            with _alone(folder, progress):
                for model in models:
                    if not _present(model, folder):  # another process may have pulled it while this one waited
                        _fetch(model, folder, progress, proxy)
        except OSError as error:
            raise _disk_error(error, folder) from error
    return folder / models[0].file


def on_hub(wanted: HubTag, models_dir: Path | None = None, proxy: Proxy | None = None) -> HubFile:
    """The file that a quantisation means: one that is here already, else the one that the hub lists.

    Raises:
        TransportError, RemoteError: the hub could not be asked.
        UsageError: it has no such repository, or no such file in it.
    """
    folder = models_dir or default_models_dir()
    here = _known_of(wanted, folder)
    if here is not None:
        return here
    try:
        files = hub_files(wanted.repo, proxy)
    except TransportError:
        any_here = None if wanted.tag else chosen(_pulled_from(wanted.repo, folder), None)
        if any_here is None:
            raise
        return HubFile(wanted.repo, any_here)
    file = chosen(files, wanted.tag)
    if file is None:
        offered = ", ".join(sorted(one for one in files if one.endswith(".gguf"))[:_MOST_OFFERED]) or "no GGUF file"
        raise UsageError(f"the hub has no {wanted}; in that repository is: {offered}")
    return HubFile(wanted.repo, file)


def is_registered(path: Path, models_dir: Path | None = None) -> bool:
    """Whether a file is that of a registered model, which was checked against its digest when it was brought here."""
    folder, size_bytes = models_dir or default_models_dir(), path.stat().st_size if path.is_file() else None
    found = [model for model in MODELS.values() if model.size_bytes == size_bytes]
    return any(path.resolve() == (folder / model.file).resolve() for model in found)


def _files(target: Model | HubFile) -> tuple[Model, ...]:
    """What a model's file is, or its parts, as files to bring here."""
    if isinstance(target, Model):
        return (target,)
    return tuple(hub_model(HubFile(target.repo, part)) for part in parts_of(target.file))


def _known_of(wanted: HubTag, folder: Path) -> HubFile | None:
    """What a quantisation means among the files that are here."""
    file = chosen(_pulled_from(wanted.repo, folder), wanted.tag or USUAL_TAG)
    return None if file is None else HubFile(wanted.repo, file)


def _pulled_from(repo: str, folder: Path) -> list[str]:
    home = folder / "hf" / repo
    return [path.relative_to(home).as_posix() for path in home.glob("**/*.gguf")]


def _present(model: Model, folder: Path) -> bool:
    path = folder / model.file
    return path.is_file() and model.size_bytes in (None, path.stat().st_size)


def _local(path: Path) -> Path:
    path = path.expanduser()
    parts = part_paths(path)
    try:
        for path in parts:
            check_magic(path)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; a file on the hub is written hf:user/repo/file.gguf"
        ) from error
    return parts[0]


@contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """One pull at a time in a models directory, so that any scratch folder found at its start is a dead one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".pull.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another download into the same folder", 0, None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _fetch(model: Model, folder: Path, progress: Progress, proxy: Proxy | None) -> None:
    """Try each source in turn; put the first file that passes into place."""
    failures: list[PrereadError] = []
    for source in model.sources:
        with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=folder, ignore_cleanup_errors=True) as name:
            try:
                arrived = arrive(source, model, Path(name), progress, proxy)
            except (UsageError, TransportError, RemoteError, CorruptData) as error:
                logger.warning("%s: not from %s: %s", model.name, source, error)
                failures.append(error)
                continue
            _keep(arrived, folder / model.file)
            progress(f"{model.name}: ready", model.size_bytes or 0, model.size_bytes)
            return
    raise failures[0] if len(failures) == 1 else _no_source(model, failures, folder)


def _keep(arrived: Path, final: Path) -> None:
    """Move a checked file into place so that a power cut cannot leave a name without its bytes."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with arrived.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(arrived, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_source(model: Model, failures: list[PrereadError], folder: Path) -> PrereadError:
    """One error for a model that no source gave. A link that may come back outweighs a source that answered wrongly."""
    reasons = "; ".join(f"{source}: {error}" for source, error in zip(model.sources, failures, strict=True))
    advice = f"check the network, HF_ENDPOINT and pip's index, or put the file at {folder / model.file}"
    message = f"no source gave {model.name}: {reasons}; {advice}"
    if any(isinstance(error, TransportError) for error in failures):
        return TransportError(message)
    if all(isinstance(error, CorruptData) for error in failures):
        return CorruptData("digest", message)
    return RemoteError(message)


def _disk_error(error: OSError, folder: Path) -> UsageError:
    if error.errno in FULL_DISK:
        free_bytes = shutil.disk_usage(folder).free
        return UsageError(
            f"no space in {folder}: {error.strerror}, {free_bytes / 1e6:.0f} MB are free; "
            "free some or set PREREAD_MODELS to another folder"
        )
    return UsageError(f"cannot write to {folder}: {error.strerror or error}; set PREREAD_MODELS to another folder")
