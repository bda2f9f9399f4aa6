"""How long llama.cpp's threads wait for each other awake.

While a context loads, its segments are decoded on the same processors that compute the prompt. A thread of llama.cpp
that is kept from its processor by that is waited for by the others; GNU OpenMP has them do so in a loop for some
milliseconds, on processors that the decoding could have had.
"""

import os
from collections.abc import MutableMapping
from typing import Final

SPINS: Final = 2_000
"""Rounds in that loop before a thread sleeps, some 0.1 ms; of themselves they are 300,000. With none every token of an
answer is dearer, since who sleeps has to be woken; with 10,000 an answer beside a load stood still longer."""


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have a thread sleep soon, unless whoever runs the program has said how threads are to wait.

    For programs, before anything loads llama.cpp: it holds for the whole process, and those that it starts.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))
