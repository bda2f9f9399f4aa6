"""The cloud's page: what is published, what is being published, how much is stored, and who may see it."""

import asyncio
from pathlib import Path

import httpx2

from preread.cloud.app import create_app
from preread.cloud.events import Progress, Request
from preread.cloud.page import CloudPage
from preread.page.values import Publication, Published
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.store.objects import open_store
from preread.testing.cloud import RandomPublisher, serving


def test_it_tells_what_is_published_what_is_on_its_way_and_how_much_is_stored(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    publish = RandomPublisher(store)
    going = (("next", Progress("prefill", 3, 10)), ("last", Progress("queue", 0, 1)))
    page = CloudPage(store, lambda: going)

    async def main() -> list[Published]:
        seen = []
        for name, text in (("manual", "A long shared context."), ("again", "A long shared context."), ("b", "Another")):
            await publish(Request(name, text, form="text"), lambda *_: None)
            shown = (await page.look("anybody")).sections["published"]
            assert isinstance(shown, Published)
            seen.append(shown)
        await store.remove_name("b")
        last = (await page.look("anybody")).sections["published"]
        assert isinstance(last, Published)
        return [*seen, last]

    one, two, three, without = asyncio.run(main())
    (context,) = one.contexts.shown
    assert (context.name, context.tokens, context.mode) == ("manual", 22, "exact") and context.at is not None
    assert [rung.name for rung in context.rungs] == ["lossless", "q4"] and context.rungs[0].dloss == 0
    assert one.store_bytes == two.store_bytes, "objects that two names lead to are stored once"
    objects = (file for kind in ("segments", "tokens", "manifests") for file in (tmp_path / "store" / kind).rglob("*"))
    assert without == two and three.store_bytes > two.store_bytes
    assert without.store_bytes == sum(file.stat().st_size for file in objects if file.is_file())
    assert one.publications == (Publication("next", "prefill", 3, 10), Publication("last", "queue", 0, 1))


def test_where_there_are_keys_it_is_empty_and_what_is_in_it_needs_one_that_reads(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    asyncio.run(RandomPublisher(store)(Request("manual", "A text.", form="text"), lambda *_: None))
    access = Access(Keys.of(["reader", "ask:asker"], "read"))
    with serving(create_app(store, RandomPublisher(store), access=access)) as url:

        def get(path: str, key: str = "") -> httpx2.Response:
            return httpx2.get(url + path, headers={"Authorization": f"Bearer {key}"} if key else {}, trust_env=False)

        assert get("/").status_code == 200 and "manual" not in get("/").text
        assert get("/page/state").status_code == 401 and get("/page/state", "asker").status_code == 403
        assert "manual" in get("/page/state", "reader").json()["published"]
