"""The page in a real browser, from file:// and without a network."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procreward.report.config import ReportConfig
from procreward.report.records import write_records
from procreward.report.run import report
from tests.report.helpers import episode
from tests.report.runs import HOSTILE, relabelled

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: apt-get install -y chromium"
)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = relabelled(tmp_path_factory.mktemp("relabelled"))
    return report(ReportConfig(run=run), lambda _: None).files[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as in containers, has no sandbox; the page is ours.
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


class Tab:
    """The open page, and what it complained about and asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.path = page, path
        # Other tests take the processor meanwhile.
        page.set_default_timeout(120_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, place: str = "") -> None:
        self.page.goto(self.path.as_uri() + place)

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait(self, holds: Callable[[], Any], seconds: float = 60.0) -> None:
        # The page's own rules forbid what Playwright's wait_for_function does.
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the page did not get there"
            self.page.wait_for_timeout(30)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found

    def time(self) -> float:
        return float(self.ask("document.querySelector('video').currentTime"))

    def cursor(self) -> float:
        """Where the cursor is, from 0 at the curve's left end to 1 at its right one."""
        script = """() => {
            const grid = document.querySelector('.grid line').getBoundingClientRect();
            const line = document.querySelector('.cursor line').getBoundingClientRect();
            return (line.left + line.width / 2 - grid.left) / grid.width;
        }"""
        return float(self.ask(script))

    def click_curve(self, share: float) -> None:
        box = self.page.locator(".grid line").first.bounding_box()
        self.page.mouse.click(box["x"] + share * box["width"], box["y"] + 40)

    def ready(self) -> None:
        self.page.wait_for_selector("#viewer video")
        self.wait(lambda: self.ask("document.querySelector('video').readyState >= 2"))


@pytest.fixture
def tab(browser: Any, page_path: Path) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    found = Tab(context.new_page(), page_path)
    yield found
    context.close()
    assert found.complaints == []
    outside = [url for url in found.requests if not url.startswith(("file:", "blob:", "data:"))]
    assert outside == []
    # The file itself and nothing beside it.
    files = {url.partition("#")[0] for url in found.requests if url.startswith("file:")}
    assert files == {page_path.as_uri()}


def test_many_episodes_are_shown_in_parts(browser: Any, tmp_path: Path) -> None:
    records = [episode(number=number) for number in range(1500)]
    write_records(records, tmp_path / "episodes.jsonl")
    path = report(ReportConfig(run=tmp_path, curves_only=True), lambda _: None).files[0]
    tab = Tab(browser.new_page(), path)
    tab.open()

    def shown() -> tuple[int, str]:
        return tab.ask("document.querySelectorAll('a.open').length"), tab.texts("#more")[0]

    assert shown() == (250, "Show 1,000 of 1,250 more")
    tab.page.click("#more")
    assert shown() == (1250, "Show 250 more")
    tab.page.fill("#search", "expert")
    assert shown() == (250, "Show 1,000 of 1,250 more")
    tab.page.close()


def test_the_table_sorts_and_filters(tab: Tab) -> None:
    tab.open()
    assert tab.texts("a.open") == ["falls", "rises", "short"]
    tab.page.click("[data-sort=length]")
    assert tab.texts("a.open") == ["falls", "rises", "short"]
    tab.page.click("[data-sort=length]")
    assert tab.texts("a.open") == ["short", "falls", "rises"]
    assert tab.ask("document.querySelector('th[aria-sort=ascending]').innerText") == "Steps▲"
    tab.page.click("[data-sort=final]")
    highest = tab.texts("a.open")
    tab.page.click("[data-sort=final]")
    assert tab.texts("a.open") == highest[::-1]
    tab.page.fill("#search", "cube")
    assert tab.texts("a.open") == ["short"]
    assert tab.texts("#count") == ["1 of 3 episodes"]
    tab.page.fill("#search", "")
    tab.page.select_option("#filter", "drop")
    assert tab.texts("a.open") == ["falls"]
    tab.page.select_option("#filter", "")
    tab.page.click("button[aria-label='Completion not complete: 3 episodes']")
    assert len(tab.texts("a.open")) == 3
    tab.page.click("button.bar[aria-label^='Length']:not([disabled]) >> nth=0")
    assert tab.texts("a.open") == ["short"]
    tab.page.click(".chip >> nth=1")
    assert len(tab.texts("a.open")) == 3


