"""An edge is closed while others still ask: no thread uses the model when it is freed, and the program goes on."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from pathlib import Path
from preread.edge.edge import AsyncEdge
from preread.errors import PrereadError

async def ask(edge, number):
    try:
        await edge.ask(f"{number} " * 40_000, context=None, max_tokens=1)
    except PrereadError as error:
        return type(error).__name__

async def main(times):
    for _ in range(times):
        edge = AsyncEdge(sys.argv[1], window_tokens=2048, folder=Path(sys.argv[2]))
        async with edge:
            asking = [asyncio.create_task(ask(edge, number)) for number in range(32)]
            await asyncio.sleep(0.01)
            for task in asking[::2]:
                task.cancel()  # a client that has gone; the others still wait when the edge is closed
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert {str(end) or type(end).__name__ for end in ends} <= {"TooLong", "EngineError", "CancelledError"}, ends
    print("went on")

asyncio.run(main(2))
"""


def test_program_outlives_an_edge_that_was_closed_while_tokenising(tiny_model: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (0, "went on\n"), ran.stderr
