"""A context comes from a cloud into a server's slot, and every doubt leaves the request to the server."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from preread.attach.app import create_app
from preread.attach.opening import attached
from preread.attach.options import Options
from preread.errors import UsageError
from preread.testing.cloud import serving
from preread.via import Proxy, Via

QUESTION = {"role": "user", "content": "What is the code of the valve?"}


@contextmanager
def attach(server: Any, model: Path, cloud: str | None, folder: Path) -> Iterator[str]:
    options = Options(str(model), server.url, server.folder, cloud=cloud, folder=folder, rung="lossless", sync_s=0.1)
    with serving(create_app(lambda: attached(options))) as url:
        _until(lambda: "not tried" not in str(_state(url)["refused"]))
        yield url


def _until(there: Any) -> None:
    ends_s = time.monotonic() + 60
    while not there():
        assert time.monotonic() < ends_s, "it did not come about"
        time.sleep(0.02)


def _state(url: str) -> dict[str, Any]:
    return dict(httpx2.get(f"{url}/preread", trust_env=False).json())


def _chat(url: str, **body: Any) -> tuple[str | None, dict[str, Any]]:
    told = httpx2.post(f"{url}/v1/chat/completions", json={"messages": [QUESTION], **body}, trust_env=False, timeout=60)
    assert told.status_code == 200, told.text
    return told.headers.get("x-preread"), told.json()


def test_a_context_is_restored_once_and_the_answer_is_the_servers_own(
    small_server: Any, tiny_model: Path, cloud: Any, manual: str, tmp_path: Path
) -> None:
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        assert _state(url)["refused"] is None
        before = small_server.restored
        (way, first), (again, second) = _chat(url, context="manual"), _chat(url, context="manual")
        assert (way, again) == ("restored", "held") and small_server.restored == before + 1
        assert first["timings"]["cache_n"] > 250 and first["timings"]["prompt_n"] < 40
        system = {"role": "system", "content": manual}
        _, own = _chat(small_server.url, messages=[system, QUESTION], cache_prompt=False)
        assert first["content"] == second["content"] == own["content"]
        named = _chat(url, messages=[system, QUESTION])
        assert named[0] == "held"  # it is on this machine by now
        _, other = _chat(url)
        assert other["timings"]["cache_n"] < 30
        assert _chat(url, context="manual")[0] == "held"  # the other one had another slot
    assert not any(file.name.startswith("preread-") for file in small_server.folder.iterdir())


def test_what_a_prompt_says_fetches_nothing(
    small_server: Any, tiny_model: Path, cloud: Any, manual: str, tmp_path: Path
) -> None:
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        way, answer = _chat(url, messages=[{"role": "system", "content": manual}, QUESTION])
        assert way is None and answer["timings"]["prompt_n"] > 250
        assert "received_bytes_total 0.0" in httpx2.get(f"{url}/preread/metrics", trust_env=False).text


def test_rows_that_do_not_come_back_as_they_were_are_noticed_at_the_start(
    small_server: Any, tiny_model: Path, cloud: Any, tmp_path: Path
) -> None:
    small_server.wrong = 0.5
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        assert "next token" in _state(url)["refused"]
        way, answer = _chat(url, context="manual")
        assert way == "passed" and answer["timings"]["prompt_n"] > 200


def test_kv_of_other_weights_is_noticed_and_not_restored(
    small_server: Any, tiny_model: Path, cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preread.attach.check.MOST_APART", -1.0)  # as if the cloud's rows were far from these
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        way, answer = _chat(url, context="manual")
        assert way == "passed" and answer["timings"]["prompt_n"] > 200
        assert "computes other KV" in _state(url)["refused"]


def test_a_context_that_the_server_reads_otherwise_is_left_to_it(
    small_server: Any, tiny_model: Path, cloud: Any, tmp_path: Path
) -> None:
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        small_server.begins_otherwise = True
        assert _chat(url, context="manual")[0] == "restored"
        assert _chat(url, context="manual")[0] == "passed"
        assert "preread_attach_unfit_total 1.0" in httpx2.get(f"{url}/preread/metrics", trust_env=False).text


def test_a_server_that_comes_back_with_another_form_gets_other_files(
    small_server: Any, tiny_model: Path, cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preread.attach.trust._AGAIN_S", 0.1)
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        assert _chat(url, context="manual")[0] == "restored"
        small_server.restart(version=5)
        _until(lambda: _chat(url, context="manual")[0] == "restored")


def test_without_a_cloud_that_answers_the_server_computes(
    small_server: Any, tiny_model: Path, cloud: Any, tmp_path: Path
) -> None:
    with attach(small_server, tiny_model, cloud.url, tmp_path / "cache") as url:
        _chat(url, context="manual")
    with attach(small_server, tiny_model, "http://127.0.0.1:9", tmp_path / "cache") as url:
        assert _chat(url, context="manual")[0] == "restored"  # from this machine's disk
    for file in (tmp_path / "cache" / "held").rglob("*"):
        if file.is_file():
            file.unlink()
    with attach(small_server, tiny_model, "http://127.0.0.1:9", tmp_path / "cache") as url:
        way, answer = _chat(url, context="manual")
        assert way == "passed" and answer["timings"]["prompt_n"] > 200


def test_a_model_that_is_not_here_comes_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxies: list[Proxy | None] = []

    def pull(model: str, progress: Any, proxy: Proxy | None = None) -> Path:
        proxies.append(proxy)
        raise UsageError("it is not to be had")

    async def opened() -> None:
        async with attached(Options("small", "http://127.0.0.1:9", tmp_path, via=Via(named))):
            pass

    named = Proxy.parse("http://proxy.example:3128")
    monkeypatch.setattr("preread.attach.opening.pull", pull)
    with pytest.raises(UsageError, match="not to be had"):
        asyncio.run(opened())
    assert proxies == [named]