def test_recorded_texts_are_shown_as_they_are(tab: Tab) -> None:
    tab.open()
    assert tab.texts("td.task span")[0].replace("\n", " ") == HOSTILE
    tab.page.click("a.open >> nth=0")
    tab.ready()
    assert tab.texts("#episode-task") == [HOSTILE]
    assert "</script><script>" in tab.texts(".words")[0]
    assert tab.ask("typeof window.hacked") == "undefined"
    assert tab.ask("document.querySelectorAll('main img, main b').length") == 0


def test_a_click_on_the_curve_seeks_the_video(tab: Tab) -> None:
    tab.open("#episode=1")
    tab.ready()
    before = tab.time()
    words = tab.texts(".words")
    assert tab.texts(".answer .mark") == ["no usable answer: too <i>dark</i>"]
    tab.click_curve(0.5)
    # 24 pictures at 10 a second: the middle is picture 12, shown from 1.2 s on.
    tab.wait(lambda: abs(tab.time() - 1.25) < 0.051)
    assert before < 0.2
    assert tab.cursor() == pytest.approx(0.52, abs=0.03)
    assert tab.texts(".words") != words
    assert tab.texts("#clock")[0].startswith("step 12 / 23")
    tab.wait(lambda: "t=1.20" in tab.ask("location.hash"))
    assert tab.ask("document.getElementById('chart').getAttribute('aria-valuenow')") == "12"
    tab.click_curve(0.0)
    tab.wait(lambda: tab.time() < 0.11)
    tab.wait(lambda: tab.texts(".words") == words)


def test_the_cursor_follows_the_video(tab: Tab) -> None:
    tab.open("#episode=1")
    tab.ready()
    words, start = tab.texts(".words"), tab.cursor()
    tab.page.select_option("#speed", "0.25")  # machines may be slow
    tab.page.keyboard.press("Space")
    tab.wait(lambda: tab.cursor() > start + 0.05)
    tab.wait(lambda: tab.texts(".words") != words)
    tab.page.keyboard.press("Space")
    tab.wait(lambda: tab.ask("document.querySelector('video').paused"))
    assert tab.time() > 0.1
    assert tab.time() * 10 - 0.5 == pytest.approx(23 * tab.cursor(), abs=0.3)
    tab.page.select_option("#speed", "4")
    # At the end it stops, at the last step.
    tab.page.keyboard.press("End")
    tab.page.keyboard.press(",")
    tab.page.keyboard.press("Space")
    tab.wait(lambda: tab.ask("document.querySelector('video').ended"))
    tab.wait(lambda: tab.texts("#clock")[0].startswith("step 23 / 23"))


def test_keys(tab: Tab) -> None:
    tab.open()
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("Enter")
    tab.ready()
    assert tab.texts("#episode-name") == ["rises"]
    # Until the first usable answer the model is asked at every step: 0, 1, 2, 3, 4, 6, 8.
    for _ in range(5):
        tab.page.keyboard.press("ArrowRight")
    assert tab.texts("#clock")[0].startswith("step 6 /")
    tab.page.keyboard.press(".")
    assert tab.texts("#clock")[0].startswith("step 7 /")
    assert tab.texts(".age") == ["held for 1 step"]
    tab.page.keyboard.press("ArrowLeft")
    assert tab.texts("#clock")[0].startswith("step 6 /")
    tab.page.keyboard.press("k")
    tab.wait(lambda: tab.texts("#episode-name") == ["falls"])
    assert tab.texts("#position") == ["1 of 3"]
    tab.page.keyboard.press("Escape")
    assert tab.page.is_visible("#table")
    assert tab.ask("document.activeElement.textContent") == "falls"
    assert tab.ask("document.querySelectorAll('video').length") == 0
    tab.page.go_back()
    tab.wait(lambda: tab.texts("#episode-name") == ["falls"])


def test_a_link_leads_to_the_place(tab: Tab) -> None:
    tab.open("#episode=0&t=1.5")
    tab.ready()
    assert tab.texts("#episode-name") == ["falls"]
    assert tab.texts("#clock")[0].startswith("step 15 /")
    tab.wait(lambda: abs(tab.time() - 1.55) < 0.051)
    assert tab.texts("button.flag.drop") != []
    tab.page.click("button.flag.drop >> nth=0")
    assert not tab.texts("#clock")[0].startswith("step 15 /")
    tab.open("#episode=none")
    tab.page.wait_for_selector("#table")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_and_schemes(browser: Any, page_path: Path, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    for place in ("", "#episode=1"):
        page.goto(page_path.as_uri() + place)
        # Nothing but the table scrolls sideways.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    values = [sum(map(int, colour[4:-1].split(", "))) for colour in colours]
    assert (values[0] > values[1]) == (scheme == "light")
    context.close()
