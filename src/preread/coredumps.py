"""No copy of this process's memory ends in a file, or with another process of the same user: prompts are in it."""

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def forbid() -> None:
    """From now on this process leaves no core file (as ssh-agent and gpg-agent have it), and nobody but root reads it.

    The limit alone is not enough: where the kernel pipes core files to a program (core(5)), it is not looked at. What
    is not dumpable (prctl(2)) cannot be traced by the user's other processes either.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
