import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TARGET = Path(__file__).parents[1] / "fuzz" / "decode.py"


@pytest.fixture
def target() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_decode", TARGET)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fuzz_target_takes_its_seeds(target: ModuleType) -> None:
    assert len(target.seeds()) == 12
    for seed in target.seeds():
        target.one_input(seed)


def test_two_seconds_of_mutations_do_no_harm(target: ModuleType) -> None:
    assert target.run(2.0, seed=1) > 50
