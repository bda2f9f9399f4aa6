"""Who is taken for a neighbour where anybody can announce anything."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from preread.edge import neighbours as module
from preread.edge.neighbours import MOST_NEIGHBOURS, Neighbours
from preread.testing.cloud import FINGERPRINT
from preread.testing.edges import serving_here

ME, OTHER = "0" * 16, "1" * 16


def with_neighbours(work: Callable[[Neighbours], object], *urls: str) -> None:
    async def main() -> None:
        neighbours = Neighbours(ME, FINGERPRINT, site_key=None, sharing=False, urls=urls)
        try:
            result = work(neighbours)
            if asyncio.iscoroutine(result):
                await result
        finally:
            await neighbours.aclose()

    asyncio.run(main())


def known(neighbours: Neighbours, name: str, edge: str = OTHER) -> None:
    """As if it had introduced itself."""
    one = neighbours._known[name]
    one.well, one.edge = True, edge


def test_a_penalty_is_the_addresss_whatever_name_and_port_are_used_there() -> None:
    def work(neighbours: Neighbours) -> None:
        neighbours.add("liar", "http://10.0.0.9:1")
        known(neighbours, "liar")
        (one,) = neighbours.usable()
        one.failed("it lied", lied=True)
        assert neighbours.usable() == []
        neighbours.remove("liar")
        for name, url in (("new", "http://10.0.0.9:1"), ("newer", "http://10.0.0.9:2")):
            neighbours.add(name, url)
            known(neighbours, name, edge="2" * 16)
            assert neighbours.usable() == []
        neighbours.add("honest", "http://10.0.0.8:1")
        known(neighbours, "honest")
        assert [one.url for one in neighbours.usable()] == ["http://10.0.0.8:1"]

    with_neighbours(work)


def test_on_the_loopback_each_port_is_somebody_else() -> None:
    def work(neighbours: Neighbours) -> None:
        for port in (1, 2):
            neighbours.add(f"edge {port}", f"http://127.0.0.1:{port}")
            known(neighbours, f"edge {port}", edge=f"{port:016x}")
        neighbours.usable()[0].failed("it lied", lied=True)
        assert [one.url for one in neighbours.usable()] == ["http://127.0.0.1:2"]

    with_neighbours(work)


def test_names_without_end_do_not_keep_others_out() -> None:
    def work(neighbours: Neighbours) -> None:
        for number in range(3 * MOST_NEIGHBOURS):
            neighbours.add(f"noise {number}", f"http://10.0.{number}.1:1")
        neighbours.add("honest", "http://10.9.0.1:1")
        known(neighbours, "honest")
        for number in range(3 * MOST_NEIGHBOURS):
            neighbours.add(f"more noise {number}", f"http://10.1.{number}.1:1")
        assert len(neighbours._known) == MOST_NEIGHBOURS
        assert {"http://10.8.0.1:1", "honest"} <= set(neighbours._known)

    with_neighbours(work, "http://10.8.0.1:1")


def test_one_machine_that_introduces_itself_again_and_again_makes_way_for_another() -> None:
    def work(neighbours: Neighbours) -> None:
        for number in range(MOST_NEIGHBOURS):
            neighbours.add(f"noise {number}", f"http://10.0.0.9:{number + 1}")
            known(neighbours, f"noise {number}", edge=f"{number + 1:016x}")
        neighbours.add("honest", "http://10.9.0.1:1")
        assert "honest" in neighbours._known and len(neighbours._known) == MOST_NEIGHBOURS

    with_neighbours(work)


def test_edges_that_are_all_somewhere_else_are_kept() -> None:
    def work(neighbours: Neighbours) -> None:
        for number in range(MOST_NEIGHBOURS):
            neighbours.add(f"edge {number}", f"http://10.0.{number}.1:1")
            known(neighbours, f"edge {number}")
        neighbours.add("one more", "http://10.9.0.1:1")
        assert "one more" not in neighbours._known and len(neighbours._known) == MOST_NEIGHBOURS

    with_neighbours(work)


def test_penalties_are_remembered_of_so_many_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PENALTIES", 3)

    def work(neighbours: Neighbours) -> None:
        for number in range(9):
            neighbours.add(f"noise {number}", f"http://10.0.{number}.1:1")
        assert len(neighbours._penalties) <= 4

    with_neighbours(work)


def test_news_again_and_again_do_not_make_an_edge_probe_without_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    async def introduce(request: Request) -> JSONResponse:
        asked.append(asyncio.get_running_loop().time())
        return JSONResponse({"edge": OTHER, "model": FINGERPRINT})

    async def work(neighbours: Neighbours) -> None:
        async with serving_here(Starlette(routes=[Route("/v1/edge", introduce)])) as url:
            neighbours.add("there", url)
            probing = asyncio.create_task(neighbours.keep_probing())
            for number in range(50):
                neighbours.add("noise", f"http://127.0.0.1:{number + 1}")
                await asyncio.sleep(0.01)
            while len(asked) < 2:
                await asyncio.sleep(0.01)
            probing.cancel()
        assert asked[1] - asked[0] >= module._REST_S

    monkeypatch.setattr(module, "_REST_S", 0.3)
    with_neighbours(work)
