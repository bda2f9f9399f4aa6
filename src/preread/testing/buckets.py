"""Services that keep buckets, started from packages in processes of their own: what stores in buckets are tried with.

It knows how each is started, how its bucket is made, and what a client has to be told; it must not know what a store
keeps there.
"""

import base64
import hashlib
import hmac
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from preread.errors import UsageError
from preread.testing import ceph
from preread.testing.processes import running

_ACCOUNT: Final = "devstoreaccount1"
_ACCOUNT_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which its documentation tells."""

_READY_WITHIN_S: Final = 120.0
Settings = dict[str, str]


@dataclass(frozen=True, slots=True)
class Service:
    """One that keeps a bucket, where it is installed.

    Attributes:
        needs: programs, or a module of this Python.
        advice: how to get them.
        address: of a store in its bucket.
        start: runs it, on this port, with its files in this folder, while it is open.
        make: makes the bucket; raises OSError while the service is not there yet.
        told: what a client's environment has to say, by the service's URL.
        creates_once: whether of two who create one key one is refused. Else only one cloud may write there.
    """

    name: str
    needs: tuple[str, ...]
    advice: str
    address: str
    start: Callable[[Path, int], AbstractContextManager[None]]
    make: Callable[[str], None]
    told: Callable[[str], Settings]
    creates_once: bool = True

    def missing(self) -> str | None:
        """Why it cannot be started here; None: it can."""
        absent = [name for name in self.needs if shutil.which(name) is None and find_spec(name) is None]
        return f"{' and '.join(absent)} not installed: {self.advice}" if absent else None


@contextmanager
def served(service: Service) -> Iterator[int]:
    """Run a service with an empty bucket; the port on which it listens.

    Raises:
        UsageError: it is not installed, or does not start.
    """
    if why := service.missing():
        raise UsageError(f"{service.name}: {why}")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bucket") as scratch, service.start(Path(scratch), port):
        _await(service, f"http://127.0.0.1:{port}")
        yield port


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _await(service: Service, url: str) -> None:
    until_s = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            service.make(url)
            return
        except OSError as error:
            refused = isinstance(error, HTTPError) and error.code < 500
            if isinstance(error, HTTPError):
                error.close()
                if error.code == 409:  # s3rver has made it already
                    return
            if refused or time.monotonic() > until_s:
                raise UsageError(f"{service.name} does not start, or makes no bucket: {error}") from error
            time.sleep(0.1)


def _s3_told(key: str) -> Callable[[str], Settings]:
    def told(url: str) -> Settings:
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
        }

    return told


def _azure_told(url: str) -> Settings:
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": _ACCOUNT_KEY,
        "AZURE_STORAGE_ENDPOINT": f"{url}/{_ACCOUNT}",
        "AZURE_ALLOW_HTTP": "true",
    }


def _make_unsigned(url: str) -> None:
    _put(f"{url}/preread", {})


def _make_signed(url: str) -> None:
    """With a signature of S3's second version: the fourth takes ten times as many lines, and Ceph takes both."""
    date = formatdate(usegmt=True)
    signature = _signature(hashlib.sha1, ceph.KEY.encode(), f"PUT\n\n\n{date}\n/preread")
    _put(f"{url}/preread", {"Date": date, "Authorization": f"AWS {ceph.KEY}:{signature}"})


def _make_container(url: str) -> None:
    date, version = formatdate(usegmt=True), "2021-08-06"
    text = "\n".join(
        ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{_ACCOUNT}/{_ACCOUNT}/preread"]
    )
    signature = _signature(hashlib.sha256, base64.b64decode(_ACCOUNT_KEY), f"{text}\nrestype:container")
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {_ACCOUNT}:{signature}"}
    _put(f"{url}/{_ACCOUNT}/preread?restype=container", headers)


def _signature(digest: Callable[..., "hashlib._Hash"], key: bytes, text: str) -> str:
    return base64.b64encode(hmac.new(key, text.encode(), digest).digest()).decode()


def _put(url: str, headers: Settings) -> None:
    # no type, as one would have to be signed
    with urlopen(Request(url, method="PUT", data=b"", headers={"Content-Type": ""} | headers), timeout=60):
        pass


@contextmanager
def _moto(scratch: Path, port: int) -> Iterator[None]:
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with running([sys.executable, "-c", program], scratch / "log"):
        yield


@contextmanager
def _s3rver(scratch: Path, port: int) -> Iterator[None]:
    """It ends now and then when a connection is cut, and finds its files when it starts again."""
    command = ["s3rver", "-d", str(scratch), "-a", "127.0.0.1", "-p", str(port), "--configure-bucket", "preread"]
    over = threading.Event()
    thread = threading.Thread(target=_keep_up, args=(command, scratch / "log", over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _keep_up(command: Sequence[str], log: Path, over: threading.Event) -> None:
    while not over.is_set():
        with running(command, log) as process:
            while process.poll() is None and not over.wait(0.2):
                pass


@contextmanager
def _azurite(scratch: Path, port: int) -> Iterator[None]:
    command = ["azurite-blob", "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    with running([*command, "--blobPort", str(port)], scratch / "log"):
        yield


@contextmanager
def _ceph(scratch: Path, port: int) -> Iterator[None]:
    with ExitStack() as processes:
        ceph.start(scratch, free_port(), port, processes)
        yield


SERVICES: Final = {
    service.name: service
    for service in (
        Service(
            "moto",
            ("moto",),
            "pip install 'moto[server]'",
            "s3://preread/store",
            _moto,
            _make_unsigned,
            _s3_told("preread"),
        ),
        Service(
            "s3rver",
            ("s3rver",),
            "npm install -g s3rver",
            "s3://preread/store",
            _s3rver,
            _make_unsigned,
            _s3_told("S3RVER"),
            creates_once=False,
        ),
        Service("ceph", ceph.PROGRAMS, ceph.ADVICE, "s3://preread/store", _ceph, _make_signed, _s3_told(ceph.KEY)),
        Service(
            "azurite",
            ("azurite-blob",),
            "npm install -g azurite",
            "az://preread/store",
            _azurite,
            _make_container,
            _azure_told,
        ),
    )
}
