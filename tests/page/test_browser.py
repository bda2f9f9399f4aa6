"""Both pages in Debian's Chromium: all that can be clicked or typed, light, dark, on a phone, without JavaScript.

Real edges with real contexts that come from real clouds. Needs the packages chromium and chromium-driver.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2
import pytest

from preread.cloud.app import create_app as cloud_app
from preread.edge.app import create_app as edge_app
from preread.edge.edge import AsyncEdge
from preread.edge.serving import Limits
from preread.store.auth import Keys
from preread.store.guard import LOOPBACK, Access
from preread.store.objects import open_store
from preread.testing.beliefs import slow_machine
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.proxy import Link, ProxyProcess

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'preread[dev]'")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys as Press  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

T = TypeVar("T")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(os.environ.get("PREREAD_AXE", Path.home() / ".cache/preread/axe.min.js"))
HOSTILE = "<b onclick=alert(1)>bold"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--no-proxy-server",
)  # fmt: skip
ENDLESS = """
const real = window.fetch;
window.fetch = (url, options) => real(url, options?.body
  ? {...options, body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true})} : options);
"""  # answers do not end by themselves
SIZES = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="apt-get install chromium chromium-driver")


class SlowEdge(AsyncEdge):
    """Waits for the link however slow that is."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.node.settled()
        self.node.beliefs = slow_machine()
        return self


class Page:
    """A browser, and a few words for what a person does with it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, scheme: str = "light", width: int = 1280) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector: str) -> str:
        return str(self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent).join('\\n')", selector
        ))  # fmt: skip

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def focused(self) -> str:
        return str(self.run("const it = document.activeElement; return it.id || it.className || it.tagName"))

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def ask(self, question: str, context: str | None = None) -> None:
        if context is not None:
            Select(self.one("#context")).select_by_value(context)
        self.one("#question").send_keys(question, Press.ENTER)

    def cells(self) -> str:
        return self.text("[data-section=latest] .kv td.cell:not(.own)").replace("\n", "")

    def until(self, there: Callable[[], T]) -> T:
        """What `there` gives, once that is something; elements that are replaced meanwhile are looked for again."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            if found := there():
                return found
            time.sleep(0.02)
        raise AssertionError(f"it did not come: {self.driver.page_source}")

    def answered(self, answers: int) -> None:
        self.until(lambda: len(self.all("#log .timings")) == answers)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    page = Page(driver)
    page.errors()
    yield page
    page.run("sessionStorage.clear()")
    driver.get("about:blank")


@contextmanager
def served(edge: Any, access: Access = LOOPBACK) -> Iterator[str]:
    """An edge that is open already, served once more; its answers are short."""
    with serving(edge_app(edge.opened, access, limits=Limits(answer_tokens=6)), lifespan="off") as url:
        yield url


@pytest.fixture(scope="module")
def brief(edge: Any) -> Iterator[str]:
    """Where the edge gives short answers."""
    with served(edge) as url:
        yield url


def test_a_question_about_a_context_is_answered_and_the_map_says_where_its_kv_came_from(
    page: Page, edge: Any, brief: str
) -> None:
    edge.forget()
    page.open(f"{brief}/")
    page.ask("What is the code of the pump?", "manual")
    page.answered(1)
    assert page.text("#log .question p") == "What is the code of the pump?"
    assert page.text("#log .answer p:not(.timings)").strip()
    assert "first token after" in page.text(".timings") and "rung lossless" in page.text(".timings")
    page.until(lambda: set(page.cells()) == {"C"})
    assert "layers came from the cloud at lossless." in page.text("[data-section=latest] .sentence")
    assert "loading the context" in page.text("[data-section=latest] .parts")
    assert page.one("#log").get_attribute("aria-busy") == "false" and page.one("#log").get_attribute("role") == "log"
    page.ask("And of the fan?")
    page.answered(2)
    page.until(lambda: set(page.cells()) == {"R"})
    assert page.errors() == []


