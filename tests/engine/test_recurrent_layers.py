"""Families with recurrent layers: some layers are computed here, and the others' rows and states are written."""

from contextlib import closing
from pathlib import Path

import pytest

from preread.engine.base import Slice
from preread.engine.selftest import inject_layers, self_test
from preread.testing.engine import answer, read, step, text
from preread.testing.families import LAYERS
from preread.values import Span

from .test_recurrent import ALL, kept, opened, same

TOKENS, HALF = 128, 64


@pytest.mark.parametrize("name", ALL)
def test_the_first_layers_are_computed_and_the_others_written(name: str, tmp_path: Path) -> None:
    with closing(opened(name, tmp_path)) as engine:
        context, user, *scratch = engine.sequences[:4]
        tokens, prompt = text(engine, TOKENS), text(engine, 12, seed=1)
        read(engine, context, tokens[:HALF])
        read(engine, context, tokens[HALF:], HALF)
        everything = kept(engine, context, TOKENS)
        engine.cache.share(context, user, Span(0, TOKENS))
        expected = answer(engine, user, prompt, TOKENS)
        for layers in (1, LAYERS // 2, LAYERS - 1):
            for sequence in (context, user):
                engine.cache.free(sequence)
            rows, before = engine.cache.reserve(context, TOKENS), None
            inject_layers(engine, rows, *everything, Span(layers, LAYERS))
            for sequence, stretch in zip(scratch, (Span(0, HALF), Span(HALF, TOKENS)), strict=True):
                lower = engine.cache.unplaced(sequence, stretch.stop)
                if before is not None:
                    engine.cache.share(before, sequence, Span(0, stretch.start))
                these = tokens[stretch.start : stretch.stop]
                step(engine, Slice(sequence, these, stretch.start, layers=layers, rows=lower))
                engine.cache.copy(lower, rows, stretch, layers)
                before = sequence
            for sequence in scratch:
                engine.cache.free(sequence)
            assert same(kept(engine, context, TOKENS), everything), layers
            engine.cache.share(context, user, Span(0, TOKENS))
            assert answer(engine, user, prompt, TOKENS) == expected


def test_an_engine_that_copies_no_states_computes_no_layers_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened("lfm2", tmp_path)) as engine:
        assert self_test(engine).no_injection is None and engine.runner.splits_layers
        monkeypatch.setattr(engine.cache, "copy", lambda *_: None)
        assert self_test(engine).no_injection is None and not engine.runner.splits_layers
