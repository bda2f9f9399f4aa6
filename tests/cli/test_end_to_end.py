"""The commands as processes of their own, as people start them: cloud, publish, edge, ask, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from preread.cli import main; main()"]
MANUAL = "Manual of the kettle. " + " ".join(f"Lamp {i} means that part {i + 3} is to be cleaned." for i in range(12))


@pytest.fixture
def environment(tmp_path: Path, smollm: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREREAD_")}
    return kept | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PREREAD_MODELS": str(smollm.parent)}


@contextmanager
def serving(environment: dict[str, str], *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its URL, once it is ready; killed at the end if the test has not stopped it."""
    command = [*COMMAND, *arguments, "--port", "0", "-c", "1024"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            ready = server.stdout.readline()
            url = re.search(r"http://[\d.]+:\d+", ready)
            assert url, ready + server.stderr.read()
            yield server, url[0]
        finally:
            server.kill()


def test_cloud_publish_edge_ask(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "kettle.txt").write_text(MANUAL)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=True)

    keys, reader, asker = (tmp_path / name for name in ("keys", "reader", "asker"))
    for file, text in ((keys, "may-read\npublish:may-publish\n"), (reader, "may-read\n"), (asker, "secret\n")):
        file.write_text(text)
        file.chmod(0o600)
    store = ["--store", str(tmp_path / "store"), "--rungs", "q8"]
    with serving(environment, "cloud", *store, "--api-key-file", str(keys)) as (cloud, cloud_url):
        document = ["publish", str(tmp_path / "kettle.txt"), "--cloud", cloud_url, "--json"]
        with pytest.raises(subprocess.CalledProcessError) as unfit:
            run(*document, "--api-key-file", str(reader))
        assert "this needs publish" in unfit.value.stderr
        environment["PREREAD_API_KEY"] = "may-publish"
        assert set(json.loads(run(*document).stdout)["bytes"]) == {"q8"}
        del environment["PREREAD_API_KEY"]
        keyed = ["--cloud-key-file", str(reader), "--api-key-file", str(asker)]
        with serving(environment, "edge", "--cloud", cloud_url, *keyed) as (edge, edge_url):
            environment["PREREAD_API_KEY"] = "secret"
            question = ["ask", "What does lamp 7 mean?", "--context", "kettle", "--edge", edge_url, "-n", "12"]
            streamed = run(*question)
            assert streamed.stdout.strip() and "tokens streamed, q8" in streamed.stderr
            again = run(*question, "--json")
            told = json.loads(again.stdout)
            assert told["text"] == streamed.stdout.removesuffix("\n") and told["timings"]["way"] == "resident"
            environment["PREREAD_API_KEY"] = "wrong"
            with pytest.raises(subprocess.CalledProcessError) as refused:
                run(*question)
            assert refused.value.returncode == 1 and "refuses" in refused.value.stderr
            edge.send_signal(signal.SIGINT)
            assert edge.wait(20) == 130
            assert edge.stderr is not None
            log = edge.stderr.read()
            assert "Traceback" not in log and "lamp 7" not in log
        cloud.send_signal(signal.SIGTERM)
        assert cloud.wait(20) == 0