def test_the_map_fills_in_as_the_context_streams(page: Page, cloud: Any, tiny_model: Path, tmp_path: Path) -> None:
    with ProxyProcess(int(cloud.url.rpartition(":")[2]), Link(mbps=400)) as proxy:
        edge = SlowEdge(str(tiny_model), proxy.url, rung="lossless", window_tokens=1024, threads=1, folder=tmp_path)
        with serving(edge_app(edge, limits=Limits(answer_tokens=4))) as url:
            page.open(f"{url}/")
            proxy.set_link(Link(mbps=1))
            page.ask("Hello", "manual")
            page.until(lambda: {"C", "·"} <= set(page.cells()))
            assert "the rest is on its way" in page.text("[data-section=latest] .sentence")
            assert page.text("[data-section=latest] .live") == "loading"
            proxy.set_link(Link(mbps=400))
            page.until(lambda: set(page.cells()) == {"C"})
            page.answered(1)


def test_an_answer_can_be_stopped_and_all_can_be_cleared(page: Page, edge: Any) -> None:
    page.open(f"{edge.url}/")
    page.run(ENDLESS)
    assert not page.one("#stop").is_enabled()
    page.ask("Count from one to a thousand.", "")
    page.until(lambda: page.text("#log .answer p"))
    assert page.one("#stop").is_enabled() and not page.one("#send").is_enabled()
    page.one("#stop").click()
    page.until(lambda: page.text(".timings") == "stopped")
    assert page.one("#send").is_enabled() and not page.one("#stop").is_enabled()
    page.one("#clear").click()
    assert page.text("#log") == "" and page.focused() == "question"


def test_the_keyboard_is_enough(page: Page, edge: Any) -> None:
    page.open(f"{edge.url}/")
    page.one("#question").send_keys("One", Press.SHIFT + Press.ENTER + Press.NULL, "two")
    assert page.run("return document.getElementById('question').value") == "One\ntwo" and page.text("#log") == ""
    page.run("document.getElementById('question').value = ' '")
    page.one("#question").send_keys(Press.ENTER)
    assert page.text("#log") == "", "nothing is asked where nothing was typed"
    page.driver.refresh()
    seen = []
    for _ in range(6):
        page.press(Press.TAB)
        seen.append(page.focused())
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert seen[:5] == ["skip", "context", "question", "send", "clear"]


def test_earlier_answers_open_and_stay_open_while_others_come(page: Page, edge: Any) -> None:
    for _ in range(2):
        asked(edge.url, "manual")
    page.open(f"{edge.url}/")
    page.run("document.querySelector('details summary').focus()")
    key = page.run("return document.activeElement.parentElement.dataset.key")
    page.press(Press.ENTER)
    page.until(lambda: page.run("return document.querySelector('details').open"))
    number = int(page.run("return document.querySelector('details').dataset.key"))
    asked(edge.url, "manual")
    page.until(lambda: int(page.run("return document.querySelector('details').dataset.key")) > number)
    assert page.one(f"details[data-key='{key}'] .kv").is_displayed()
    assert page.run("return document.activeElement.parentElement.dataset.key") == key, "the focus stays where it was"
    page.one(f"details[data-key='{key}'] summary").click()
    assert not page.one(f"details[data-key='{key}'] .sentence").is_displayed()


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_can_be_read_in_light_dark_and_on_a_phone(page: Page, brief: str, size: str) -> None:
    scheme, width = SIZES[size]
    asked(brief, "manual")
    page.open(f"{brief}/", scheme, width)
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert (
        page.run("return getComputedStyle(document.documentElement).backgroundColor")
        == {
            "light": "rgb(255, 255, 255)",
            "dark": "rgb(18, 23, 29)",
        }[scheme]
    )
    cell = page.one("[data-section=latest] .kv td.cell")
    assert cell.size["width"] >= 12 and cell.size["height"] >= 12 and cell.text in "CRH"
    assert all(button.size["height"] >= 44 for button in page.all("#ask button"))
    page.ask("Hello")
    page.answered(1)
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_without_javascript_the_page_tells_what_it_knows(page: Page, edge: Any) -> None:
    asked(edge.url, "manual")
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.open(f"{edge.url}/")
    assert page.one("[data-section=latest] .kv").is_displayed() and "manual" in page.one(".contexts").text
    assert "needs JavaScript" in page.one(".chat").text


