"""The demonstration: one document, one question, answered twice; what it cost and what came from where."""

import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preread import loop
from preread.cloud import client
from preread.cloud.events import Progress, Published
from preread.edge.edge import Answer, AsyncEdge
from preread.errors import TransportError, UsageError
from preread.plan.cost import Link, Need, floor_s
from preread.testing.proxy import Link as Wire
from preread.testing.proxy import ProxyProcess

NAME = "handbook"
QUESTION = "What is the telephone number of Ines Haller?"
_HANDBOOK = Path(__file__).with_suffix(".txt")


@dataclass(frozen=True, slots=True)
class Options:
    """What to demonstrate: model (a registered name), its file, link, rungs, and the document with a question."""

    model: str
    path: Path
    mbps: float
    rtt_ms: float
    rungs: tuple[str, ...]
    document: Path | None
    question: str
    max_tokens: int


def run(options: Options, console: Console) -> None:
    """Start a cloud and an edge on this machine, publish, ask both ways, and print what happened.

    Raises:
        PrereadError: something could not be started.
    """
    text, title = _document(options.document)
    with tempfile.TemporaryDirectory(prefix="preread-demo-") as scratch:
        console.print(f"[bold]1.[/] starting a cloud with {options.model}")
        with _cloud(options, Path(scratch) / "store") as port:
            console.print(f"[bold]2.[/] publishing {title}: the cloud reads it, once")
            published = _publish(f"http://127.0.0.1:{port}", text, console)
            console.print(
                f"   {published.entry.token_count} tokens in {published.seconds:.1f} s; as KV cache: "
                + ", ".join(f"{size / 1e6:.1f} MB ({rung})" for rung, size in published.rung_bytes.items())
            )
            wire = Wire(mbps=options.mbps, rtt_ms=options.rtt_ms)
            with ProxyProcess(port, wire) as link:
                described = f"{options.mbps:g} Mbit/s and {options.rtt_ms:g} ms"
                console.print(f"[bold]3.[/] starting an edge behind a link of {described}")
                loop.run(_compare(options, link.url, Path(scratch) / "edge", console))


async def _compare(options: Options, url: str, folder: Path, console: Console) -> None:
    async with AsyncEdge(str(options.path), url, folder=folder, cache_ram_bytes=0) as edge:
        console.print(f"[bold]4.[/] asking: [italic]{options.question}[/]")
        local = await _ask(edge, options, local=True)
        resident = await _ask(edge, options)
        await edge.node.sync()
        streamed: dict[str, Answer] = {}
        for rung in options.rungs:
            await edge.node.forget()
            assert edge.node.link is not None
            await edge.node.link.warm(8)
            edge.node.rung = rung
            streamed[rung] = await _ask(edge, options)
        console.print(f"\n[bold]answer[/]: {local.text.strip()}\n")
        for rung, answer in streamed.items():
            same = "the same answer, to the letter" if answer.text == local.text else f"answers: {answer.text.strip()}"
            console.print(f"streamed ({rung}): {same}")
            if answer.timings.reason:
                console.print(f"   computed here instead: {answer.timings.reason}")
        console.print(_table(options, local, resident, streamed))
        console.print(
            "The question never left the edge. README.md shows `preread cloud`, `publish` and `edge` for real."
        )


def _table(options: Options, local: Answer, resident: Answer, streamed: dict[str, Answer]) -> Table:
    table = Table(title=f"{local.timings.context_n} tokens of context, {options.mbps:g} Mbit/s, {options.rtt_ms:g} ms")
    for heading in (
        "",
        "bytes",
        "first token s",
        "floor s",
        "÷ floor",
        "speedup",
        "KV from the cloud",
        "KV computed here",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    context_n, local_s = local.timings.context_n, local.timings.ttft_ms / 1e3
    table.add_row("local prefill", "0", f"{local_s:.2f}", "", "", "1.0", "0", f"{local.prompt_tokens}")
    for rung, answer in streamed.items():
        timings = answer.timings
        need = Need(
            context_n,
            timings.bytes_received,
            context_n / (local.timings.context_ms / 1e3),
            resident.timings.ttft_ms / 1e3,
        )
        floor = floor_s(need, Link(options.mbps * 1e6 / 8, options.rtt_ms / 1e3))
        ttft_s = timings.ttft_ms / 1e3
        table.add_row(
            f"streamed, {rung}" + ("" if timings.way == "streamed" else f" → {timings.way}"),
            f"{timings.bytes_received:,}",
            f"{ttft_s:.2f}",
            f"{floor:.2f}" if timings.bytes_received else "",
            f"{ttft_s / floor:.2f}" if timings.bytes_received else "",
            f"{local_s / ttft_s:.1f}",
            str(timings.cache_n),
            str(timings.prompt_n),
        )
    return table


async def _ask(edge: AsyncEdge, options: Options, *, local: bool = False) -> Answer:
    return await edge.ask(options.question, context=NAME, local=local, temperature=0, max_tokens=options.max_tokens)


def _document(path: Path | None) -> tuple[str, str]:
    """The document's text and what to call it; by default a machine's handbook that preread comes with."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as text: {error}") from error
    return _HANDBOOK.read_text(encoding="utf-8"), "a machine's handbook"


@contextmanager
def _cloud(options: Options, store: Path) -> Iterator[int]:
    """A real `preread cloud` in a process of its own; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "preread.cli", "--log-level", "error", "cloud", "--model", str(options.path)]
    command += ["--store", str(store), "--port", str(port), "--rungs", ",".join(options.rungs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if re.search(r"http://", line):
                    break
            else:
                raise TransportError("the demonstration's cloud did not start: its reason stands above")
            yield port
        finally:
            process.terminate()


def _publish(url: str, text: str, console: Console) -> Published:
    with console.status("   reading …") as status:
        for event in client.publish(url, NAME, text=text):
            if isinstance(event, Progress):
                status.update(f"   {event.stage}: {event.done} of {event.total} tokens")
            else:
                return event
    raise TransportError("the cloud did not say that it had published")
