"""Contexts come by name into host memory, with the KV that was published, or it is said why they do not."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from preread.edge.published import OwnModel
from preread.engine.llamacpp import LlamaCpp
from preread.store.egress import CloudLink
from preread.values import Fingerprint, Span, alike
from preread.vllm import incoming
from preread.vllm.incoming import Incoming
from preread.vllm.plan import Arrived

if TYPE_CHECKING:
    from tests.conftest import Cloud


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[LlamaCpp]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=2048)) as engine:
        yield engine


def own(engine: LlamaCpp, fingerprint: Fingerprint | None = None, *same: Fingerprint) -> OwnModel:
    of = engine.spec
    return OwnModel(fingerprint or of.fingerprint, of.vocabulary, alike(of.geometry), of.window_tokens, (), same)


def waited(coming: Incoming, name: str) -> Arrived | str:
    """What becomes of a context."""
    deadline_s = time.monotonic() + 60
    while (found := coming.ask(name)) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "edge"


def test_what_was_published_comes_and_the_second_time_at_once(cloud: "Cloud", engine: LlamaCpp, folder: Path) -> None:
    with Incoming(CloudLink(cloud.url), folder, own(engine), engine.embeddings, "lossless", 0.01) as coming:
        found = waited(coming, "manual")
        assert isinstance(found, Arrived) and found.rung == "lossless"
        engine.session.prefill(found.tokens)
        exact = engine.session.export(Span(0, len(found.tokens)), Span(0, engine.spec.geometry.layers))
        assert np.array_equal(found.k, exact.k) and np.array_equal(found.v, exact.v)
        assert coming.ask("manual") is found


def test_what_is_published_anew_under_its_name_comes_instead(
    cloud: "Cloud", engine: LlamaCpp, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "SYNC_S", 0.05)
    cloud.publish("news", "The lamp is red. " * 8)
    with Incoming(CloudLink(cloud.url), folder, own(engine), engine.embeddings, "lossless", 0.01) as coming:
        first = waited(coming, "news")
        cloud.publish("news", "The lamp is green by now. " * 8)
        deadline_s = time.monotonic() + 60
        while (found := waited(coming, "news")) is first:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert isinstance(first, Arrived) and isinstance(found, Arrived)
        assert not np.array_equal(found.tokens, first.tokens)


def test_what_another_file_with_the_same_weights_published_comes_too(
    cloud: "Cloud", engine: LlamaCpp, folder: Path
) -> None:
    other, same = Fingerprint("e" * 64), engine.spec.fingerprint
    with Incoming(CloudLink(cloud.url), folder, own(engine, other, same), engine.embeddings, None, 0.01) as coming:
        assert isinstance(waited(coming, "manual"), Arrived)


def test_why_a_context_does_not_come_is_told(cloud: "Cloud", engine: LlamaCpp, folder: Path) -> None:
    stranger = own(engine, Fingerprint("e" * 64))
    with Incoming(CloudLink(cloud.url), folder, stranger, engine.embeddings, None, 0.01) as coming:
        assert "unknown context" in str(waited(coming, "absent"))
        assert "another model" in str(waited(coming, "manual"))


def test_nobody_waits_for_ever_and_those_that_wait_for_others_get_their_turn(
    cloud: "Cloud", engine: LlamaCpp, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "PATIENCE_S", 0.0)
    with Incoming(CloudLink(cloud.url), folder, own(engine), engine.embeddings, None, 0.01) as coming:
        names = [f"absent {n}" for n in range(20)]
        told = {name: str(waited(coming, name)) for name in names}
        assert all("did not come within" in why or "unknown context" in why for why in told.values())
