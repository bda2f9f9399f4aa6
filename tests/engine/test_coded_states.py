"""What codecs leave of states goes into families that have some: random weights say that it works, not its cost."""

from collections.abc import Iterator
from contextlib import closing

import llama_cpp
import numpy as np
import pytest

from preread.codec.state import state_codec, state_rungs
from preread.engine.llamacpp import LlamaCpp
from preread.engine.states import having_state
from preread.fit.quality import compare, reference
from preread.testing.engine import text
from preread.testing.families import LAYERS, write_family
from preread.values import Span

FAMILIES = "falcon-h1", "lfm2", "mamba2", "qwen35", "rwkv7"
TOKENS, TAIL = 90, 16


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    if not hasattr(llama_cpp, "llama_model_init_from_user"):
        pytest.skip("this build of llama.cpp makes no models")
    path = write_family(tmp_path_factory.mktemp("families") / "one.gguf", request.param)
    with closing(LlamaCpp.open(path, window_tokens=512, scored_tokens=TAIL, trusted=True)) as engine:
        yield engine


def test_each_codec_keeps_less_of_a_state_than_the_one_before(family: LlamaCpp) -> None:
    session = family.session
    session.prefill(text(family, TOKENS))
    rows = session.export(Span(0, TOKENS), Span(0, LAYERS))
    states = session.export_state(having_state(family.spec.layers))
    (shape,) = {layer.state for layer in family.spec.layers if layer.state is not None}
    tail = text(family, TAIL, seed=1)
    exact, divergences, sizes = reference(family, tail), [], []
    for rung in state_rungs():
        payload = state_codec(rung).encode(states)
        session.reserve(TOKENS)
        if rows.k.size:
            session.inject(rows)
        session.inject_state(state_codec(rung).decode(payload, states.layers, TOKENS, shape))
        session.open_layers(LAYERS)
        score = compare(session.score(tail), tail, exact)
        divergences.append(float(score.kl.mean()))
        sizes.append(len(payload))
    assert divergences[0] == 0 and np.diff(divergences).min() > 0
    assert sizes == sorted(sizes, reverse=True)
