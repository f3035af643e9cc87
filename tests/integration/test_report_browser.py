"""Does the report page work in a browser, on a desk and on a phone?

It is driven in the system's Chromium. Where ``CI`` is set a missing browser is a failure: the page must not go
untried there. Elsewhere it is a skip that says what to install.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from gacq_deploy.artifact.artifact import load_artifact
from tests.support.artifacts.diagnostics import example_diagnostics
from tests.support.programs.commands import invoke

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
LIMIT = 2_000_000
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")
"""Root has no sandbox, and containers have little shared memory."""


@pytest.fixture(scope="module")
def chromium() -> str:
    """Path of the system's browser."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        said = f"none of {', '.join(NAMES)} is installed; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


@pytest.fixture(scope="module")
def report_page(few_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a judged run whose artifact has learned weights."""
    run = Path(shutil.copytree(few_layers, tmp_path_factory.mktemp("report") / "run"))
    artifact = load_artifact(run / "artifact")
    blocks = [block.name for block in artifact.history]
    replace(artifact, diagnostics=example_diagnostics(blocks=blocks)).save(run / "artifact")
    for arguments in (
        ["export", "--onnx", str(run)],
        ["parity", str(run), "--engine", "ort-cpu", "--threads", "1"],
        ["sensitivity", str(run), "--threads", "1", "--states", "4", "--min-sqnr", "-50"],
        ["report", str(run)],
    ):
        done = invoke(arguments)
        assert done.exit_code == 0, done.output
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=SIZES, ids=str)
def page(request: pytest.FixtureRequest, browser: Browser, report_page: Path) -> Iterator[Page]:
    """The page, open at one size for all tests; anything that it logs or asks for is a failure."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda call: asked.append(call.url))
    opened.goto(report_page.as_uri())
    yield opened
    context.close()
    assert not said
    assert [url for url in asked if not url.startswith("data:")] == [report_page.as_uri()]


def test_the_page_is_small(report_page: Path) -> None:
    assert report_page.stat().st_size < LIMIT


def test_nothing_reaches_out_of_the_window(page: Page) -> None:
    assert page.locator("section").count() == 8
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


def test_the_slider_wipes_between_the_images(page: Page) -> None:
    slider = page.locator("#wipe")
    boxes = [page.locator(f"{part} img").bounding_box() for part in (".over", ".under")]
    assert boxes[0] == boxes[1]
    slider.fill("20")
    assert page.locator(".wipe").evaluate("e => e.style.getPropertyValue('--cut')") == "20%"
    before = page.locator(".over").evaluate("e => getComputedStyle(e).clipPath")
    slider.focus()
    page.keyboard.press("End")
    assert slider.input_value() == "100"
    assert slider.get_attribute("aria-valuetext") == "100 % float"
    assert page.locator(".over").evaluate("e => getComputedStyle(e).clipPath") != before
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "99"


def test_the_picture_itself_can_be_dragged(page: Page) -> None:
    box = page.locator(".wipe .pair").bounding_box()
    assert box is not None
    page.locator(".wipe .pair").click(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
    assert abs(int(page.locator("#wipe").input_value()) - 25) <= 1


@pytest.mark.parametrize(
    ("table", "heading"),
    [
        # 1e-07, 0.9 and 40: by their text they would stand in another order
        ("#verdict table.sortable", "value"),
        ("#layers table >> nth=0", "least scale"),
        ("#layers table >> nth=0", "codes at the ends"),
        ("#sensitivity table >> nth=0", "share of the error"),
        ("#sensitivity table >> nth=0", "gain if left float dB"),
    ],
    ids=["value", "scale", "ends", "share", "gain"],
)
def test_columns_sort_by_number_and_back(page: Page, table: str, heading: str) -> None:
    heads = page.locator(f"{table} >> th")
    number = [h.split("\N{NO-BREAK SPACE}")[0].strip() for h in heads.all_inner_texts()].index(heading)
    head, cells = heads.nth(number), page.locator(f"{table} >> tbody tr td:nth-child({number + 1})")

    def shown() -> list[float]:
        return [float(text.rstrip("%")) for text in cells.all_inner_texts() if text]

    count = len(shown())
    assert count > 1
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert shown() == sorted(shown())
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert shown() == sorted(shown(), reverse=True)
    assert len(shown()) == count


def test_a_stage_is_chosen_from_the_list(page: Page) -> None:
    assert page.locator(".panel:visible h3.stage").inner_text().startswith("polish")
    first = page.locator("#stage option").first
    page.locator("#stage").select_option(index=0)
    assert page.locator(".panel:visible").count() == 1
    assert page.locator(".panel:visible h3.stage").inner_text().startswith(first.inner_text())
    assert page.locator(".panel:visible svg").count() == 5


def test_everything_can_be_read_without_script(browser: Browser, report_page: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    opened = context.new_page()
    opened.goto(report_page.as_uri())
    assert opened.locator(".panel:visible").count() == opened.locator(".panel").count() > 1
    over, under = (opened.locator(f"{part} img").bounding_box() for part in (".over", ".under"))
    assert over != under
    context.close()


def test_light_and_dark_are_both_drawn(browser: Browser, report_page: Path) -> None:
    papers = []
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(report_page.as_uri())
        papers.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert papers[0] != papers[1]
