"""What many tests share: real models, and a cloud and an edge that are served over real HTTP for the whole session."""

import asyncio
import ctypes
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from preread.align.mapping_bytes import Kept
from preread.cloud import client
from preread.cloud.app import create_app as cloud_app
from preread.cloud.events import Published
from preread.cloud.serve import EnginePublisher
from preread.compiled import VECTOR_BITS
from preread.edge.app import create_app as edge_app
from preread.edge.edge import AsyncEdge
from preread.engine.download import locate, pull
from preread.engine.llamacpp import LlamaCpp
from preread.engine.worker import Worker
from preread.fit.map import fit_mappings
from preread.fit.sample import TAIL_TOKENS
from preread.fit.text import Text
from preread.store.objects import Objects, open_store
from preread.testing.cloud import serving
from preread.testing.tiny import write_tiny

if TYPE_CHECKING:
    from preread.engine.hf import Frozen

T = TypeVar("T")

CPUINFO = Path("/proc/cpuinfo")
FLAGS = frozenset(CPUINFO.read_text().split()) if CPUINFO.exists() else frozenset[str]()

# A busy machine is slow; that is not what these tests are about.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

WINDOW_TOKENS = 2048
VOCABULARY = 4096
PARTS = ("filter", "pump", "fan", "valve", "sensor", "display", "battery", "hose", "lid", "motor")


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A command that a test runs in this process chooses what is logged; that is not to last."""
    logger = logging.getLogger("preread")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(params=VECTOR_BITS)
def vector_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How wide vectors compiled parts use: the test is run with each width that they have code for."""
    needed = {512: "avx512vl", 256: "avx2"}.get(bits := request.param)
    if needed and needed not in FLAGS:
        pytest.skip(
            f"this processor has no {needed}: its code is the same with narrower vectors, or run by hand elsewhere"
        )
    monkeypatch.setenv("PREREAD_VECTOR_BITS", str(bits))
    return int(bits)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    """Compile sources after replacing text in them, with gcc and the flags given; a test is skipped without gcc."""

    def build(folder: Path, sources: Sequence[str], replaced: Mapping[str, str], *flags: str) -> ctypes.CDLL:
        if not (platform.machine() == "x86_64" and shutil.which("gcc")):
            pytest.skip("needs x86-64 and gcc")
        made = tmp_path_factory.mktemp("built")
        for name in sources:
            text = (folder / name).read_text()
            for old, new in replaced.items():
                text = text.replace(old, new)
            (made / name).write_text(text)
        command = ["gcc", "-O2", "-std=gnu11", "-Wno-psabi", "-fPIC", "-shared", f"-I{folder}", *flags, "-o", "part.so"]
        subprocess.run([*command, *sources], cwd=made, check=True)
        return ctypes.CDLL(str(made / "part.so"))

    return build


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The smallest model."""
    return pull("smollm2-135m-instruct", lambda *_: None)


@pytest.fixture(scope="session")
def qwen() -> Path:
    """A model of another family."""
    path = locate("qwen2.5-coder-0.5b-instruct")
    if path is None:
        pytest.skip("qwen2.5-coder-0.5b-instruct is not here: preread models pull qwen2.5-coder-0.5b-instruct")
    return path


@pytest.fixture(scope="session")
def manual() -> str:
    """The text that the cloud has published as "manual": a good 300 tokens."""
    sections = (
        f"{i}. The {part} has code {100 + 7 * i}. Change it every {i + 2} weeks; before that, press its key twice."
        for i, part in enumerate(PARTS, 1)
    )
    return "Manual of the air cleaner.\n" + "\n".join(sections)


@pytest.fixture(scope="session")
def tiny_model(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that is quick to run."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm, most_tokens=VOCABULARY, hidden=512)


@pytest.fixture(scope="session")
def tiny_frozen(tiny_model: Path) -> "Frozen":
    """The same model, to be differentiated."""
    for needed in ("torch", "transformers"):
        pytest.importorskip(needed, reason="teaching needs PyTorch and transformers: pip install 'preread[cloud]'")
    from preread.engine.hf import load

    return load(tiny_model, near=True)


@pytest.fixture(scope="session")
def tiny_mapping(tiny_model: Path) -> Kept:
    """From that model to itself, from layer 4 of 8 on."""
    text = Text("squares", (" ".join(str(n * n % 9973) for n in range(1500)),))
    with closing(LlamaCpp.open(tiny_model, window_tokens=1024, scored_tokens=TAIL_TOKENS)) as engine:
        (fit,) = fit_mappings(engine, engine, text, (4,), lambda *_: None, 6)
        of = engine.spec.fingerprint
        return Kept(fit.mapping, of, of, engine.spec.geometry, text.label, 0.0, 0.0, 1)


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud in a thread of its own. It has published one context, "manual"."""

    url: str
    store: Objects
    folder: Path

    def publish(self, name: str, text: str) -> Published:
        """Publish through the API, as the command line does."""
        *_, last = client.publish(self.url, name, text=text)
        assert isinstance(last, Published)
        return last


