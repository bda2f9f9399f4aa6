"""Every engine does what `testing/engine.py` says: llama.cpp, also with windows, and the fake of the loop's tests.

With recurrent layers it does so but for what takes a part of a sequence, or moves rows without the state beside them.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from preread.engine.base import Engine
from preread.engine.llamacpp import LlamaCpp
from preread.testing.engine import EngineContract
from preread.testing.fake_engine import FakeEngine
from preread.testing.families import write_family


class TestFake(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return FakeEngine()


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Engine]:
    with closing(LlamaCpp.open(tiny_model, window_tokens=768, kv_memory_bytes=0)) as engine:
        yield engine


@pytest.fixture(scope="module")
def small(smollm: Path) -> Iterator[Engine]:
    with closing(LlamaCpp.open(smollm, window_tokens=768, kv_memory_bytes=0)) as engine:
        yield engine


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_family(tmp_path_factory.mktemp("families") / "gemma3.gguf", "gemma3")
    with closing(LlamaCpp.open(path, window_tokens=768, kv_memory_bytes=0, trusted=True)) as engine:
        yield engine


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_family(tmp_path_factory.mktemp("families") / "lfm2.gguf", "lfm2")
    with closing(LlamaCpp.open(path, window_tokens=768, kv_memory_bytes=2**22, trusted=True)) as engine:
        yield engine


class TestTiny(EngineContract):
    rounding_nats, drawn_alike = 0.02, 4

    @pytest.fixture
    def engine(self, tiny: Engine) -> Engine:
        return tiny


class TestWindowed(EngineContract):
    rounding_nats, drawn_alike = 0.02, 4

    @pytest.fixture
    def engine(self, windowed: Engine) -> Engine:
        assert any(windowed.spec.windows)
        return windowed


@pytest.mark.long
class TestSmolLM2(EngineContract):
    rounding_nats, drawn_alike = 0.5, 1  # four bits a weight, and what it reads is no language

    @pytest.fixture
    def engine(self, small: Engine) -> Engine:
        return small


class TestRecurrent(EngineContract):
    """What is about parts of sequences, or about rows alone, `test_recurrent.py` says in other words."""

    rounding_nats, drawn_alike = 0.02, 4

    @pytest.fixture
    def engine(self, recurrent: Engine) -> Engine:
        return recurrent


_IN_PART = (
    "test_a_block_that_does_not_fit_is_refused",
    "test_a_context_stays_for_who_shares_it_when_it_is_freed_itself",
    "test_a_part_of_a_context_can_be_shared",
    "test_a_step_that_is_cancelled_at_the_gate_leaves_nothing",
    "test_a_step_waits_for_each_layer",
    "test_a_step_without_free_cells_fails_and_leaves_everything_as_it_was",
    "test_a_stretch_can_be_computed_and_the_rest_injected",
    "test_a_stretch_that_was_taken_can_be_put_back",
    "test_an_injected_context_gives_the_very_bits_of_a_computed_one",
    "test_drafts_give_the_tokens_of_plain_decoding",
    "test_drafts_give_the_tokens_that_a_seed_gives",
    "test_drafts_of_many_are_verified_in_one_step",
    "test_export_gives_what_was_injected",
    "test_first_layers_can_be_computed_and_the_others_injected",
    "test_first_layers_that_are_computed_beside_others_are_the_same",
    "test_layers_that_are_open_from_the_start_are_not_waited_for",
    "test_nothing_is_chosen_beyond_an_answers_length",
    "test_putting_back_without_free_cells_fails_and_leaves_everything_as_it_was",
    "test_rows_come_in_any_order_and_from_many_threads",
    "test_rows_that_nothing_was_computed_into_are_not_copied",
    "test_values_that_are_not_finite_are_refused",
    "test_what_is_cut_can_be_computed_again",
)
for _name in _IN_PART:
    assert hasattr(EngineContract, _name)
    setattr(TestRecurrent, _name, None)
