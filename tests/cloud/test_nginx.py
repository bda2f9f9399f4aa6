"""An ordinary nginx as caching proxy in front of the cloud: immutable objects need nothing but HTTP to be cached."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from preread.cloud import client
from preread.cloud.app import create_app
from preread.store.egress import CloudLink
from preread.store.fetch import fetch_all
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.store import publish
from preread.values import ObjectRef
from preread.wire import catalogue, manifest
from preread.wire.selection import EVERYTHING

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=segments:1m max_size=64m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {origin};
            proxy_cache segments;
            proxy_cache_lock on;
            add_header X-Cache $upstream_cache_status always;
        }}
        location = /v1/catalogue {{
            proxy_pass {origin};
        }}
    }}
}}
"""


@dataclass
class Counting:
    """ASGI application that counts what reaches it."""

    app: ASGIApp
    paths: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["path"])
        await self.app(scope, receive, send)


@dataclass(frozen=True)
class Site:
    """An nginx, and the cloud behind it."""

    url: str
    store: Objects
    origin: Counting


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = open_store(str(tmp_path / "store"))
    origin = Counting(create_app(store, RandomPublisher(store)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(origin) as url:
        config = tmp_path / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(CONFIG.format(folder=tmp_path, port=port, origin=url, user=user))
        process = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.PIPE)
        try:
            wait_for(port, process)
            yield Site(f"http://127.0.0.1:{port}", store, origin)
        finally:
            process.terminate()
            process.communicate()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Connect until nginx listens."""
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.01)
    pytest.fail(f"nginx did not start: {process.communicate()[1].decode()}")


@pytest.fixture
def ref(site: Site) -> ObjectRef:
    return asyncio.run(site.store.put("segments", os.urandom(200_000)))


def test_second_request_is_answered_by_the_cache(site: Site, ref: ObjectRef) -> None:
    url = f"{site.url}/v1/segments/{ref.id}"
    first, second = httpx2.get(url, trust_env=False), httpx2.get(url, trust_env=False)
    assert [answer.headers["x-cache"] for answer in (first, second)] == ["MISS", "HIT"]
    assert site.origin.paths == [f"/v1/segments/{ref.id}"]
    assert first.content == second.content and len(second.content) == ref.size_bytes
    assert second.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert second.headers["etag"] == f'"{ref.id}"'


def test_ranges_and_conditions_are_answered_by_the_cache(site: Site, ref: ObjectRef) -> None:
    url = f"{site.url}/v1/segments/{ref.id}"
    whole = httpx2.get(url, trust_env=False).content
    part = httpx2.get(url, headers={"Range": "bytes=1000-1999"}, trust_env=False)
    assert (part.status_code, part.content, part.headers["x-cache"]) == (206, whole[1000:2000], "HIT")
    fresh = httpx2.get(url, headers={"If-None-Match": f'"{ref.id}"'}, trust_env=False)
    assert (fresh.status_code, fresh.headers["x-cache"]) == (304, "HIT")
    assert len(site.origin.paths) == 1


def test_absence_is_not_cached(site: Site, ref: ObjectRef) -> None:
    data = os.urandom(1000)
    other = asyncio.run(open_store("memory:").put("segments", data))
    url = f"{site.url}/v1/segments/{other.id}"
    assert httpx2.get(url, trust_env=False).status_code == 404
    asyncio.run(site.store.put("segments", data))
    assert httpx2.get(url, trust_env=False).content == data


def test_a_second_edge_costs_the_cloud_a_catalogue_and_nothing_else(site: Site) -> None:
    publish(site.store, "manual", "a shared context that two edges read")

    async def read() -> int:
        async with CloudLink(site.url) as link:
            await link.warm(4)
            found = await link.catalogue()
            assert found is not None
            (entry,) = catalogue.loads(found[0]).contexts
            document = manifest.loads(await link.get(catalogue.manifest_ref(entry)))
            refs = [place.ref for place in manifest.places(document, "q4")]
            return sum([len(data) async for _, data in fetch_all(link, refs)])

    assert asyncio.run(read()) > 0
    asked = len(site.origin.paths)
    assert asyncio.run(read()) > 0
    assert set(site.origin.paths[asked:]) == {"/v1/catalogue"}


def test_changes_come_through_as_they_are_told(site: Site) -> None:
    """Though answers are buffered by default, and the connection to the cloud is closed after each."""

    async def told() -> list[str]:
        seen = list[str]()
        async with CloudLink(site.url) as link:
            async for event in link.changes("", EVERYTHING, 60.0):
                seen.append(event.version)
                if len(seen) == 3:
                    return seen
                asking = partial(client.publish, site.url, f"name {len(seen)}", text="a text")
                await asyncio.to_thread(lambda: list(asking()))  # noqa: B023
        return seen

    versions = asyncio.run(asyncio.wait_for(told(), 120))
    assert versions[0] == "" and len(set(versions)) == 3
