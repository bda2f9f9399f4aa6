"""The units by systemd's own tools, and as systemd runs them."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import httpx2
import pytest

from preread.cloud.client import publish

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").glob("*.service"))
BOOT = Path(__file__).parent / "booted.sh"
MOST_EXPOSED = 2.0
"""Of 10, by `systemd-analyze security`; a unit that says nothing has 9.6."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
TEXT = "Manual of the kettle. " + " ".join(f"Lamp {i} means that part {i + 3} is to be cleaned." for i in range(24))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_understood_and_exposes_little(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name  # where the program is, which is not installed
    here.write_text(unit.read_text().replace("/opt/preread/.venv/bin/preread", "/bin/true"))
    ran = subprocess.run(["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True)
    assert ran.returncode == 0 and unit.name not in ran.stderr, ran.stderr
    ran = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", ran.stdout)
    assert found and float(found[1]) < MOST_EXPOSED, ran.stdout + ran.stderr


@contextmanager
def booted(tree: Path, setup: str) -> Iterator[Callable[..., str]]:
    """systemd, as `booted.sh` boots it; gives what runs a program in there. All of it is killed at the end."""
    with TemporaryFile() as log, subprocess.Popen(["sh", str(BOOT), str(tree), setup], stdout=log, stderr=log) as top:
        try:
            first = _first_process(top, log)

            def run(*command: str) -> str:
                inside = ["nsenter", "-t", first, "-m", "-p", "-i", "-u", "-C", f"--root=/proc/{first}/root", *command]
                ran = subprocess.run(inside, capture_output=True, text=True, timeout=60)
                return ran.stdout + ran.stderr

            while "offline" in (state := run("systemctl", "is-system-running")) or "Failed" in state:
                time.sleep(0.1)
            yield run
            subprocess.run(["kill", "-9", first])  # and with it all that is in there
        finally:
            top.kill()


def _first_process(top: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """The number of systemd's process, out here."""
    while True:
        if top.poll() is not None:
            log.seek(0)
            raise AssertionError(log.read().decode())
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "cmdline").read_bytes().startswith(b"/lib/systemd/systemd\0--system\0--unit=preread"):
                    return entry.name
            except OSError:
                pass
        time.sleep(0.1)


@pytest.mark.long
def test_systemd_runs_cloud_and_edge_in_their_sandboxes(bundle: Path, tiny_model: Path) -> None:
    """With users of their own, keys that are handed over, and nothing to write to but two folders."""
    tree = bundle / "rootfs"
    program = tree / "opt/preread/.venv/bin/preread"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text((tree / "usr/local/bin/preread").read_text())
    program.chmod(0o755)
    shutil.copy(tiny_model, tree / "opt/preread/tiny.gguf")
    for unit in UNITS:
        shutil.copy(unit, tree / "opt/preread")
    options = "-c 1024"
    setup = f"""
      cp /opt/preread/*.service /etc/systemd/system
      mkdir -p /etc/preread /usr/local/lib/python3.11/dist-packages
      echo /opt/preread >/usr/local/lib/python3.11/dist-packages/preread.pth
      umask 077
      printf 'publish:writer-of-the-test\\nreader-of-the-test\\n' >/etc/preread/cloud.keys
      echo reader-of-the-test >/etc/preread/cloud.key
      echo 'PREREAD_MODEL=/opt/preread/tiny.gguf' | tee /etc/preread/cloud.env >/etc/preread/edge.env
      echo 'OPTIONS=--port 18800 --rungs lossless {options}' >>/etc/preread/cloud.env
      echo 'OPTIONS=--port 18880 {options}' >>/etc/preread/edge.env
      echo 'PREREAD_CLOUD=http://127.0.0.1:18800' >>/etc/preread/edge.env
      printf '[Unit]\\nWants=preread-cloud.service preread-edge.service\\n' >/etc/systemd/system/preread.target
    """
    with booted(tree, setup) as run:
        for name in ("cloud", "edge"):
            unit = f"preread-{name}.service"
            while (state := run("systemctl", "is-active", unit).strip()) in ("activating", "inactive"):
                assert "NRestarts=0" in run("systemctl", "show", unit, "-p", "NRestarts"), run("journalctl", "-u", unit)
                time.sleep(0.1)
            assert state == "active", run("journalctl", "--no-pager", "-u", unit)
        *_, published = publish("http://127.0.0.1:18800", "kettle", text=TEXT, api_key="writer-of-the-test")
        assert published
        ask = {"prompt": "What does lamp 7 mean?", "context": "kettle", "max_tokens": 8}
        answer = httpx2.post("http://127.0.0.1:18880/v1/completions", json=ask, trust_env=False, timeout=120).json()
        assert answer["timings"]["way"] in ("streamed", "mixed"), answer
        for name in ("edge", "cloud"):
            unit = f"preread-{name}.service"
            shown = dict(
                line.split("=", 1) for line in run("systemctl", "show", unit, "-p", "MainPID,NRestarts").splitlines()
            )
            assert shown["NRestarts"] == "0"
            inside = run("cat", f"/proc/{shown['MainPID']}/status")
            found = {key: value.split() for key, value in re.findall(r"(\w+):\t(.*)", inside)}
            assert int(found["Uid"][0]) >= 61184, "DynamicUser"
            assert found["CapEff"] == ["0" * 16] and found["NoNewPrivs"] == ["1"] and found["Seccomp"] == ["2"], inside
            run("systemctl", "stop", unit)
            ended = run("systemctl", "show", unit, "-p", "Result,ExecMainStatus")
            assert "Result=success" in ended and "ExecMainStatus=0" in ended, run("journalctl", "-u", unit)
