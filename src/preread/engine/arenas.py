"""What glibc keeps of memory that threads have given back.

Each thread that allocates gets an arena of its own, which stays as large as it ever was. An edge decodes segments of
megabytes in whatever thread is free: so the same buffers would be held several times over.
"""

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
"""A long context's lossless segments then take 38 to 50 MiB at once, and 53 to 65 without a bound."""


def bound() -> None:
    """No more than two arenas in this process from now on. Without glibc nothing is done."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