@contextmanager
def running(model: Path, name: str, manual: str, folder: Path) -> Iterator[Cloud]:
    """A cloud that runs this model."""
    store = open_store(str(folder))
    engine, worker = LlamaCpp.open(model, name=name, window_tokens=WINDOW_TOKENS), Worker()
    with serving(cloud_app(store, EnginePublisher(engine, worker, store, ("lossless", "q8")))) as url:
        cloud = Cloud(url, store, folder)
        cloud.publish("manual", manual)
        yield cloud
    worker.close()
    engine.close()


@pytest.fixture(scope="session")
def cloud(tiny_model: Path, manual: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Runs the model of random weights: for what is about bytes, not about what is said."""
    with running(tiny_model, "tiny", manual, tmp_path_factory.mktemp("store")) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def smollm_cloud(smollm: Path, manual: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Runs SmolLM2."""
    with running(smollm, "smollm2-135m-instruct", manual, tmp_path_factory.mktemp("store")) as cloud:
        yield cloud


class LoopEdge(AsyncEdge):
    """Remembers the loop that it was opened in."""

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        return await super().__aenter__()


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge that is served in a thread of its own; `opened` is the edge itself, which belongs to that thread."""

    url: str
    opened: LoopEdge

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a coroutine in the edge's loop; it must not take a minute."""
        return asyncio.run_coroutine_threadsafe(work(), self.opened.loop).result(60)

    def forget(self) -> None:
        """The next question has to get its context anew."""
        self.run(self.opened.node.forget)


@pytest.fixture(scope="session")
def edge(smollm_cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Streams the lossless rung, so that answers are those of local prefill, bit by bit, and keeps no conversations."""
    opened = LoopEdge(
        "smollm2-135m-instruct",
        smollm_cloud.url,
        rung="lossless",
        keep_conversations_s=0,
        window_tokens=WINDOW_TOKENS,
        folder=tmp_path_factory.mktemp("edge"),
    )
    with serving(edge_app(opened)) as url:
        yield Edge(url, opened)


@pytest.fixture(scope="session")
def hybrid() -> Any:
    """scripts/hybrid as a module."""
    pytest.importorskip("torch", reason="needs torch: scripts/install dev")
    loader = SourceFileLoader("hybrid", str(Path(__file__).parents[1] / "scripts/hybrid"))
    spec = spec_from_loader("hybrid", loader)
    assert spec is not None
    module = module_from_spec(spec)
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = wrote
    return module


@pytest.fixture(scope="session")
def untrained(hybrid: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid of scripts/hybrid's shape and with a tokenizer of its own, which knows nothing."""
    import torch

    torch.manual_seed(0)
    model = hybrid.Hybrid()
    for weight in model.parameters():
        if not weight.any():  # what is silent until it has learnt
            torch.nn.init.normal_(weight, std=0.03)
    path = tmp_path_factory.mktemp("hybrid") / "untrained.gguf"
    words = " and ".join(f"A {part} is moved by a {other}." for part in PARTS for other in PARTS)
    hybrid.write(model, hybrid.trained_tokenizer([words]), path)
    return path
