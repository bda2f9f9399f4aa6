from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm() -> Path:
    return Path.home() / ".cache/preread/models/smollm2-135m-instruct-q4_1.gguf"
