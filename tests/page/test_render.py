"""Pages as HTML: names are text whatever is in them, parts add up, colours can be told apart."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preread.page import kvmap, render
from preread.page.first_token import first_token_parts
from preread.page.routes import FILES
from preread.page.values import (
    Answer,
    Choices,
    Context,
    Contexts,
    Machine,
    Neighbour,
    Part,
    Publication,
    Published,
    Rung,
    Section,
)

STATIC = Path(render.__file__).parent / "static"
HOSTILE = "</select><script>alert(1)</script><img src=x onerror='alert(2)'>\" & {{ 7*7 }}"
VOID = {"meta", "link", "img", "br", "input", "rect"}
ORIGINS = {key for key in ("cloud", "neighbour", "disk", "memory", "resident", "here")}


class Tags(HTMLParser):
    """What a browser would find: its tags with attributes, its text; that all that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def answer(name: str | None, reason: str | None = None) -> Answer:
    origins = {(c, g): (None if c < 1 else "cloud") for c in range(3) for g in range(2)}
    kv = kvmap.loaded(origins, [(0, 128), (128, 256), (256, 300)], [(0, 2), (2, 4)], "b1.2")
    parts = first_token_parts(20, 300, 120, 400)
    return Answer(1, "12:00:00", name, kv if name else None, None, reason, 25, 8, 12, 90_000, 400, parts, 21.5)


def edge(name: str = "manual", model: str = "m", reason: str | None = None) -> dict[str, Section]:
    rungs = (Rung("lossless", 2_000_000, 0.0, 0.0), Rung("b1.2", 90_000, 0.011, 1.0))
    contexts = (
        Context(name, model, 300, rungs, "resident", None, True, 3, 2),
        Context("b", model, 3, tier="computed", note=reason),
    )
    return {
        "choices": Choices((name,), 3),
        "latest": (answer(name, reason),),
        "earlier": (answer(None), answer(name)),
        "contexts": Contexts(contexts, 5),
        "machine": Machine(
            model, 2048, reason, 20.5, 41.0, (Neighbour(name, "well"),), (("cloud", 90_000),), 1, 2, 0, 17, 3.5,
            (("contexts", 300), ("free", 1748)), (("in memory", 12),),
        ),
    }  # fmt: skip


def cloud(name: str = "manual") -> dict[str, Section]:
    context = Context(name, "m", 300, (Rung("b1.2", 90_000, 0.011),), mode="guided", at="2026-11-29 04:00")
    going = (Publication(name, "prefill", 3, 10), Publication("next", "queue", 1, 2))
    return {"published": Published(Contexts((context,), 2), going, 1_234_567)}


PLAIN = frozenset(
    tag
    for page in (render.page("edge", edge("a", "b", "c")), render.page("cloud", cloud()))
    for tag, _ in Tags(page).tags
)


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=40))
@example(HOSTILE)
def test_names_are_text_whatever_is_in_them(name: str) -> None:
    for html_page in (render.page("edge", edge(name, name, name)), render.page("cloud", cloud(name))):
        found = Tags(html_page)
        assert {tag for tag, _ in found.tags} <= PLAIN
        for _, attributes in found.tags:
            assert not any(key.startswith("on") or key == "style" for key in attributes)
            assert attributes.get("src", "page/page.js") in ("page/icon.svg", "page/page.js", "page/chat.js")
    assert html.escape(HOSTILE, quote=False)[:20] in render.section("choices", Choices((HOSTILE,)))


def test_nothing_comes_from_elsewhere() -> None:
    for text in (
        render.page("edge", edge()),
        render.page("cloud", cloud()),
        *((STATIC / name).read_text() for name in FILES),
    ):
        assert re.findall(r"(?:https?:)?//[a-z0-9.]+", text.replace("http://www.w3.org/2000/svg", ""), re.I) == []


