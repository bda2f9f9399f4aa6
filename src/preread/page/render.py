"""Values to HTML. Whatever is in them is text: Jinja escapes it, and nothing here marks anything as safe."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import jinja2

from preread.page import kvmap
from preread.page.values import Counts, Part, Section

Kind = Literal["edge", "cloud"]


def page(kind: Kind, sections: Mapping[str, Section] | None) -> str:
    """A whole page; None: its reader has shown no key, and is told nothing but that one is needed."""
    return _templates.get_template(f"{kind}.html").render(sections=sections)


@lru_cache(maxsize=32)
def section(name: str, value: Section) -> str:
    """The HTML of one section. That of a dozen maps takes tens of milliseconds, so what was made lately is kept."""
    return _templates.get_template(f"{name}.html").render(it=value)


def size(size_bytes: float) -> str:
    """Bytes for people: "812 B", "1.2 MB"."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f}\u00a0B" if unit == "B" else f"{size_bytes:.3g}\u00a0{unit}"
        size_bytes /= 1e3
    return f"{size_bytes:.3g}\u00a0GB" if size_bytes < 999.5 else f"{size_bytes:,.0f}\u00a0GB"


def duration(ms: float) -> str:
    """Milliseconds for people: "45 ms", "1.23 s", "95 s"."""
    if ms < 1000:
        return f"{ms:.0f}\u00a0ms" if ms >= 9.5 or ms == 0 else f"{ms:.1f}\u00a0ms"
    return f"{ms / 1e3:.2f}\u00a0s" if ms < 10_000 else f"{ms / 1e3:,.0f}\u00a0s"


def rate(mbps: float) -> str:
    """A link's rate, given in Mbit/s, for people: "20 Mbit/s", "3.11 Gbit/s"."""
    return f"{mbps:.3g}\u00a0Mbit/s" if mbps < 999.5 else f"{mbps / 1e3:.3g}\u00a0Gbit/s"


def count(number: float) -> str:
    """A whole number for people: "12,345"."""
    return f"{number:,.0f}"


def _parts(of: tuple[Part, ...]) -> list[tuple[str, str, float]]:
    """The parts of a time as those of a bar: class for style sheets, name, amount."""
    return [(f"part-{part.key}", part.name, part.ms) for part in of]


def _cells(of: Counts) -> list[tuple[str, str, float]]:
    """The same of a cache's cells."""
    return [(f"cells-{name}", name, amount) for name, amount in of]


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "size": size,
        "duration": duration,
        "rate": rate,
        "count": count,
        "told": kvmap.told,
        "coarse": kvmap.coarse,
        "parts": _parts,
        "cells": _cells,
    }
    made.globals |= {"ORIGINS": kvmap.ORIGINS, "AWAY": kvmap.AWAY}
    return made


_templates: Final = _environment()