def test_where_keys_are_needed_nothing_shows_until_one_is_given(page: Page, edge: Any) -> None:
    with served(edge, Access(Keys.of(["asker"], "ask"))) as url:
        page.open(f"{url}/")
        assert page.one("#key").is_displayed() and "manual" not in page.text("main")
        page.one("#key-field").send_keys("guess", Press.ENTER)
        page.until(lambda: "needs an API key" in page.text("#key-error"))
        page.one("#key-field").send_keys("asker")
        page.one("#key button").click()
        page.until(lambda: "manual" in page.text("[data-section=contexts]"))
        assert not page.one("#key").is_displayed() and page.run("return localStorage.length") == 0
        page.ask("What is the code of the pump?", "manual")
        page.answered(1)
        page.driver.refresh()
        page.until(lambda: page.cells() and "manual" in page.text("[data-section=latest]"))


def test_names_and_answers_are_text_whatever_is_in_them(page: Page, edge: Any, brief: str, smollm_cloud: Any) -> None:
    smollm_cloud.publish(HOSTILE, "A short text about nothing in particular.")
    edge.run(edge.opened.node.sync)
    page.open(f"{brief}/")
    page.until(lambda: HOSTILE in page.text("[data-section=contexts]"))
    page.ask("Hello", HOSTILE)
    page.answered(1)
    page.until(lambda: HOSTILE in page.text("[data-section=latest]"))
    page.run("""
        const said = 'data: {"choices":[{"delta":{"content":"<img src=x onerror=alert(2)> & \\\\n"}}]}\\n\\n';
        window.fetch = async () => new Response(said + 'data: {"error":{"message":"<b>no</b>"}}\\n\\n');
    """)
    page.ask("<i>Hello</i>")
    page.until(lambda: page.text("#ask-error") == "<b>no</b>")
    assert "<img src=x onerror=alert(2)> & " in page.text("#log .answer p")
    assert "<i>Hello</i>" in page.text("#log .question p") and page.all("main b, main img, main i") == []


def test_the_clouds_page_shows_what_is_published_as_it_is(page: Page, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with serving(cloud_app(store, RandomPublisher(store))) as url:
        page.open(f"{url}/", "dark", 390)
        assert "None yet" in page.text("main")
        body = {"name": "manual", "text": "A long shared context."}
        assert httpx2.post(f"{url}/v1/contexts", json=body, trust_env=False).status_code == 200
        page.until(lambda: "manual" in page.text("tbody"))
        assert "lossless" in page.text("tbody") and "1 context" in page.text(".sentence")
        assert page.run("return document.documentElement.scrollWidth") <= 390
        assert page.all("button:not(#key button), select, textarea") == [], "it is read-only"
    page.until(lambda: "does not answer" in page.text("#connection"))
    assert page.one("#connection").is_displayed()


@pytest.mark.skipif(not AXE.exists(), reason="npm pack axe-core, and PREREAD_AXE=…/package/axe.min.js")
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(page: Page, edge: Any, smollm_cloud: Any, size: str) -> None:
    asked(edge.url, "manual")
    for url in (edge.url, smollm_cloud.url):
        page.open(f"{url}/", *SIZES[size])
        page.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        page.run(AXE.read_text())
        for summary in page.all("summary"):
            summary.click()
        found = page.driver.execute_async_script("axe.run().then(arguments[0])")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def asked(url: str, context: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "context": context}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
