"""Contexts are on disk before anyone asks, and requests go first. A real model, a real cloud."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from preread.edge.edge import AsyncEdge
from preread.edge.options import Near, Wishes
from preread.edge.prefetch import Prefetch
from preread.edge.uses import Uses
from preread.errors import UsageError
from preread.plan.place import Policy, Use
from preread.testing.beliefs import slow_machine
from preread.testing.proxy import Blackout, Link, Proxy
from preread.values import ContextId, ObjectId
from preread.wire import manifest as manifests
from preread.wire.digest import object_id


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for what to fetch right after the catalogue has come, as manifests come soon after."""
    monkeypatch.setattr(Prefetch.keep_going, "__defaults__", (0.05,))


@asynccontextmanager
async def opened(
    cloud_url: str, model: Path, folder: Path, policy: Policy = "recent", pins: tuple[str, ...] = ()
) -> AsyncGenerator[AsyncEdge, None]:
    near = Near(disk_bytes=1 << 30, wishes=Wishes(pins, policy))
    options: dict[str, Any] = {
        "rung": "lossless",
        "window_tokens": 1024,
        "threads": 1,
        "folder": folder,
        "sync_s": 3600,
    }
    async with AsyncEdge(str(model), cloud_url, near=near, **options) as edge:
        await edge.node.settled()
        yield edge


def segments(edge: AsyncEdge, name: str) -> list[ObjectId]:
    manifest = edge.node.contexts.named(name).manifest
    assert manifest is not None
    return [place.ref.id for place in manifests.places(manifest, "lossless")]


def missing(edge: AsyncEdge, name: str) -> int:
    held = edge.node.sources.held
    assert held is not None
    return sum(id not in held for id in segments(edge, name))


async def until_held(edge: AsyncEdge, name: str) -> None:
    async with asyncio.timeout(30):
        while missing(edge, name):
            await asyncio.sleep(0.02)


