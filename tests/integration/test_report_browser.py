"""Does the report page work in a browser, on a desk and on a phone?

It is driven in the system's Chromium. Where ``CI`` is set a missing browser is a failure: the page must not go
untried there. Elsewhere it is a skip that says what to install.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from gacq_deploy.artifact.artifact import load_artifact
from tests.support.artifacts.diagnostics import example_diagnostics
from tests.support.programs.commands import invoke

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"desktop": (1280, 900), "tablet": (768, 1024), "phone": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
MOST_PRINTED = 12
"""Pages of A4."""
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


@pytest.fixture(
    scope="module",
    params=[(size, scheme) for size in SIZES for scheme in SCHEMES],
    ids=lambda pair: f"{pair[0]}-{pair[1]}",
)
def page(request: pytest.FixtureRequest, browser: Browser, report_page: Path) -> Iterator[Page]:
    """The page, open at one size and in one scheme for all tests; anything that it logs or asks for is a failure."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
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
    assert page.locator("section").count() == 9
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    folded = page.evaluate(widths)
    _unfold(page)
    unfolded = page.evaluate(widths)
    assert folded[0] <= folded[1]
    assert unfolded[0] <= unfolded[1]


def _unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")


def test_the_verdict_is_seen_first_and_the_pictures_next(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    tops = [
        page.locator(f"#{part}").bounding_box() for part in ("verdict", "images", "error", "gates", "weights")
    ]
    places = [box["y"] for box in tops if box is not None]
    assert len(places) == 5
    assert places == sorted(places)
    sign = page.locator(".verdict .badge").evaluate("e => getComputedStyle(e, '::before').content")
    assert sign == '"\N{CHECK MARK}"', "not by its colour alone"
    rule = page.locator("#verdict").evaluate("e => getComputedStyle(e).borderLeftWidth")
    assert rule == "6px"
    big = page.locator(".numbers .big")
    assert big.count() == 4
    assert all(text.strip() for text in big.all_inner_texts())


def test_both_images_of_a_seed_stand_beside_each_other(page: Page) -> None:
    tiles = page.locator(".tile")
    assert tiles.count() > 1
    boxes = [tiles.first.locator(f"{part} img").bounding_box() for part in (".over", ".under", ".gap")]
    exact, quantized, difference = (box for box in boxes if box is not None)
    assert exact["y"] == quantized["y"] == difference["y"]
    assert exact["x"] < quantized["x"] < difference["x"]
    assert exact["width"] == pytest.approx(quantized["width"], abs=1)
    captions = page.locator(".tile figcaption").all_inner_texts()
    assert all(re.search(r"class \d+\s+seed \d+\s+.*\d dB", caption) for caption in captions), captions
    assert [("worst" in caption) for caption in captions] == [True] + [False] * (len(captions) - 1)
    first, *others = tiles.evaluate_all("all => all.map(e => getComputedStyle(e).borderTopColor)")
    assert first not in others, "it has a frame"
    shown = page.locator(".trio img").evaluate_all("all => all.map(e => getComputedStyle(e).imageRendering)")
    assert set(shown) == {"pixelated"}


def test_the_slider_wipes_between_the_images(page: Page) -> None:
    slider = page.locator("#wipe")
    assert not slider.is_visible()
    page.get_by_label("Wipe").check()
    boxes = [page.locator(f".tile >> nth=0 >> {part} img").bounding_box() for part in (".over", ".under")]
    assert boxes[0] == boxes[1]
    tags = [page.locator(f".tile >> nth=0 >> {part} .tag") for part in (".over", ".under")]
    left, right = (box["x"] for tag in tags if (box := tag.bounding_box()) is not None)
    assert left < right
    ends = page.locator(".slide span").all_inner_texts()
    assert ends == [tag.inner_text() for tag in tags], "the slider names its ends as the picture does"
    slider.fill("20")
    assert page.locator(".tiles").evaluate("e => e.style.getPropertyValue('--cut')") == "20%"
    before = page.locator(".over").first.evaluate("e => getComputedStyle(e).clipPath")
    slider.focus()
    page.keyboard.press("End")
    assert slider.input_value() == "100"
    assert slider.get_attribute("aria-valuetext") == "100 % float"
    assert page.locator(".over").first.evaluate("e => getComputedStyle(e).clipPath") != before
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "99"
    page.get_by_label("Side by side").check()


def test_the_picture_itself_can_be_dragged(page: Page) -> None:
    page.get_by_label("Wipe").check()
    trio = page.locator(".tile .trio").nth(1)
    box = trio.bounding_box()
    assert box is not None
    trio.click(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
    assert abs(int(page.locator("#wipe").input_value()) - 25) <= 1
    page.get_by_label("Side by side").check()
    trio.click(position={"x": 5, "y": 5})
    assert abs(int(page.locator("#wipe").input_value()) - 25) <= 1


def test_a_folded_section_opens_by_keyboard_and_by_a_link_to_it(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    layers = page.locator("#layers > details")
    page.locator("#layers > details > summary").focus()
    page.keyboard.press("Enter")
    assert layers.evaluate("e => e.open")
    page.keyboard.press("Enter")
    assert not layers.evaluate("e => e.open")
    page.locator("nav a[href='#layers']").press("Enter")
    page.locator("#layers > details[open]").wait_for()
    page.evaluate("history.replaceState(null, '', location.pathname)")


def test_labels_of_the_figures_do_not_collide(page: Page) -> None:
    _unfold(page)
    overlaps = page.evaluate("""() => {
      const found = [];
      for (const chart of document.querySelectorAll("svg.chart")) {
        const texts = [...chart.querySelectorAll("text")].filter(t => t.getClientRects().length);
        const boxes = texts.map(t => t.getBoundingClientRect());
        const frame = chart.getBoundingClientRect();
        boxes.forEach((a, i) => {
          if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push(["outside", texts[i].textContent]);
          for (let k = 0; k < i; k++) {
            const b = boxes[k];
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            // line boxes are taller than letters: what touches by less than a third of one is apart to the eye
            const touches = wide > 1 && high > Math.min(a.height, b.height) / 3;
            if (touches) found.push([texts[k].textContent, texts[i].textContent]);
          }
        });
      }
      return found;
    }""")
    assert page.locator("svg.chart").count() > 5
    assert overlaps == []


def test_bars_of_a_table_start_at_one_line(page: Page) -> None:
    _unfold(page)
    bars = page.locator("#sensitivity table >> nth=0 >> meter")
    boxes = [box for bar in bars.all() if (box := bar.bounding_box()) is not None]
    assert len(boxes) > 1
    assert len({round(box["x"]) for box in boxes}) == 1
    assert {round(box["width"]) for box in boxes} == {120 if page.viewport_size["width"] > 720 else 72}


def test_on_a_phone_the_numbers_of_a_table_are_in_sight(page: Page) -> None:
    _unfold(page)
    cells = page.locator("#speed table >> nth=0 >> tbody td:visible")
    room = page.evaluate("window.innerWidth")
    boxes = [box for cell in cells.all() if (box := cell.bounding_box()) is not None]
    assert len(boxes) > 6
    if room < 720:
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= room for box in boxes)
        assert not page.locator("#speed table >> nth=0 >> thead").is_visible(), "no empty head above them"


def test_names_break_between_their_parts_only(page: Page) -> None:
    _unfold(page)
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": 240, "height": 844})  # where the longest do not fit on one line
    # a word between two places where it may break stands on one line
    broken = page.evaluate("""() => {
      const found = [];
      for (const cell of document.querySelectorAll("td.name")) {
        for (const text of [...cell.childNodes].filter(n => n.nodeType === Node.TEXT_NODE)) {
          for (const word of text.textContent.matchAll(/[^\\s-]+-?/g)) {
            const range = document.createRange();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
            if (lines.size > 1) found.push(word[0]);
          }
        }
      }
      return found;
    }""")
    page.set_viewport_size(size)
    assert page.locator("td.name").count() > 10
    assert broken == []


def test_a_table_that_is_cut_shows_that_it_scrolls(page: Page) -> None:
    _unfold(page)
    place = page.evaluate_handle("""() => [...document.querySelectorAll(".scroll")].find(
      e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 40)""").as_element()
    if place is None:
        assert page.viewport_size["width"] < 720, "there the tables are stacked"
        return
    box = place.bounding_box()
    assert box is not None
    # behind what can be scrolled to lies a shadow at that side
    sides = []
    for left in (0, 100_000):
        place.evaluate("(e, left) => { e.scrollLeft = left; }", left)
        place.scroll_into_view_if_needed()
        with Image.open(io.BytesIO(place.screenshot())) as picture:
            grey = np.asarray(picture.convert("L"), float)
        sides.append((np.median(grey[8:-8, 2:5]), np.median(grey[8:-8, -5:-2])))
    (begin_left, begin_right), (end_left, end_right) = sides
    assert begin_right < begin_left
    assert end_left < end_right


def test_it_prints_on_few_pages(browser: Browser, report_page: Path) -> None:
    for scheme in SCHEMES:
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(report_page.as_uri())
        printed = opened.pdf(format="A4")
        context.close()
        assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= MOST_PRINTED


@pytest.mark.parametrize(
    ("table", "heading"),
    [
        # 1e-07, 0.9 and 40: by their text they would stand in another order
        ("#gates table", "value"),
        ("#layers table >> nth=0", "least scale"),
        ("#layers table >> nth=0", "codes at the ends"),
        ("#sensitivity table >> nth=0", "share of the error"),
        ("#sensitivity table >> nth=0", "gain if left float dB"),
    ],
    ids=["value", "scale", "ends", "share", "gain"],
)
def test_columns_sort_by_number_and_back(page: Page, table: str, heading: str) -> None:
    _unfold(page)
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
    _unfold(page)
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
    _unfold(opened)
    assert opened.locator(".panel:visible").count() == opened.locator(".panel").count() > 1
    over, under = (opened.locator(f"{part} img").first.bounding_box() for part in (".over", ".under"))
    assert over != under
    assert not opened.locator("#wipe").is_visible()
    context.close()


def test_light_and_dark_are_both_drawn(browser: Browser, report_page: Path) -> None:
    papers = []
    for scheme in SCHEMES:
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(report_page.as_uri())
        papers.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert papers[0] != papers[1]
