"""The stage of a benchmark or demo on one machine: a cloud, an emulated link, an edge, each where it disturbs least.

The cloud and the link are processes of their own, the edge is this process. All of it is real: HTTP over sockets, real
segments in a real store; only the link's rate and delay are emulated.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preread import loop
from preread.errors import TransportError

_START_S = 20.0


@contextmanager
def served(store: Path) -> Iterator[int]:
    """Serve a store's published contexts from a process of its own, read-only; gives the port on 127.0.0.1."""
    with subprocess.Popen(
        [sys.executable, "-m", "preread.bench.stage", str(store)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline() or 0)
            deadline = time.monotonic() + _START_S
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            else:
                raise TransportError("the benchmark's cloud did not start")
            yield port
        finally:
            process.terminate()


def _serve(store: str) -> None:
    import uvicorn

    from preread.cloud.app import create_app
    from preread.cloud.publish import refuse
    from preread.store.objects import open_store

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = create_app(open_store(store), refuse)
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="error", timeout_keep_alive=75)
    loop.run(uvicorn.Server(config).serve(sockets=[listening]))


if __name__ == "__main__":
    _serve(sys.argv[1])
