"""Real replicas on a real Ray cluster: killed, taken over by another cloud, and none too many."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'preread[ray]'")

from preread.bench.replicas import is_whole, processes
from preread.cloud import client
from preread.cloud.events import Progress, Published, Request
from preread.cloud.ray.cluster import Replicas, Size
from preread.cloud.ray.model import EngineModel
from preread.cloud.ray.publisher import ReplicaPublisher
from preread.errors import UsageError
from preread.store.objects import open_store

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

COMMAND = [sys.executable, "-c", "from preread.cli import main; main()"]
LONG = " ".join(f"Lamp {n} means that part {n * 7 % 113} is to be cleaned." for n in range(80))


@contextmanager
def cloud(address: str, model: Path, store: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`preread cloud --ray`, and its URL once it is ready."""
    command = [*COMMAND, "cloud", "--ray", address, "-m", str(model), "-c", "2048", "--store", str(store)]
    wanted = ["--rungs", "lossless,q8", "--replicas", "2", "--replica-cpus", "0.2", "--port", "0", *options]
    with subprocess.Popen([*command, *wanted], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            url = re.search(r"http://[\d.]+:\d+", ready)
            assert url, ready
            yield server, url[0]
        finally:
            server.kill()


def replicas_of(name: str) -> list[int]:
    return processes(f"ray::ServeReplica:preread {name} ".encode())


def test_none_of_many_is_lost_while_replicas_are_killed(ray_cluster: str, tiny_model: Path, tmp_path: Path) -> None:
    store, source, told = open_store(str(tmp_path)), random.Random(1), list[str]()
    wanted = EngineModel(str(tiny_model), "killed", 2048, 1, ("lossless", "q8"))
    replicas = Replicas("killed", wanted, str(tmp_path), Size(2, 2, 0.2))
    publisher = ReplicaPublisher(store, replicas.make)

    async def publish(name: str) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == "encode" and source.random() < 0.1 and len(told) < 3:
                told.append(name)
                os.kill(source.choice(replicas_of("killed")), signal.SIGKILL)

        await publisher(Request(name, f"{name}. {LONG}", form="text"), progress)

    async def main() -> None:
        names = [f"document {n}" for n in range(12)]
        waiting = iter(names)

        async def work() -> None:
            for name in waiting:
                await publish(name)

        await asyncio.gather(work(), work())
        entries = await store.names()
        assert {entry.name for entry in entries} == set(names)
        assert all([await is_whole(store, entry) for entry in entries])

    asyncio.run(main())
    assert told


def test_a_cloud_that_is_killed_leaves_replicas_and_documents_to_the_next(
    ray_cluster: str, tiny_model: Path, tmp_path: Path
) -> None:
    with cloud(ray_cluster, tiny_model, tmp_path) as (server, url):
        events = client.publish(url, "long", text=LONG)
        assert any(
            isinstance(event, Progress) and event.stage == "encode" for event in iter(lambda: next(events), None)
        )
        before = replicas_of("tiny")
        server.kill()
        server.wait()
    with cloud(ray_cluster, tiny_model, tmp_path) as (_, url):
        *heard, done = client.publish(url, "long", text=LONG)
        assert isinstance(done, Published) and replicas_of("tiny") == before
        encoded = [event.done for event in heard if isinstance(event, Progress) and event.stage == "encode"]
        assert 128 not in encoded  # that one is stored
        (entry,) = client.catalogue(url).contexts
        assert entry.name == "long"


def test_several_models_are_asked_by_name(ray_cluster: str, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.symlink_to(tiny_model)
    with cloud(ray_cluster, tiny_model, tmp_path / "store", "--also", str(other)) as (_, url):
        for model, called in ((None, "tiny"), ("other", "other")):
            *_, done = client.publish(url, f"by {model}", text="A short text. " * 20, model=model)
            assert isinstance(done, Published) and done.entry.model == called
        with pytest.raises(UsageError, match="it runs: other, tiny"):
            list(client.publish(url, "by nobody", text="A short text.", model="third"))
        answer = httpx2.post(f"{url}/v1/count", json={"name": "a", "text": "x", "model": "other"}, trust_env=False)
        assert json.loads(answer.content)["model"] == "other"
