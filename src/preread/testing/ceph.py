"""Ceph's object gateway on a cluster of one disk, in memory: S3 as people run it themselves, of Debian's packages.

It needs no root, no manager, and 200 MB; nothing of it is left when its processes have ended. Nobody has to prove who
they are but the gateway's clients.
"""

import subprocess
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from preread.errors import UsageError
from preread.testing.processes import running

PROGRAMS: Final = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
ADVICE: Final = "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw"
KEY: Final = "preread"
"""The name and the secret of the only user."""

_WITHIN_S: Final = 120
_SETTINGS: Final = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor_port}
mon initial members = a
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
ms bind msgr1 = false
ms mon client mode = crc
keyring = {folder}/keyring
run dir = {folder}
admin socket =
pid file =
log file = {folder}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 64
"""


def start(folder: Path, monitor_port: int, port: int, processes: ExitStack) -> None:
    """Start a cluster and its gateway, with `KEY` as its user; the gateway answers some seconds later.

    Args:
        folder: for its files; empty.
        monitor_port, port: of the cluster, and of the gateway.
        processes: ends them.

    Raises:
        UsageError: a step failed.
    """
    settings, fsid = folder / "ceph.conf", str(uuid.uuid4())
    settings.write_text(_SETTINGS.format(fsid=fsid, monitor_port=monitor_port, port=port, folder=folder))
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    (folder / "keyring").touch()
    of_this = ["-c", str(settings)]
    monitors = ["--addv", "a", f"[v2:127.0.0.1:{monitor_port}]"]
    _do(["monmaptool", "--create", "--fsid", fsid, *monitors, f"{folder}/monmap"])
    _do(["ceph-mon", *of_this, "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap", "--keyring", f"{folder}/keyring"])
    processes.enter_context(running(["ceph-mon", *of_this, "-i", "a", "-f"], folder / "mon.out"))
    disk = str(uuid.uuid4())
    _do(["ceph-osd", *of_this, "-i", "0", "--mkfs", "--osd-uuid", disk])
    _do(["ceph", *of_this, "osd", "new", disk, "0"])
    processes.enter_context(running(["ceph-osd", *of_this, "-i", "0", "-f"], folder / "osd.out"))
    user = ["--uid", KEY, "--display-name", KEY, "--access-key", KEY, "--secret-key", KEY]
    _do(["radosgw-admin", *of_this, "-n", "client.rgw", "user", "create", *user])
    # The gateway wants to prove who it is, whatever the settings say, and waits for ever where nobody can.
    unproven = ["--no-mon-config", "--auth_client_required", "none", "--ms_mon_client_mode", "crc"]
    processes.enter_context(running(["radosgw", *of_this, "-n", "client.rgw", "-f", *unproven], folder / "rgw.out"))


def _do(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"Ceph does not start: {command[0]} did not end in {_WITHIN_S} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise UsageError(f"Ceph does not start: {command[0]} says: {said[-1] if said else done.returncode}")