def test_without_a_key_a_page_shows_nothing_of_the_server() -> None:
    locked = render.page("edge", None)
    assert "data-locked" in locked and "manual" not in locked and "<option" not in locked
    assert "data-locked" not in render.page("edge", edge())
    assert "<h2" in render.page("cloud", None) and "manual" not in render.page("cloud", None)


def test_every_field_has_a_label_and_every_table_has_headers() -> None:
    for page in (render.page("edge", edge()), render.page("cloud", cloud())):
        tags = Tags(page).tags
        labels = {attributes.get("for") for tag, attributes in tags if tag == "label"}
        fields = {attributes.get("id") for tag, attributes in tags if tag in ("select", "textarea", "input")}
        assert fields <= labels
        assert all(
            attributes.get("scope") or attributes.get("class") == "gap" for tag, attributes in tags if tag == "th"
        )
        assert ("html", {"lang": "en"}) in tags and any(tag == "main" for tag, _ in tags)


def test_an_edge_of_which_nothing_was_asked_says_so() -> None:
    nothing: dict[str, Section] = {**edge(), "latest": (), "earlier": (), "contexts": Contexts(())}
    page = render.page("edge", nothing)
    assert "Nothing was asked yet" in page and "None is known here" in page
    assert "None yet" in render.page("cloud", {"published": Published(Contexts(()), (), 0)})


def test_cells_have_letters_as_well_as_colours() -> None:
    found = render.section("latest", (answer("manual"),))
    cells = re.findall(r'<td class="cell (\w+)" title="[^"]+">(.)</td>', found)
    assert cells == 2 * [("here", "H"), ("cloud", "C"), ("cloud", "C")]
    assert "172 of 300 tokens × 4 layers came from the cloud at b1.2; 128 were computed here." in found
    assert "25 tokens, 8 of them known from the turns before" in found


@given(*(st.floats(0, 1e6) for _ in range(4)))
def test_the_parts_of_the_first_tokens_time_add_up(queue: float, load: float, context: float, ttft: float) -> None:
    parts = first_token_parts(queue, load, context, ttft)
    assert sum(part.ms for part in parts) == pytest.approx(ttft)
    assert all(part.ms > 0 for part in parts)


def test_parts_are_what_was_waited_for() -> None:
    assert first_token_parts(20, 300, 120, 400) == (
        Part("queue", "waiting for its turn", 20),
        Part("here", "computing the context's beginning while its end comes", 120),
        Part("load", "waiting for the rest of it", 180),
        Part("question", "computing the question", 80),
    )


@given(st.floats(0, 1e13))
def test_sizes_have_few_digits(size_bytes: float) -> None:
    assert re.fullmatch(r"[\d.]{1,5}\u00a0(B|kB|MB|GB)|\d,\d{3}\u00a0GB|10,000\u00a0GB", render.size(size_bytes))
    assert render.size(1.23e6) == "1.23\u00a0MB" and render.duration(45.2) == "45\u00a0ms"
    assert render.rate(20.04) == "20\u00a0Mbit/s" and render.rate(3110) == "3.11\u00a0Gbit/s"


def schemes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet, light and dark."""
    light, dark = (STATIC / "page.css").read_text().split("@media (prefers-color-scheme: dark)", 1)
    colours = re.compile(r"--([\w-]+): (#[0-9a-f]{6});")
    found = {name: dict(colours.findall(text)) for name, text in (("light", light), ("dark", dark))}
    assert found["light"].keys() == found["dark"].keys()
    return found


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3); stripes make a cell's ground darker in light, lighter in dark."""
    colours = schemes()[scheme]
    for ink in ("ink", "quiet", "accent", "good", "bad"):
        assert contrast(colours[ink], colours["ground"]) >= 4.5, ink
        assert contrast(colours[ink], colours["raised"]) >= 4.5, ink
    for ground in (*ORIGINS, "quiet", "free", "accent"):
        assert contrast(colours["letter"], colours[ground]) >= 4.5, ground
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
