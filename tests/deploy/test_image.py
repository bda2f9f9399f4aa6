"""The image by the tools of others, and a cloud and an edge that run in it."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import containers
import httpx2
import pytest

from preread.cloud.client import publish

pytestmark = pytest.mark.long
TEXT = "Manual of the kettle. " + " ".join(f"Lamp {i} means that part {i + 3} is to be cleaned." for i in range(24))


def test_others_read_what_it_says_of_itself(image: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not here: on Debian, apt-get install skopeo")
    ran = subprocess.run(["skopeo", "inspect", "--config", f"oci:{image}"], capture_output=True, text=True, check=True)
    told = json.loads(ran.stdout)
    assert told["config"]["User"] == "65532:65532" and told["config"]["Entrypoint"][-1] == "preread"
    assert told["config"]["Labels"]["org.opencontainers.image.title"] == "preread"
    # every layer is what its digests say, whoever copies it
    subprocess.run(
        ["skopeo", "copy", f"oci:{image}", f"dir:{image.parent / 'copied'}"], check=True, capture_output=True
    )
    shutil.rmtree(image.parent / "copied")


def test_a_cloud_and_an_edge_run_in_it(bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("models", "store", "clouds", "edges"):
        (tmp_path / name).mkdir()
    shutil.copy(tiny_model, tmp_path / "models/tiny.gguf")
    models, own = {"/models": tmp_path / "models"}, ("--model", "/models/tiny.gguf", "-c", "1024", "--port", "0")
    cloud_folders = {**models, "/var/lib/preread": tmp_path / "store", "/var/cache/preread": tmp_path / "clouds"}
    edge_folders = {**models, "/var/cache/preread": tmp_path / "edges"}
    with containers.container(bundle, "cloud", ("cloud", *own, "--rungs", "lossless"), cloud_folders) as cloud:
        cloud_url = url_of(cloud)
        *_, published = publish(cloud_url, "kettle", text=TEXT)
        assert published
        with containers.container(bundle, "edge", ("edge", *own, "--cloud", cloud_url), edge_folders) as edge:
            edge_url = url_of(edge)
            assert httpx2.get(f"{edge_url}/readyz", trust_env=False).json() == {"status": "ready"}
            ask = {"prompt": "What does lamp 7 mean?", "context": "kettle", "max_tokens": 8}
            answer = httpx2.post(f"{edge_url}/v1/completions", json=ask, trust_env=False, timeout=120).json()
            assert answer["timings"]["way"] in ("streamed", "mixed"), answer
            edge.send_signal(signal.SIGTERM)
            assert edge.wait(60) == 0
        cloud.send_signal(signal.SIGTERM)
        assert cloud.wait(60) == 0
    assert list((tmp_path / "store").rglob("*.json")), "the store is in its volume"


def url_of(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None and server.stderr is not None
    line = server.stdout.readline()
    found = re.search(r"http://127[\d.]+:\d+", line)
    assert found, line + server.stderr.read()
    return found[0]
