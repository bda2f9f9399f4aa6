"""The servers' memory, in which prompts are, does not end in core files."""

import subprocess
import sys

SERVER = """
import asyncio, ctypes, os, resource, signal
from contextlib import nullcontext
from starlette.applications import Starlette
from preread.cli import listen

_, most = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (most, most))

def ready():
    print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    os.kill(os.getpid(), signal.SIGTERM)

asyncio.run(listen.serve(nullcontext(Starlette()), [listen.bind("127.0.0.1", 0)], ready))
"""


def test_servers_leave_no_core_files() -> None:
    ran = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["0", "0"], "the limit of a core file, and PR_GET_DUMPABLE"
