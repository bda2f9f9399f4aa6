"""Of many who begin the same thing, one makes it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preread.errors import Unavailable
from preread.store import claims as module
from preread.store.claims import Claimed
from preread.store.objects import Objects, open_store
from preread.values import ObjectId
from preread.wire import claim as claims
from preread.wire.claim import Claim

WORK, OTHER = ObjectId("a" * 64), ObjectId("b" * 64)
FOREVER = 2**53


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Objects]:
    yield open_store(str(tmp_path))


def put(folder: Path, number: int, claim: Claim) -> None:
    file = folder / "claims" / f"{WORK}.{number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(claims.dumps(claim))


def soon_ms() -> int:
    return module._now_ms() + 10_000


def held(store: Objects, **options: object) -> bool:
    """Whether it can be claimed now."""

    async def main() -> bool:
        try:
            async with store.claims.held(WORK, **options):  # type: ignore[arg-type]
                return True
        except Claimed:
            return False

    return asyncio.run(main())


def test_of_twenty_at_once_one_makes_it_and_the_next_can_when_that_has_ended(store: Objects, tmp_path: Path) -> None:
    inside, outside = list[int](), list[int]()

    def told(of: list[int], number: int, free: asyncio.Event) -> None:
        of.append(number)
        if len(inside) + len(outside) == 20:  # who comes when it has ended may make it
            free.set()

    async def one(number: int, free: asyncio.Event) -> bool:
        try:
            async with open_store(str(tmp_path)).claims.held(WORK):
                told(inside, number, free)
                await free.wait()
                return True
        except Unavailable:
            told(outside, number, free)
            return False

    async def main() -> None:
        free = asyncio.Event()
        assert sum(await asyncio.gather(*[one(number, free) for number in range(20)])) == len(inside) == 1
        async with store.claims.held(WORK), store.claims.held(OTHER):
            pass

    asyncio.run(main())
    assert not list((tmp_path / "claims").iterdir())


def test_a_claim_of_a_process_that_ended_here_is_over(store: Objects, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    put(tmp_path, 3, Claim("x", module._place(), os.getpid(), soon_ms()))
    assert not held(store)
    put(tmp_path, 4, Claim("x", "another machine", ended.pid, soon_ms()))
    assert not held(store)
    put(tmp_path, 5, Claim("x", module._place(), ended.pid, soon_ms()))
    assert held(store)


def test_a_claim_of_somebody_who_is_said_to_be_gone_is_over(store: Objects, tmp_path: Path) -> None:
    put(tmp_path, 0, Claim("x", "another machine", 1, soon_ms()))
    assert not held(store, gone=["y"]) and held(store, gone=["x"])


@pytest.mark.parametrize("claim", [Claim("x", "another machine", 1, 1), Claim("x", "another machine", 1, FOREVER)])
def test_a_claim_that_ran_out_or_that_a_wrong_clock_made_is_over(store: Objects, tmp_path: Path, claim: Claim) -> None:
    put(tmp_path, 0, claim)
    assert held(store)


def test_nonsense_stands_in_nobodys_way(store: Objects, tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    folder.mkdir(parents=True)
    for name in (f"{WORK}.7.json", f"{WORK}.x.json", f"{WORK}.json", f"{WORK}.{'9' * 40}.json", "x.json"):
        (folder / name).write_bytes(b"nonsense")
    assert held(store)


def test_a_claim_is_renewed_while_it_is_held(store: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RENEW_S", 0.01)

    async def main() -> None:
        async with store.claims.held(WORK, "me"):
            file = tmp_path / "claims" / f"{WORK}.0.json"
            first = claims.loads(file.read_bytes())
            while claims.loads(file.read_bytes()).until_ms == first.until_ms:
                await asyncio.sleep(0.01)
            assert claims.loads(file.read_bytes()).owner == first.owner == "me"

    asyncio.run(main())
