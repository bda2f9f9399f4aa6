"""scripts/hybrid: what it trains is what llama.cpp computes. It is trained by hand, in a quarter of an hour."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preread.engine.llamacpp import LlamaCpp

TEXT = "A pump moves water through a hose. A fan moves air through a filter, and a valve stops it.\n\n" * 40

torch = pytest.importorskip("torch", reason="needs torch: scripts/install dev")


def test_chunks_of_a_delta_net_are_the_same_as_token_after_token(hybrid: Any) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 2 * hybrid.CHUNK, hybrid.HEAD)
    q, k = (torch.nn.functional.normalize(part, dim=-1) for part in (q, k))
    beta, log_kept = torch.rand(2, 3, 2 * hybrid.CHUNK), -torch.rand(2, 3, 2 * hybrid.CHUNK)
    state, answers = torch.zeros(2, 3, hybrid.HEAD, hybrid.HEAD), []
    for token in range(2 * hybrid.CHUNK):
        state = state * log_kept[..., token, None, None].exp()
        wrong = v[..., token, :] - (k[..., token, None, :] @ state)[..., 0, :]
        state = state + k[..., token, :, None] * (beta[..., token, None] * wrong)[..., None, :]
        answers.append((q[..., token, None, :] @ state)[..., 0, :])
    assert torch.allclose(hybrid.delta_rule(q, k, v, beta, log_kept), torch.stack(answers, -2), atol=1e-4)


def test_llama_cpp_computes_what_was_trained(hybrid: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer, model = hybrid.trained_tokenizer([TEXT]), hybrid.Hybrid()
    for weight in model.parameters():
        if not weight.any():  # what is silent until it has learnt
            torch.nn.init.normal_(weight, std=0.03)
    hybrid.write(model, tokenizer, tmp_path / "hybrid.gguf")
    engine = LlamaCpp.open(tmp_path / "hybrid.gguf", window_tokens=512, scored_tokens=256)
    try:
        tokens = engine.tokenize(TEXT)
        assert tokens.tolist() == hybrid.ids_of(tokenizer, [TEXT]).tolist()[:-1]
        tokens = np.random.default_rng(0).integers(0, hybrid.VOCABULARY, 3 * hybrid.CHUNK).astype(np.int32)
        found = engine.session.score(tokens)
    finally:
        engine.close()
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens[None].astype(np.int64))).numpy()[0]
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.005 * expected.std()


def test_a_man_page_is_read_without_what_its_author_tells_the_typesetter(hybrid: Any) -> None:
    page = '.\\" a note\n.TH LS 1\n.SH "SEE ALSO"\n.PP\n.B ls\n\\fB\\-a\\fR,\n.nh\ndo not ignore\n'
    assert hybrid.plain(page) == "SEE ALSO\n\nls\n-a,\ndo not ignore"
