"""Telling systemd how far a service is, where it asked to be told (`Type=notify`): sd_notify(3)."""

import logging
import os
import socket
from typing import Final

_SOCKET: Final = "NOTIFY_SOCKET"
_log = logging.getLogger(__name__)


def tell(state: str) -> None:
    """Say for example `READY=1`; without a service manager nothing is said."""
    address = os.environ.get(_SOCKET)
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        _log.warning("systemd cannot be told %s: %s", state, error)


def watchdog_s() -> float | None:
    """How often to say that this process lives (`WATCHDOG=1`), which is twice as often as it must; None: never."""
    asked, of = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not asked.isdecimal() or int(asked) == 0 or of != str(os.getpid()):
        return None
    return int(asked) / 2e6
