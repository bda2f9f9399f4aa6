"""How things look on a terminal, and in a pipe. It knows text, streams and units; it must not know what is shown.

All that a command prints or logs goes through here, since much of it was written by others: what would act on a
terminal, or change how other letters are seen, is shown as an escape, such as \\x1b.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Final

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from preread.wire.manifest import Quality

Report = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is, and how much there is (None: unknown)."""

FIT_STAGE: Final = "reading the model's habits, once"
"""What fitting a codec to a model is called while it goes on."""

ALIGN_STAGE: Final = "reading with both models"
"""What aligning two models' layers is called."""

_STEP_PERCENT = 10

_ACTING: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What prose has no use for: control characters but line ends and tabs, and what reverses text (CVE-2021-42574)."""


def byte_progress() -> AbstractContextManager[Report]:
    """Shows a download on stderr: a bar on a terminal, a line for each 10 % elsewhere."""
    return _progress(DownloadColumn(), brief=False)


def token_progress(*, brief: bool = False) -> AbstractContextManager[Report]:
    """The same for work that is counted in tokens; `brief`: one of many, whose lines elsewhere would be too many."""
    return _progress(MofNCompleteColumn(), brief=brief)


@contextmanager
def _progress(count: ProgressColumn, *, brief: bool) -> Iterator[Report]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(brief=brief)
        return
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, BarColumn(), count, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("", total=None, visible=False)
        last = ""

        def report(message: str, done: int, total: int | None) -> None:
            nonlocal last
            message = shown(message)
            if message.partition(" ")[0] != last.partition(" ")[0]:
                bars.reset(task)
            last = message
            bars.update(task, description=message, completed=done, total=total, visible=True)

        yield report


def _lines(*, brief: bool) -> Report:
    last: tuple[str, int | None] = ("", None)

    def report(message: str, done: int, total: int | None) -> None:
        nonlocal last
        if brief and total is not None and not message.startswith(FIT_STAGE):
            return
        step = done * 100 // total // _STEP_PERCENT * _STEP_PERCENT if total else None
        if (message, step) != last:
            note(message if step is None else f"{message}: {step} %")
        last = message, step

    return report


def shown(text: str) -> str:
    """One line that does nothing but be seen: what cannot be seen, line ends too, is escaped as Python does."""
    return text if text.isprintable() else "".join(map(_shown_letter, text))


def shown_prose(text: str) -> str:
    """As `shown` for text of several lines, such as an answer: line ends, tabs, and joiners of letters stay."""
    return _ACTING.sub(lambda found: _escaped(found[0]), text)


def say(line: str = "") -> None:
    """A line on stdout."""
    print(shown(line), flush=True)


def say_piece(text: str) -> None:
    """A piece of an answer on stdout, as it comes."""
    print(shown_prose(text), end="", flush=True)


def note(line: str = "") -> None:
    """A line on stderr: for people, out of the way of what is piped on."""
    print(shown(line), file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """One line of JSON on stdout; dataclasses and structs become objects."""
    text = msgspec.json.encode(value).decode()
    # Beyond ASCII only strings have letters, which JSON lets be escaped.
    print(text if text.isprintable() else "".join(map(_json_letter, text)), flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on stdout, as wide as they need to be, so that a pipe gets everything."""
    lines = [[shown(cell) for cell in line] for line in (head, *rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        print("   ".join(cells).rstrip())


class LogFormatter(logging.Formatter):
    """Log lines that do nothing but be seen; a message is one line, whatever is in it, and a traceback is several."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shown(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return shown_prose(super().format(record))


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time, level, logger, message, whatever `fields` a record brings, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told: dict[str, object] = {"time": at, "level": record.levelname.lower(), "logger": record.name}
        told |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)  # in ASCII, whatever letters there are


def _shown_letter(letter: str) -> str:
    return letter if letter.isprintable() else _escaped(letter)


def _json_letter(letter: str) -> str:
    if letter.isprintable():
        return letter
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def size(size_bytes: float) -> str:
    """Bytes as people read them, with decimal prefixes."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} GB" if size_bytes < 999.5 else f"{size_bytes:,.0f} GB"


def contexts(count: int) -> str:
    """So many contexts."""
    return "1 context" if count == 1 else f"{count} contexts"


QUALITY_HEADINGS: Final = ("LOSS RISES BY", "KL", "SAME TOKEN", "MEASURED ON")
_MEASURED_ON: Final = {"fit": "other text", "context": "this context", "inferred": "this context, by ratio"}


def quality_cells(rung: str, quality: Quality | None) -> tuple[str, str, str, str]:
    """By how much a rung raises the loss, its KL divergence, how often the likeliest token stays, and what on.

    In nats a token, with 95 % intervals where there are any.
    """
    if quality is None:
        return ("0", "0", "100 %", "") if rung == "lossless" else ("", "", "", "")
    loss = f"{quality.dloss_micronats * 1e-6:+.4f}{_interval(quality.dloss_interval_micronats, '+.4f')}"
    kl = f"{quality.kl_micronats * 1e-6:.4f}{_interval(quality.kl_interval_micronats, '.4f')}"
    return loss, kl, f"{quality.top1_ppm * 1e-4:.1f} %", _MEASURED_ON[quality.measured_on]


def _interval(ends: tuple[int, int] | None, form: str) -> str:
    return "" if ends is None else f" [{format(ends[0] * 1e-6, form)}, {format(ends[1] * 1e-6, form)}]"


def rate(bytes_s: float) -> str:
    """Bytes a second as people name links."""
    mbps = bytes_s * 8e-6
    return f"{mbps:.3g} Mbit/s" if mbps < 999.5 else f"{mbps / 1000:.3g} Gbit/s"
