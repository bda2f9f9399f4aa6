"""Fuzz target: whatever bytes come as a profile, a payload or a file of a fit, they are read or refused (CorruptData).

    python tests/fuzz/decode.py [seconds]

With atheris installed it is guided by coverage; without, valid objects are mutated at random. It runs until the time is
over, and dies at the first other exception, or when decoding takes more memory than its block could need.
"""

import random
import sys
import time
import tracemalloc

import numpy as np

from preread.codec import profile_bytes as profiles
from preread.codec.fitted import Fitted
from preread.codec.ladder import codec, ladder
from preread.codec.profile import prepare
from preread.codec.state import state_codec
from preread.errors import CorruptData, PrereadError
from preread.fit.fits import described
from preread.testing.codec import sample_block
from preread.testing.fits import FILES
from preread.testing.profile import plain_profile
from preread.testing.states import sample_state
from preread.values import Fingerprint, Geometry, Span, StateShape
from preread.wire.fits import Fits, dumps

GEOMETRY = Geometry(2, 1, 8)
TOKENS = Span(0, 24)
STATE = StateShape(6, 8, 8)
STATE_RUNGS = "f32", "s4"
_BOUND_BYTES = 8 << 20


def seeds() -> list[bytes]:
    """A tag byte and a valid object.

    0 for a profile, 1 for a fitted payload, 2 for a file of a fit, 3 … for payloads of plain rungs, then of states.
    """
    known = plain_profile(Fingerprint("f" * 64), GEOMETRY, 8, {"thin": (0.1, 0.0)})
    block = sample_block((1, 1, len(TOKENS), 8))
    fitted = Fitted(prepare(known, np.ones((32, 8), np.float32)), 0)
    plain = [bytes([3 + i]) + codec(rung).encode(block) for i, rung in enumerate(ladder())]
    fits = [b"\2" + data for data in FILES.values()]
    state, first = sample_state(2, STATE), 3 + len(ladder())
    states = [bytes([first + i]) + state_codec(rung).encode(state) for i, rung in enumerate(STATE_RUNGS)]
    return [b"\0" + profiles.dumps(known), b"\1" + fitted.encode(block), *fits, *plain, *states]


def one_input(data: bytes) -> None:
    """Try one input."""
    tag, rest = (data[0] if data else 0) % (3 + len(ladder()) + len(STATE_RUNGS)), data[1:]
    try:
        if tag == 0:
            known = profiles.loads(rest)
            if known.geometry == GEOMETRY and known.rungs and len(known.feature_mean) == 8:
                Fitted(prepare(known, np.ones((32, 8), np.float32)), 0).decode(b"\0" * 40, TOKENS, Span(0, 1), GEOMETRY)
        elif tag == 1:
            known = plain_profile(Fingerprint("f" * 64), GEOMETRY, 8, {"thin": (0.1, 0.0)})
            back = Fitted(prepare(known, np.ones((32, 8), np.float32)), 0).decode(rest, TOKENS, Span(0, 1), GEOMETRY)
            assert np.isfinite(back.k).all() and np.isfinite(back.v).all()
        elif tag == 2:
            dumps(Fits((described(rest),)))
        elif tag >= 3 + len(ladder()):
            state = state_codec(STATE_RUNGS[tag - 3 - len(ladder())]).decode(rest, (1, 3), 512, STATE)
            assert np.isfinite(state.r).all() and np.isfinite(state.s).all()
        else:
            back = codec(ladder()[tag - 3]).decode(rest, TOKENS, Span(0, 1), GEOMETRY)
            assert np.isfinite(back.k).all() and np.isfinite(back.v).all()
    except CorruptData:
        pass


def mutated(source: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(out)) if out else 0
        kind = source.randrange(4)
        if kind == 0 and out:
            out[at] = source.randrange(256)
        elif kind == 1:
            del out[at : at + source.randint(1, 16)]
        elif kind == 2:
            out[at:at] = out[at : at + source.randint(1, 16)]
        else:
            out[at:at] = source.randbytes(source.randint(1, 8))
    return bytes(out)


def run(seconds: float, seed: int = 0) -> int:
    """Mutate valid objects at random for a while; how many were tried."""
    source, known, tried = random.Random(seed), seeds(), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutated(source, source.choice(known))
        data = known[0][:1] + data[1:] if not data else data
        tracemalloc.start()
        one_input(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > _BOUND_BYTES:
            raise PrereadError(f"{peak} bytes were allocated for {data[:32].hex()}…")
        tried += 1
    return tried


if __name__ == "__main__":
    try:
        import atheris
    except ImportError:
        print(f"{run(float(sys.argv[1]) if len(sys.argv) > 1 else 60)} inputs tried, none did harm")
    else:
        atheris.instrument_all()
        atheris.Setup(sys.argv[:1], one_input)
        atheris.Fuzz()
