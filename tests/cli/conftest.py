"""Running the command line as a shell does, in this process: what it prints, and its exit code."""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from preread.cli import main
from preread.cloud.app import create_app
from preread.store.objects import open_store
from preread.testing.cloud import RandomPublisher, serving


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def preread(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`preread("publish", "-", stdin=b"...")`. No environment variable of preread's is set."""
    for name in ("PREREAD_CLOUD", "PREREAD_API_KEY", "PREREAD_API_KEYS", "PREREAD_MODEL"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        captured = capfd.readouterr()
        code = left.value.code or 0
        assert isinstance(code, int)
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def quick_cloud(tmp_path: Path) -> Iterator[str]:
    """URL of a cloud without a model: every letter is a token, and there is room for 4,096."""
    store = open_store(str(tmp_path / "store"))
    publisher = RandomPublisher(store)
    with serving(create_app(store, publisher, counter=publisher.counted)) as url:
        yield url