def test_pinned_contexts_are_fetched_and_a_restart_finds_them(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with Proxy(("127.0.0.1", int(cloud.url.rpartition(":")[2]))) as proxy:
            async with opened(proxy.url, tiny_model, tmp_path, "off", ("manual", "never published")) as edge:
                await until_held(edge, "manual")
            proxy.faults = [Blackout()]
            await asyncio.sleep(0)
        async with opened(proxy.url, tiny_model, tmp_path) as edge:
            assert missing(edge, "manual") == 0
            manifest = edge.node.contexts.named("manual").manifest
            assert manifest is not None
            refs = [place.ref for place in manifests.places(manifest, "lossless")]
            assert all([object_id(await edge.node.sources.get(ref)) == ref.id for ref in refs])

    asyncio.run(main())


def test_nothing_is_fetched_unasked_by_default(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(cloud.url, tiny_model, tmp_path) as edge:
            for _ in range(50):
                await asyncio.sleep(0.01)
            assert missing(edge, "manual") > 0 and edge.node.sources.held.used_bytes == 0  # type: ignore[union-attr]

    asyncio.run(main())


def test_what_was_used_is_fetched_after_a_restart(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(cloud.url, tiny_model, tmp_path, "off") as edge:
            await edge.ask("What is this?", context="manual", max_tokens=1)
        (kept,) = tmp_path.glob("held/*/uses.json")
        assert b"What" not in kept.read_bytes() and b"manual" not in kept.read_bytes()
        async with opened(cloud.url, tiny_model, tmp_path, "recent") as edge:
            await until_held(edge, "manual")

    asyncio.run(main())


def test_what_was_asked_for_by_name_goes_first(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    """While a context is loaded by name nothing else is fetched; what was begun is given up, and goes on afterwards."""

    async def main() -> None:
        link = Link(mbps=0.5)  # all would take ten seconds
        async with (
            Proxy(("127.0.0.1", int(cloud.url.rpartition(":")[2])), link) as proxy,
            opened(proxy.url, tiny_model, tmp_path, "all") as edge,
        ):
            node, whole = edge.node, len(segments(edge, "manual"))
            while missing(edge, "manual") == whole:
                await asyncio.sleep(0.02)
            with node.loading():
                assert node.busy.is_set() and not node.idle.is_set()
                proxy.link = Link()
                for _ in range(30):  # what had arrived by then is still written
                    await asyncio.sleep(0.01)
                left, before = missing(edge, "manual"), proxy.stats.bytes_down
                for _ in range(50):
                    await asyncio.sleep(0.01)
                assert 0 < left == missing(edge, "manual") and proxy.stats.bytes_down == before
            assert node.idle.is_set() and not node.busy.is_set()

    asyncio.run(main())


def test_a_context_whose_segments_are_gone_keeps_no_other_from_coming(
    cloud: Any, tiny_model: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        async with opened(cloud.url, tiny_model, tmp_path, "off", ("gone", "manual")) as edge:
            await until_held(edge, "manual")
            assert missing(edge, "gone") > 0

    cloud.publish("gone", "Nobody has this any more. " * 40)
    named = {entry.name: entry for entry in asyncio.run(cloud.store.names())}
    manifest = json.loads((cloud.folder / stored("manifests", named["gone"].manifest.id)).read_bytes())
    for segment in (cell for rung in manifest["rungs"] for row in rung["segments"] for cell in row):
        (cloud.folder / stored("segments", segment["id"])).unlink()
    asyncio.run(main())


def stored(kind: str, id: str) -> Path:
    return Path(kind) / id[:2] / id


def test_what_the_cloud_has_taken_back_is_removed(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(cloud.url, tiny_model, tmp_path, "off") as edge:
            held = edge.node.sources.held
            assert held is not None
            stray = await cloud_put(b"a segment of no context")
            held.keep(stray, b"a segment of no context")
            async with asyncio.timeout(30):
                while stray.id in held:
                    edge.node.idle.set()
                    await asyncio.sleep(0.05)

    async def cloud_put(data: bytes) -> Any:
        return await cloud.store.put("segments", data)

    asyncio.run(main())


def test_uses_outlive_a_restart_and_damage_costs_only_them(tmp_path: Path) -> None:
    path, context = tmp_path / "below" / "uses.json", ContextId(object_id(b"x"))
    uses = Uses(path)
    uses.restore()
    assert uses.saving(0) is None and uses.of(context) == Use()
    uses.used(context, 100.0)
    uses.used(context, 100.0)
    write = uses.saving(100.0)
    assert write is not None and uses.saving(100.0) is None
    write()
    again = Uses(path)
    again.restore()
    assert again.of(context) == Use(2, 100.0) and [file.name for file in path.parent.iterdir()] == ["uses.json"]
    for damage in (b"", b"{", b"[]", b'{"contexts": {"x": [1, 1]}}', b'{"contexts": {"x": ["a", 1]}}', b"\xff" * 100):
        path.write_bytes(damage)
        damaged = Uses(path)
        damaged.restore()
        assert damaged.of(context) == Use()
    unwritable = Uses(path / "below a file" / "uses.json")
    unwritable.used(context, 1)
    (unwritable.saving(1) or print)()


def test_sharing_needs_a_disk() -> None:
    with pytest.raises(UsageError, match="--disk-cache"):
        Near(share=("127.0.0.1", 1))


def test_what_is_on_disk_is_streamed_without_the_cloud(cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Fetched ahead, asked for while the cloud is gone: it comes from the disk, and the answer is the same."""

    async def main() -> None:
        async with Proxy(("127.0.0.1", int(cloud.url.rpartition(":")[2]))) as proxy:
            async with opened(proxy.url, tiny_model, tmp_path, "off") as edge:
                expected = await edge.ask("What is this?", context="manual", max_tokens=6, temperature=0)
            async with opened(proxy.url, tiny_model, tmp_path, "off", ("manual",)) as edge:
                await until_held(edge, "manual")
        async with opened(proxy.url, tiny_model, tmp_path, "off") as edge:
            assert edge.node.contexts.unreachable
            edge.node.beliefs = slow_machine(link_bytes_s=None)  # so that nothing is computed instead
            answer = await edge.ask("What is this?", context="manual", max_tokens=6, temperature=0)
            assert answer.timings.way == "streamed" and answer.text == expected.text
            edge.node.sources.held.drop([*edge.node.sources.held.ids()][:1])  # type: ignore[union-attr]
            await edge.node.forget()
            answer = await edge.ask("What is this?", context="manual", max_tokens=6, temperature=0)
            assert answer.timings.way == "computed" and answer.text == expected.text

    asyncio.run(main())
